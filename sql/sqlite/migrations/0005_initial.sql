-- The first schema that is released; those before it had other columns.

-- Who talks. A user is made by the first chat or session that names it.
CREATE TABLE users (
    user_no              INTEGER PRIMARY KEY,          -- what exchanges refer to: shorter than the identifier
    user_id              TEXT NOT NULL UNIQUE,
    username             TEXT,
    session_count        INTEGER NOT NULL DEFAULT 0,   -- so that a list's total costs nothing; counted up by what makes
                                                       -- sessions, down by triggers, since deletes cascade
    active_session_count INTEGER NOT NULL DEFAULT 0,
    created_at           DATETIME NOT NULL,            -- ISO 8601 UTC, milliseconds, Z; as every DATETIME here
    last_active          DATETIME NOT NULL
);
CREATE INDEX idx_users_last_active ON users (last_active);

-- A conversation: a tree of messages.
CREATE TABLE sessions (
    session_no    INTEGER PRIMARY KEY,                 -- what our own columns refer to: shorter than the identifier
    session_id    TEXT NOT NULL UNIQUE,                -- UUIDv7
    user_id       TEXT NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    external_id   TEXT,                                -- the id a client made up, where it did
    title         TEXT NOT NULL DEFAULT 'New Conversation',
    is_active     BOOLEAN NOT NULL DEFAULT TRUE,
    metadata      TEXT,                                -- JSON object
    leaf_no       INTEGER,                             -- the message stored last: the end of the main branch
    message_count INTEGER NOT NULL DEFAULT 0,          -- all branches
    tokens        INTEGER NOT NULL DEFAULT 0,          -- sum over its messages
    created_at    DATETIME NOT NULL,
    updated_at    DATETIME NOT NULL
);
CREATE UNIQUE INDEX idx_sessions_external_id ON sessions (user_id, external_id) WHERE external_id IS NOT NULL;
CREATE INDEX idx_sessions_user_id ON sessions (user_id, updated_at DESC, session_id DESC);
CREATE INDEX idx_sessions_created_at ON sessions (created_at DESC);
CREATE INDEX idx_sessions_active ON sessions (is_active, updated_at DESC);

CREATE TRIGGER sessions_counted_out AFTER DELETE ON sessions
BEGIN
    UPDATE users
    SET session_count = session_count - 1,
        active_session_count = active_session_count - OLD.is_active
    WHERE user_id = OLD.user_id;
END;
CREATE TRIGGER sessions_recounted AFTER UPDATE OF is_active ON sessions
WHEN OLD.is_active <> NEW.is_active
BEGIN
    UPDATE users
    SET active_session_count = active_session_count + NEW.is_active - OLD.is_active
    WHERE user_id = NEW.user_id;
END;

-- What was said, each message once. What nearly all say is not written out (content_form, choice, status): with the
-- indexes a message costs some 300 bytes besides its text, and each of them counts.
CREATE TABLE messages (
    message_no   INTEGER PRIMARY KEY AUTOINCREMENT,    -- order of storing, never used twice; for links and the search index
    message_id   TEXT NOT NULL UNIQUE,                 -- UUIDv7
    session_id   TEXT NOT NULL REFERENCES sessions (session_id) ON DELETE CASCADE,
    session_no   INTEGER NOT NULL,                     -- the same, short: for links and indexes
    parent_no    INTEGER,                              -- the message above it, of the same session. No foreign key: a
                                                       -- cascade down a long branch goes beyond SQLite's depth limit,
                                                       -- and the index it wants would be paid for by every message
    depth        INTEGER NOT NULL,                     -- messages above it
    chain_hash   BLOB NOT NULL,                        -- thread.py: this message and all above it, of this user
    exchange_no  INTEGER,                              -- the exchange that stored it; none when posted by hand
    role         TEXT NOT NULL,
    content      TEXT NOT NULL,                        -- the text, as people read and search it
    content_form TEXT CHECK (content_form IN ('json', 'none')), -- null: content is what was sent; json: the exact content
                                                       -- is in extra; none: it had no content
    extra        TEXT,                                 -- JSON object: its other OpenAI keys, as sent
    choice       TEXT,                                 -- JSON object, replies only: finish_reason, logprobs, index if not
                                                       -- 0; '' where it is {"finish_reason":"stop"}
    model        TEXT,
    tokens       INTEGER NOT NULL DEFAULT 0,
    status       TEXT CHECK (status IN ('incomplete', 'failed')), -- null: completed
    metadata     TEXT,                                 -- JSON object
    created_at   DATETIME NOT NULL
);
CREATE INDEX idx_messages_parent_no ON messages (session_no, parent_no);
-- What a session begins with; all of its messages are found by the index on session and time, which begins with the same
-- column.
CREATE INDEX idx_messages_session_id ON messages (session_id) WHERE parent_no IS NULL;
CREATE INDEX idx_messages_created_at ON messages (created_at);
-- Half of all messages are of each of these two: no query is faster for an index on them.
CREATE INDEX idx_messages_role ON messages (role) WHERE role NOT IN ('user', 'assistant');
CREATE INDEX idx_messages_session_created ON messages (session_id, created_at);
CREATE INDEX idx_messages_chain_hash ON messages (chain_hash, session_no);

-- One request and its reply.
CREATE TABLE exchanges (
    exchange_no           INTEGER PRIMARY KEY AUTOINCREMENT, -- never used twice: messages refer to it
    exchange_id           TEXT NOT NULL UNIQUE,        -- UUIDv7
    session_no            INTEGER NOT NULL REFERENCES sessions (session_no) ON DELETE CASCADE,
    user_no               INTEGER NOT NULL,            -- the session's; for lists by user
    leaf_no               INTEGER,                     -- last message of the request, parent of the replies
    context               TEXT,                        -- JSON [[linked messages after it, message_no], ...]: the system
                                                       -- messages as sent; null for those before all linked ones
    linked_count          INTEGER,                     -- the request's messages without the system messages: as many
                                                       -- of those up to leaf_no were sent
    model                 TEXT,                        -- the one that answered; null where it is the one asked for
    status                TEXT NOT NULL CHECK (status IN ('in_progress', 'completed', 'incomplete', 'failed')),
    http_status           INTEGER,                     -- upstream's; none when it gave none
    finish_reason         TEXT,                        -- of the first choice, exactly as sent
    prompt_tokens         INTEGER,
    completion_tokens     INTEGER,
    total_tokens          INTEGER,
    reasoning_tokens      INTEGER,
    cached_tokens         INTEGER,
    time_to_first_token_ms INTEGER,
    duration_ms           INTEGER,
    parameters_no         INTEGER NOT NULL REFERENCES parameters (parameters_no),
    metadata              TEXT,                        -- JSON object
    request_id            TEXT,                        -- X-Request-Id; null where it is the exchange's id
    completion_id         TEXT,                        -- upstream's id of the reply; '' where it is, as vLLM makes it,
                                                       -- chatcmpl- and the exchange's id
    completion            TEXT,                        -- JSON object: the reply without its choices and what is in
                                                       -- columns
    completion_created    INTEGER,                     -- upstream's time of the reply, in seconds since 1970
    error                 TEXT,                        -- JSON, as upstream or the proxy said it
    worker_id             TEXT,                        -- the process that streams it, while in progress
    created_at            DATETIME NOT NULL,
    completed_at          DATETIME                     -- null where it is duration_ms after created_at, but for a few ms
);
CREATE INDEX idx_exchanges_session_no ON exchanges (session_no); -- in the order of exchange_no
CREATE INDEX idx_exchanges_user_no ON exchanges (user_no, exchange_id);
CREATE INDEX idx_exchanges_completion_id ON exchanges (user_no, completion_id) WHERE completion_id <> '';
CREATE INDEX idx_exchanges_in_progress ON exchanges (worker_id) WHERE status = 'in_progress';
CREATE INDEX idx_exchanges_parameters ON exchanges (parameters_no);

-- What exchanges' requests asked for, and where, besides their messages; each once: a client sends the same with every
-- turn.
CREATE TABLE parameters (
    parameters_no INTEGER PRIMARY KEY,
    digest        BLOB NOT NULL UNIQUE,                -- SHA-256 of endpoint and data
    endpoint      TEXT NOT NULL,
    model         TEXT,                                -- the one that data names
    data          TEXT NOT NULL                        -- JSON object: the request without its messages
);
CREATE TRIGGER parameters_go_with_their_last_exchange AFTER DELETE ON exchanges
BEGIN
    DELETE FROM parameters
    WHERE parameters_no = OLD.parameters_no
      AND NOT EXISTS (SELECT 1 FROM exchanges WHERE parameters_no = OLD.parameters_no);
END;

-- What a reply in progress has streamed so far: events that mean what upstream sent. Gone when the reply is stored.
CREATE TABLE exchange_fragments (
    exchange_id TEXT NOT NULL REFERENCES exchanges (exchange_id) ON DELETE CASCADE,
    sequence    INTEGER NOT NULL,
    data        BLOB NOT NULL,
    PRIMARY KEY (exchange_id, sequence)
) WITHOUT ROWID;

-- Large parts of messages (data URLs), each once; messages refer to them by digest.
CREATE TABLE blobs (
    digest TEXT PRIMARY KEY,                           -- SHA-256, hexadecimal
    data   TEXT NOT NULL                               -- the URL as it was sent
);
CREATE TABLE message_blobs (
    message_no INTEGER NOT NULL REFERENCES messages (message_no) ON DELETE CASCADE,
    digest     TEXT NOT NULL REFERENCES blobs (digest),
    PRIMARY KEY (message_no, digest)
) WITHOUT ROWID;
CREATE INDEX idx_message_blobs_digest ON message_blobs (digest);
CREATE TRIGGER blobs_go_with_their_last_message AFTER DELETE ON message_blobs
BEGIN
    DELETE FROM blobs
    WHERE digest = OLD.digest
      AND NOT EXISTS (SELECT 1 FROM message_blobs WHERE digest = OLD.digest);
END;

-- Who may come in. The key itself is never stored.
CREATE TABLE api_keys (
    key_id              TEXT PRIMARY KEY,              -- UUIDv7
    user_id             TEXT NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    name                TEXT,
    key_hash            BLOB NOT NULL UNIQUE,          -- SHA-256
    hint                TEXT NOT NULL,                 -- the key's first characters, to tell keys apart
    is_admin            BOOLEAN NOT NULL DEFAULT FALSE,
    requests_per_minute INTEGER,                       -- quotas; none: no limit
    tokens_per_day      INTEGER,
    created_at          DATETIME NOT NULL,
    expires_at          DATETIME,
    revoked_at          DATETIME,
    last_used_at        DATETIME
);
CREATE INDEX idx_api_keys_user_id ON api_keys (user_id);

INSERT INTO users (user_id, username, created_at, last_active)
VALUES ('default_user', 'Developer', '1970-01-01T00:00:00.000Z', '1970-01-01T00:00:00.000Z');
