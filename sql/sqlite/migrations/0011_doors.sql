-- A door that was ever locked stays locked, whatever became of the keys.
CREATE TABLE doors (
    name      TEXT PRIMARY KEY,                        -- 'keys': an API key is required from then on
    locked_at DATETIME NOT NULL
) WITHOUT ROWID;
INSERT INTO doors (name, locked_at)
SELECT 'keys', MIN(created_at)
FROM api_keys
HAVING COUNT(*) > 0;

-- What was relayed for a key, for its quota of a day. Not every endpoint is recorded, and what is may be deleted.
CREATE TABLE key_tokens (
    key_id TEXT NOT NULL REFERENCES api_keys (key_id) ON DELETE CASCADE,
    day    TEXT NOT NULL,                              -- by UTC, 2026-11-27
    tokens INTEGER NOT NULL,
    PRIMARY KEY (key_id, day)
) WITHOUT ROWID;
