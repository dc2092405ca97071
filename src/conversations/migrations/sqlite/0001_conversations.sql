-- A message's text is a BLOB because it may hold any character, NUL included.
CREATE TABLE conversations (
    key INTEGER PRIMARY KEY,
    owner TEXT NOT NULL,
    id TEXT NOT NULL,
    -- NULL until there is one.
    title BLOB,
    -- Microseconds since 1970, UTC.
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    messages INTEGER NOT NULL,
    user_messages INTEGER NOT NULL,
    ai_messages INTEGER NOT NULL,
    -- Of all messages' text.
    bytes INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    UNIQUE (owner, id)
) STRICT;

-- The order in which an owner's conversations are listed.
CREATE INDEX conversations_by_age ON conversations (owner, created_at, id);

-- Clustered by conversation: they are read in order, a conversation at a time.
CREATE TABLE messages (
    conversation INTEGER NOT NULL REFERENCES conversations (key) ON DELETE CASCADE,
    -- 0, 1, 2 … without a gap.
    seq INTEGER NOT NULL,
    role TEXT NOT NULL,
    content BLOB NOT NULL,
    -- As it was given: ISO 8601 in local time.
    timestamp TEXT NOT NULL,
    -- 1: somebody stopped the answer.
    interrupted INTEGER NOT NULL,
    PRIMARY KEY (conversation, seq)
) STRICT, WITHOUT ROWID;
