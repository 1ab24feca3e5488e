-- The settings of every connection, each with its reason.

-- Readers never wait for the writer, and the writer never for readers. https://sqlite.org/wal.html
PRAGMA journal_mode = WAL;
-- An acknowledged commit survives a power failure. https://sqlite.org/pragma.html#pragma_synchronous
PRAGMA synchronous = FULL;
PRAGMA foreign_keys = ON;
-- Other processes write the same file: wait for them, but no longer than a chat may be delayed.
PRAGMA busy_timeout = 2000;
-- Deleted data is overwritten; some builds of SQLite do so by default, others leave it in the file.
-- https://sqlite.org/pragma.html#pragma_secure_delete
PRAGMA secure_delete = ON;
PRAGMA temp_store = MEMORY;
PRAGMA cache_size = -8000;
-- 8 MB of log before a checkpoint: pages that change with every chat are copied once for many chats.
-- https://sqlite.org/pragma.html#pragma_wal_autocheckpoint
PRAGMA wal_autocheckpoint = 8000;
-- Truncates a log that has grown because of a long reader. https://sqlite.org/pragma.html#pragma_journal_size_limit
PRAGMA journal_size_limit = 16777216;
-- Views and triggers of a foreign file must not call functions with side effects.
-- https://sqlite.org/pragma.html#pragma_trusted_schema
PRAGMA trusted_schema = OFF;
