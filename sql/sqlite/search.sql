-- The search index: a file of its own beside the database, derived from it. SQLite only: FTS5.
-- {segment} stands for the number of a segment.

-- name: create_segments
-- One row a segment: how far its messages are indexed.
CREATE TABLE IF NOT EXISTS segments (
    segment    INTEGER PRIMARY KEY,
    indexed_no INTEGER NOT NULL,                       -- the last message that is in
    indexed_id TEXT NOT NULL,                          -- its id, to notice that the database is another one
    documents  INTEGER NOT NULL                        -- messages that were put in
);

-- name: create_segment
-- Keeps only which messages a run of three characters is in: no text, no positions, no sizes.
-- https://sqlite.org/fts5.html#the_trigram_tokenizer
CREATE VIRTUAL TABLE IF NOT EXISTS grams_{segment} USING fts5 (
    text,
    owner,                                             -- three characters that stand for the user
    content = '',
    detail = none,
    columnsize = 0,
    tokenize = 'trigram case_sensitive 1'
);

-- name: create_vocabulary
-- The runs of a segment in their order, so that those that begin alike are found.
CREATE VIRTUAL TABLE IF NOT EXISTS vocabulary_{segment} USING fts5vocab (grams_{segment}, 'row');

-- name: drop_vocabulary
DROP TABLE IF EXISTS vocabulary_{segment};

-- name: drop_segment
DROP TABLE IF EXISTS grams_{segment};

-- name: forget_segment
DELETE FROM segments
WHERE segment = :segment;

-- name: list_segments
SELECT segment, indexed_no, indexed_id, documents
FROM segments
ORDER BY segment DESC;

-- name: insert_grams
INSERT INTO grams_{segment} (rowid, text, owner)
VALUES (:message_no, :text, :owner);

-- name: upsert_segment
INSERT INTO segments (segment, indexed_no, indexed_id, documents)
VALUES (:segment, :indexed_no, :indexed_id, :documents)
ON CONFLICT (segment) DO UPDATE
SET indexed_no = excluded.indexed_no,
    indexed_id = excluded.indexed_id,
    documents = segments.documents + excluded.documents;

-- name: newest_message_no
SELECT MAX(message_no)
FROM main.messages
WHERE message_no < :end;

-- name: message_id_of
SELECT message_id
FROM main.messages
WHERE message_no = :message_no;

-- name: list_deleted_users
SELECT digest
FROM main.tombstones
WHERE kind = 'user';

-- name: list_of_term
SELECT rowid
FROM grams_{segment}
WHERE grams_{segment} MATCH :term;

-- name: list_vocabulary
-- The runs that begin with what is given, up to so many.
SELECT term
FROM search.vocabulary_{segment}
WHERE term >= :first
  AND term < :end
LIMIT :limit;

-- name: sample_messages
-- How many of evenly spaced numbers are messages still: to count them all would be to read the whole table.
WITH RECURSIVE probe (message_no) AS (
    SELECT :first
    UNION ALL
    SELECT message_no + :step
    FROM probe
    WHERE message_no + :step <= :last
)
SELECT COUNT(*), COUNT(m.message_no)
FROM probe
LEFT JOIN main.messages AS m ON m.message_no = probe.message_no;

-- name: list_unindexed
SELECT m.message_no, m.message_id, s.user_id,
       CASE WHEN length(CAST(m.content AS BLOB)) <= :whole THEN m.content
            ELSE length(CAST(m.content AS BLOB)) END
FROM main.messages AS m
JOIN main.sessions AS s ON s.session_no = m.session_no
WHERE m.message_no > :after
  AND m.message_no < :end
ORDER BY m.message_no
LIMIT :limit;

-- name: first_message_no_since
-- Below it nothing is as new. The plus keeps SQLite from looking through the table instead of the index of times.
SELECT MIN(+message_no)
FROM main.messages
WHERE created_at >= :since;

-- name: list_in_session
-- Candidates: all of one session, newest first; here and below without content where a filter leaves them out, so that
-- they can be counted, and with its size in place of the content where that is larger than :whole bytes.
SELECT m.message_no,
       CASE
           WHEN (:role IS NULL OR m.role = :role)
               AND (:model IS NULL OR m.model = :model)
               AND (:since IS NULL OR m.created_at >= :since)
               AND (:until IS NULL OR m.created_at < :until)
           THEN CASE WHEN length(CAST(m.content AS BLOB)) <= :whole THEN m.content
                     ELSE length(CAST(m.content AS BLOB)) END
       END
FROM main.messages AS m
WHERE m.session_id = :session_id
ORDER BY m.message_no DESC;

-- name: list_not_indexed
-- Candidates: what the index does not have yet, newest first.
SELECT m.message_no,
       CASE
           WHEN (:user_id IS NULL OR s.user_id = :user_id)
               AND (:role IS NULL OR m.role = :role)
               AND (:model IS NULL OR m.model = :model)
               AND (:since IS NULL OR m.created_at >= :since)
               AND (:until IS NULL OR m.created_at < :until)
           THEN CASE WHEN length(CAST(m.content AS BLOB)) <= :whole THEN m.content
                     ELSE length(CAST(m.content AS BLOB)) END
       END
FROM main.messages AS m
CROSS JOIN main.sessions AS s ON s.session_no = m.session_no
WHERE m.message_no > :after
  AND m.message_no < :end
ORDER BY m.message_no DESC;

-- name: list_indexed
-- Candidates: what has all grams of the query, newest first.
SELECT m.message_no,
       CASE
           WHEN (:user_id IS NULL OR s.user_id = :user_id)
               AND (:role IS NULL OR m.role = :role)
               AND (:model IS NULL OR m.model = :model)
               AND (:since IS NULL OR m.created_at >= :since)
               AND (:until IS NULL OR m.created_at < :until)
           THEN CASE WHEN length(CAST(m.content AS BLOB)) <= :whole THEN m.content
                     ELSE length(CAST(m.content AS BLOB)) END
       END
FROM search.grams_{segment}
CROSS JOIN main.messages AS m ON m.message_no = grams_{segment}.rowid
CROSS JOIN main.sessions AS s ON s.session_no = m.session_no
WHERE grams_{segment} MATCH :match
  AND grams_{segment}.rowid BETWEEN :first AND :indexed_no
ORDER BY grams_{segment}.rowid DESC;

-- name: get_hit
-- What is shown of a message that was found, but for its text.
SELECT m.session_id, m.message_id, p.message_id AS parent_id, e.exchange_id, m.role, m.model, m.tokens,
       COALESCE(m.status, 'completed') AS status, m.created_at
FROM main.messages AS m
LEFT JOIN main.messages AS p ON p.message_no = m.parent_no
LEFT JOIN main.exchanges AS e ON e.exchange_no = m.exchange_no
WHERE m.message_no = :message_no;
