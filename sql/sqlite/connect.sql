-- What every connection is set to, each with its reason.

-- Readers never wait for the writer, and the writer never for readers. https://sqlite.org/wal.html
PRAGMA journal_mode = WAL;
-- A commit that was acknowledged survives a power cut. https://sqlite.org/pragma.html#pragma_synchronous
PRAGMA synchronous = FULL;
PRAGMA foreign_keys = ON;
-- Other processes write the same file: wait for them, but not longer than a chat may be held up.
PRAGMA busy_timeout = 2000;
-- What is deleted is overwritten too; some builds of SQLite do so by default, others leave it in the file.
-- https://sqlite.org/pragma.html#pragma_secure_delete
PRAGMA secure_delete = ON;
PRAGMA temp_store = MEMORY;
PRAGMA cache_size = -8000;
-- 8 MB of log before it is brought into the file: pages that change with every chat are copied once for many chats.
-- https://sqlite.org/pragma.html#pragma_wal_autocheckpoint
PRAGMA wal_autocheckpoint = 8000;
-- A log that a long reader has let grow gives its space back. https://sqlite.org/pragma.html#pragma_journal_size_limit
PRAGMA journal_size_limit = 16777216;
-- What a foreign file brings along (views, triggers) runs no function that could do harm.
-- https://sqlite.org/pragma.html#pragma_trusted_schema
PRAGMA trusted_schema = OFF;
