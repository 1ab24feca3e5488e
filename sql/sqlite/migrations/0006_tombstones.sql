-- What was deleted by hand, so that a chat asked before that does not bring it back when it ends, or is replayed from
-- the spill file of another process. Rows go after a month.
CREATE TABLE tombstones (
    digest     BLOB PRIMARY KEY,                       -- SHA-256 of its kind and id: who holds the file cannot read
                                                       -- who was deleted, but can find out by guessing the id
    kind       TEXT NOT NULL CHECK (kind IN ('user', 'session')),
    deleted_at DATETIME NOT NULL
) WITHOUT ROWID;
CREATE INDEX idx_tombstones_deleted_at ON tombstones (deleted_at);
