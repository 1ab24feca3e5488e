-- The clock that deletions and chats are ordered by: the time since the machine was started, from a moment that all
-- processes share. The wall clock may be set back, and a chat asked after a deletion would then be taken for an older one.
CREATE TABLE boot_clock (
    boot_id    TEXT PRIMARY KEY,                       -- of the machine's last start
    started_at REAL NOT NULL                           -- Unix seconds
) WITHOUT ROWID;

-- What was made for a request with an Idempotency-Key: a retry finds it. Rows go after a day.
CREATE TABLE idempotency_keys (
    digest         BLOB PRIMARY KEY,                   -- SHA-256 of user, route and key
    request_digest BLOB NOT NULL,                      -- SHA-256 of the body
    made_id        TEXT NOT NULL,                      -- of the session or message
    created_at     DATETIME NOT NULL
) WITHOUT ROWID;
CREATE INDEX idx_idempotency_keys_created_at ON idempotency_keys (created_at);
