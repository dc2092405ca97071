-- What callers have used up: sums by day, so that the table grows with callers and days, not with requests.
CREATE TABLE usage (
    owner TEXT NOT NULL,
    -- In the server's local time: 2026-11-22.
    day TEXT NOT NULL,
    -- How requests ended: done, cancelled, left, failed, cut.
    ending TEXT NOT NULL,
    -- Who counted the tokens: 0 the upstream, 1 an estimate.
    estimated INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (owner, day, ending, estimated)
) STRICT, WITHOUT ROWID;

-- The last batch of each process, so that one whose outcome was not heard of can be sent again.
CREATE TABLE usage_batches (
    writer TEXT PRIMARY KEY,
    batch INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
