//! Any sequence of operations leaves what a simple model says: maps and lists in memory.

use std::collections::BTreeMap;

use ai_service::{
    conversations::{Conversations, Counts, StoreError, StoredMessage, Turn},
    ids::{ConversationId, Owner},
    message::{Message, Role, Usage},
};
use proptest::{
    collection::vec,
    option,
    prelude::{Just, Strategy, any},
    prop_oneof,
    sample::select,
    test_runner::{Config, TestRunner},
};

use crate::support::database::{Kind, TestDatabase};

const OWNERS: [&str; 2] = ["", "민지"];
const IDS: [&str; 3] = ["a", "A", "_-9"];

/// What something on the way to a database and back might harm.
const TEXTS: [&str; 9] = [
    "",
    "\0",
    "a\0b",
    "안녕하세요",
    "👨‍👩‍👧‍👦",
    "e\u{301}\u{1112}\u{1161}\u{11ab}",
    "\u{feff}x\u{feff}",
    "'\"\\ $1 ?1",
    "\u{10ffff}\u{202e}",
];

const ROLES: [Role; 4] = [Role::System, Role::Developer, Role::User, Role::Assistant];

const TIMES: [&str; 3] = ["2026-11-22T23:17:31.899397", "2026-11-22T23:17:31", "1999-12-31T23:59:59+09:00"];

/// Whose conversation, and which, as positions above.
type Which = (usize, usize);

#[derive(Clone, Debug)]
enum Operation {
    Create(Which, Option<String>, Vec<StoredMessage>),
    Save(Which, Vec<StoredMessage>),
    Append(Which, Box<Turn>),
    Clear(Which),
    Delete(Which),
    Title(Which, String, bool),
    Find(Which),
    Summary(Which),
    Messages(Which),
    Newest(Which, u64, u32),
    /// Pages of that many.
    List(usize, u32),
}

#[derive(Clone, Debug, Default)]
struct Modelled {
    title: Option<String>,
    messages: Vec<StoredMessage>,
    prompt_tokens: u64,
    completion_tokens: u64,
    /// When it was made, as the store said.
    created_at: String,
}

impl Modelled {
    fn counts(&self) -> Counts {
        let by = |role| self.messages.iter().filter(|message| message.role == role).count() as u64;
        Counts {
            messages: self.messages.len() as u64,
            user_messages: by(Role::User),
            ai_messages: by(Role::Assistant),
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
        }
    }
}

fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => select(&TEXTS[..]).prop_map(str::to_owned),
        1 => vec(any::<char>(), 0..20).prop_map(String::from_iter),
    ]
}

fn messages() -> impl Strategy<Value = StoredMessage> {
    (select(&ROLES[..]), texts(), select(&TIMES[..]), any::<bool>()).prop_map(
        |(role, content, timestamp, interrupted)| StoredMessage {
            role,
            content,
            timestamp: timestamp.to_owned(),
            interrupted,
        },
    )
}

fn turns() -> impl Strategy<Value = Box<Turn>> {
    let usage = option::of((0..100_u64, 0..100_u64)).prop_map(|tokens| {
        tokens.map(|(prompt_tokens, completion_tokens)| Usage { prompt_tokens, completion_tokens, total_tokens: 7 })
    });
    (messages(), messages(), usage).prop_map(|(question, answer, usage)| {
        let (question, answer) =
            (StoredMessage { role: Role::User, ..question }, StoredMessage { role: Role::Assistant, ..answer });
        Box::new(Turn { question, answer, usage })
    })
}

fn operations() -> impl Strategy<Value = Operation> {
    let which = || (0..OWNERS.len(), 0..IDS.len());
    prop_oneof![
        2 => (which(), option::of(texts()), vec(messages(), 0..4)).prop_map(|(w, t, m)| Operation::Create(w, t, m)),
        2 => (which(), vec(messages(), 0..6)).prop_map(|(w, m)| Operation::Save(w, m)),
        5 => (which(), turns()).prop_map(|(w, t)| Operation::Append(w, t)),
        1 => which().prop_map(Operation::Clear),
        1 => which().prop_map(Operation::Delete),
        1 => (which(), texts(), any::<bool>()).prop_map(|(w, t, first)| Operation::Title(w, t, first)),
        1 => which().prop_map(Operation::Find),
        1 => which().prop_map(Operation::Summary),
        2 => which().prop_map(Operation::Messages),
        2 => (which(), prop_oneof![0..8_u64, Just(u64::MAX)], 0..5_u32).prop_map(|(w, b, l)| Operation::Newest(w, b, l)),
        1 => (0..OWNERS.len(), 1..4_u32).prop_map(|(owner, limit)| Operation::List(owner, limit)),
    ]
}

/// The store and the model of it, side by side. Each run has owners of its own in the one database.
struct Pair<'a> {
    store: &'a Conversations,
    model: BTreeMap<Which, Modelled>,
    owners: [Owner; 2],
}

impl Pair<'_> {
    fn owner(&self, which: Which) -> &Owner {
        &self.owners[which.0]
    }

    fn id(which: Which) -> ConversationId {
        ConversationId::parse(IDS[which.1]).expect("an id")
    }

    /// Takes the moment at which the store has made one; nothing else of it is the store's own affair.
    async fn made(&mut self, which: Which, made: Modelled) {
        let found = self.store.find(self.owner(which), &Self::id(which)).await.unwrap().expect("it was made");
        self.model.insert(which, Modelled { created_at: found.created_at.to_string(), ..made });
    }

    async fn write(&mut self, operation: Operation) {
        let store = self.store;
        match operation {
            Operation::Create(which, title, messages) => {
                let created = store.create(self.owner(which), Self::id(which), title.clone(), messages.clone()).await;
                if self.model.contains_key(&which) {
                    assert_eq!(created, Err(StoreError::Exists));
                    return;
                }
                let made = Modelled { title, messages, ..Modelled::default() };
                let created = created.unwrap();
                assert_eq!((&created.title, created.counts), (&made.title, made.counts()));
                self.made(which, made).await;
            }
            Operation::Save(which, messages) => {
                let saved = store.save(self.owner(which), Self::id(which), messages.clone()).await.unwrap();
                assert_eq!(saved.is_new, !self.model.contains_key(&which));
                if saved.is_new {
                    self.made(which, Modelled::default()).await;
                }
                let known = self.model.get_mut(&which).unwrap();
                known.messages = messages;
                let saved = saved.conversation;
                assert_eq!((&saved.title, saved.counts), (&known.title, known.counts()));
                assert_eq!(saved.created_at.to_string(), known.created_at);
            }
            Operation::Append(which, turn) => {
                let appended = store.append(self.owner(which), Self::id(which), (*turn).clone()).await.unwrap();
                if !self.model.contains_key(&which) {
                    self.made(which, Modelled::default()).await;
                }
                let known = self.model.get_mut(&which).unwrap();
                let Turn { question, answer, usage } = *turn;
                known.messages.extend([question, answer]);
                known.prompt_tokens += usage.unwrap_or_default().prompt_tokens;
                known.completion_tokens += usage.unwrap_or_default().completion_tokens;
                let expected = (known.messages.len() as u64, known.title.is_some());
                assert_eq!((appended.messages, appended.has_title), expected);
            }
            Operation::Clear(which) => {
                let cleared = store.clear(self.owner(which), Self::id(which)).await.unwrap();
                assert_eq!(cleared, self.model.contains_key(&which));
                if let Some(known) = self.model.get_mut(&which) {
                    known.messages.clear();
                }
            }
            Operation::Delete(which) => {
                let deleted = store.delete(self.owner(which), Self::id(which)).await.unwrap();
                assert_eq!(deleted, self.model.remove(&which).is_some());
            }
            Operation::Title(which, title, only_first) => {
                let set = store.set_title(self.owner(which), Self::id(which), title.clone(), only_first).await.unwrap();
                let known = self.model.get_mut(&which).filter(|known| known.title.is_none() || !only_first);
                assert_eq!(set, known.is_some());
                if let Some(known) = known {
                    known.title = Some(title);
                }
            }
            reading => self.read(reading).await,
        }
    }

    async fn read(&self, operation: Operation) {
        let store = self.store;
        match operation {
            Operation::Find(which) => {
                let found = store.find(self.owner(which), &Self::id(which)).await.unwrap();
                let known = self.model.get(&which);
                let found = found.map(|found| {
                    assert_eq!(found.id, Self::id(which));
                    assert!(found.updated_at.to_string() >= found.created_at.to_string());
                    (found.title, found.counts, found.created_at.to_string())
                });
                assert_eq!(found, known.map(|known| (known.title.clone(), known.counts(), known.created_at.clone())));
            }
            Operation::Summary(which) => {
                let summary = store.summary(self.owner(which), &Self::id(which)).await.unwrap();
                let summary =
                    summary.map(|summary| (summary.counts, summary.first_message_at, summary.last_message_at));
                let known = self.model.get(&which).map(|known| {
                    let at = |message: Option<&StoredMessage>| message.map(|message| message.timestamp.clone());
                    (known.counts(), at(known.messages.first()), at(known.messages.last()))
                });
                assert_eq!(summary, known);
            }
            Operation::Messages(which) => {
                let messages = store.messages(self.owner(which), &Self::id(which)).await.unwrap();
                let known = self.model.get(&which).map(|known| known.messages.clone());
                // Their `Debug` shows no text, so that says little.
                assert!(messages == known, "{messages:?} {known:?}");
            }
            Operation::Newest(which, before, limit) => {
                let newest = store.newest(self.owner(which), &Self::id(which), before, limit).await.unwrap();
                let all = self.model.get(&which).map_or(&[][..], |known| &known.messages);
                let sent = |message: &StoredMessage| Message::new(message.role, message.content.as_str());
                let numbered = (0_u64..).zip(all.iter().map(sent)).collect::<Vec<_>>();
                let numbered = numbered.into_iter().rev().filter(|(seq, _)| *seq < before);
                let known: Vec<_> = numbered.take(limit as usize).collect();
                assert!(newest.messages == known, "{newest:?} {known:?}");
                let bytes: usize = all.iter().map(|message| message.content.len()).sum();
                assert_eq!(newest.bytes, if known.is_empty() { 0 } else { bytes as u64 });
            }
            Operation::List(owner, limit) => self.list(owner, limit).await,
            _ => unreachable!("a write"),
        }
    }

    async fn list(&self, owner: usize, limit: u32) {
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = self.store.list(&self.owners[owner], cursor.as_ref(), limit).await.unwrap();
            assert!(page.conversations.len() == limit as usize || page.next.is_none());
            let shown =
                |c: ai_service::conversations::Conversation| (c.created_at.to_string(), c.id, c.title, c.counts);
            found.extend(page.conversations.into_iter().map(shown));
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        let mut known: Vec<_> = (self.model.iter().filter(|(which, _)| which.0 == owner))
            .map(|(which, known)| (known.created_at.clone(), Self::id(*which), known.title.clone(), known.counts()))
            .collect();
        // The newest first; those of one moment in the order of their names.
        known.sort_by(|one, two| (&two.0, two.1.as_str()).cmp(&(&one.0, one.1.as_str())));
        assert_eq!(found, known);
    }
}

fn any_sequence_equals_the_model(kind: Kind, cases: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (database, store) = runtime.block_on(async {
        let database = TestDatabase::new(kind).await;
        let store = database.open().await;
        (database, store)
    });
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(cases) });
    let run = std::sync::atomic::AtomicUsize::new(0);
    let outcome = runner.run(&vec(operations(), 1..30), |operations| {
        let run = run.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let owners = OWNERS.map(|name| Owner::new(&format!("{name}{run}")));
        let mut pair = Pair { store: &store, model: BTreeMap::new(), owners };
        runtime.block_on(async {
            for operation in operations {
                pair.write(operation).await;
            }
            for owner in 0..OWNERS.len() {
                pair.list(owner, 2).await;
                for id in 0..IDS.len() {
                    pair.read(Operation::Messages((owner, id))).await;
                    pair.read(Operation::Summary((owner, id))).await;
                }
            }
        });
        Ok(())
    });
    runtime.block_on(async {
        store.close().await;
        database.remove().await;
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn any_sequence_equals_the_model_in_memory() {
    any_sequence_equals_the_model(Kind::Memory, 300);
}

#[test]
fn any_sequence_equals_the_model_in_a_file() {
    any_sequence_equals_the_model(Kind::File, 50);
}

#[test]
#[ignore = "needs PostgreSQL; run by make test"]
fn any_sequence_equals_the_model_in_postgres() {
    any_sequence_equals_the_model(Kind::Postgres, 100);
}
