-- A message's text is BYTEA because it may hold any character, NUL included.
CREATE TABLE conversations (
    key BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    -- NULL until there is one.
    title BYTEA,
    -- Microseconds since 1970, UTC.
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    messages BIGINT NOT NULL,
    user_messages BIGINT NOT NULL,
    ai_messages BIGINT NOT NULL,
    -- Of all messages' text.
    bytes BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    UNIQUE (owner, id)
);

-- The order in which an owner's conversations are listed.
CREATE INDEX conversations_by_age ON conversations (owner, created_at, id);

CREATE TABLE messages (
    conversation BIGINT NOT NULL REFERENCES conversations (key) ON DELETE CASCADE,
    -- 0, 1, 2 … without a gap.
    seq BIGINT NOT NULL,
    role TEXT NOT NULL,
    content BYTEA NOT NULL,
    -- As it was given: ISO 8601 in local time.
    timestamp TEXT NOT NULL,
    -- 1: somebody stopped the answer.
    interrupted BIGINT NOT NULL,
    PRIMARY KEY (conversation, seq)
);
