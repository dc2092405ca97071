//! What callers have used up, as it is stored: sums by caller, day, ending and who counted.

use crate::{
    conversations::{
        database::{Pool, Transaction},
        queries::{count, on, within},
    },
    ids::Owner,
};

/// One sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRow {
    pub owner: Owner,
    /// `2026-11-22`, in the server's local time.
    pub day: String,
    /// How the requests ended.
    pub ending: &'static str,
    /// Whether the tokens were estimated, because the upstream did not say.
    pub estimated: bool,
    pub used: Used,
}

/// So much was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    pub requests: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// Of the tokens, those that were estimated.
    pub estimated_tokens: u64,
}

impl std::ops::AddAssign for Used {
    fn add_assign(&mut self, other: Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(other.completion_tokens);
        self.estimated_tokens = self.estimated_tokens.saturating_add(other.estimated_tokens);
    }
}

/// Sums of one process, numbered: each is added once, however often it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageBatch {
    /// Names the process.
    pub writer: String,
    /// 1, 2, 3 …
    pub number: i64,
    pub rows: Vec<UsageRow>,
}

/// Adds a batch, if it has not been added.
pub(super) async fn add(transaction: &mut Transaction, batch: &UsageBatch) -> Result<(), sqlx::Error> {
    const CLAIM: &str = "INSERT INTO usage_batches (writer, batch) VALUES ($1, $2) \
        ON CONFLICT (writer) DO UPDATE SET batch = $2 WHERE usage_batches.batch < $2 RETURNING batch";
    const ADD: &str = "INSERT INTO usage (owner, day, ending, estimated, requests, prompt_tokens, completion_tokens) \
        VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (owner, day, ending, estimated) DO UPDATE SET \
        requests = usage.requests + $5, prompt_tokens = usage.prompt_tokens + $6, \
        completion_tokens = usage.completion_tokens + $7";
    let claimed: Option<i64> = within!(transaction, connection => {
        let query = sqlx::query_scalar(CLAIM).bind(batch.writer.as_str()).bind(batch.number);
        query.fetch_optional(connection).await?
    });
    if claimed.is_none() {
        return Ok(());
    }
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX >> 16);
    for UsageRow { owner, day, ending, estimated, used } in &batch.rows {
        within!(transaction, connection => {
            let query = sqlx::query(ADD).bind(owner.as_str()).bind(day.as_str()).bind(*ending);
            let query = query.bind(i64::from(*estimated)).bind(number(used.requests));
            let query = query.bind(number(used.prompt_tokens)).bind(number(used.completion_tokens));
            query.execute(connection).await?;
        });
    }
    Ok(())
}

/// What `owner` has used from the day `first` to the day `last`, both included.
pub(super) async fn used(pool: &Pool, owner: &Owner, first: &str, last: &str) -> Result<Used, sqlx::Error> {
    const SQL: &str = "SELECT estimated, requests, prompt_tokens, completion_tokens FROM usage \
        WHERE owner = $1 AND day >= $2 AND day <= $3";
    let rows: Vec<(i64, i64, i64, i64)> = on!(pool, connection => {
        sqlx::query_as(SQL).bind(owner.as_str()).bind(first).bind(last).fetch_all(connection).await?
    });
    let mut all = Used::default();
    for (estimated, requests, prompt, completion) in rows {
        let estimated_tokens = if estimated == 0 { 0 } else { count(prompt).saturating_add(count(completion)) };
        all += Used {
            requests: count(requests),
            prompt_tokens: count(prompt),
            completion_tokens: count(completion),
            estimated_tokens,
        };
    }
    Ok(all)
}
