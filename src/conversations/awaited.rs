//! Turns whose answers are being waited for, and whose conversations may be removed or cleared meanwhile: what was
//! removed stays so.
//!
//! In this process alone; another instance on the same PostgreSQL does not know of them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use dashmap::{DashMap, mapref::entry::Entry};

use crate::{
    conversations::writer::Gone,
    ids::{ConversationId, Owner},
};

type Name = (Owner, ConversationId);

/// Those of one app. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Awaited(Arc<DashMap<Name, Vec<Gone>>>);

/// One turn, until it is stored or given up.
#[derive(Debug)]
pub struct AwaitedTurn {
    name: Name,
    gone: Gone,
    all: Awaited,
}

impl Awaited {
    pub(super) fn begin(&self, owner: &Owner, id: &ConversationId) -> AwaitedTurn {
        let (name, gone) = ((owner.clone(), id.clone()), Arc::new(AtomicBool::new(false)));
        self.0.entry(name.clone()).or_default().push(Arc::clone(&gone));
        AwaitedTurn { name, gone, all: self.clone() }
    }

    /// Gives up those that are being waited for. Before the conversation is written, so that none is stored behind that.
    pub(super) fn give_up(&self, owner: &Owner, id: &ConversationId) -> GivenUp {
        let known = self.0.get(&(owner.clone(), id.clone())).map(|turns| turns.clone()).unwrap_or_default();
        GivenUp(known.into_iter().filter(|gone| !gone.swap(true, Ordering::AcqRel)).collect())
    }
}

/// What was given up.
#[derive(Debug)]
pub(super) struct GivenUp(Vec<Gone>);

impl GivenUp {
    /// Nothing was removed after all.
    pub(super) fn take_back(self) {
        self.0.iter().for_each(|gone| gone.store(false, Ordering::Release));
    }
}

impl AwaitedTurn {
    /// The conversation.
    #[must_use]
    pub fn id(&self) -> &ConversationId {
        &self.name.1
    }

    pub(super) fn name(&self) -> &Name {
        &self.name
    }

    pub(super) fn gone(&self) -> Gone {
        Arc::clone(&self.gone)
    }
}

impl Drop for AwaitedTurn {
    fn drop(&mut self) {
        if let Entry::Occupied(mut turns) = self.all.0.entry(self.name.clone()) {
            turns.get_mut().retain(|gone| !Arc::ptr_eq(gone, &self.gone));
            if turns.get().is_empty() {
                turns.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_is_the_conversations_own_and_nothing_is_remembered_afterwards() {
        let all = Awaited::default();
        let (owner, id) = (Owner::default(), |text| ConversationId::parse(text).unwrap());
        let (one, other) = (all.begin(&owner, &id("a")), all.begin(&owner, &id("b")));
        let given_up = all.give_up(&owner, &id("a"));
        let is_gone = |turn: &AwaitedTurn| turn.gone().load(Ordering::Relaxed);
        assert!(is_gone(&one) && !is_gone(&other));
        let again = all.give_up(&owner, &id("a"));
        again.take_back();
        assert!(is_gone(&one), "it was gone before");
        given_up.take_back();
        assert!(!is_gone(&one));
        drop((one, other));
        assert!(all.0.is_empty());
    }
}
