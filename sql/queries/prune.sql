-- name: list_old_sessions
-- Sessions without activity since a point in time, least recently active first. Two queries, so that the index is used.
SELECT session_id
FROM sessions
WHERE is_active = :is_active
  AND updated_at < :before
ORDER BY updated_at
LIMIT :limit;

-- name: count_old_sessions
SELECT COUNT(*) AS sessions, CAST(COALESCE(SUM(message_count), 0) AS BIGINT) AS messages
FROM sessions
WHERE updated_at < :before;

-- name: count_rows_up_to
-- The numbers of messages and exchanges of a session; counting stops at the limit.
SELECT (
    SELECT COUNT(*)
    FROM (SELECT m.message_no FROM messages AS m WHERE m.session_id = :session_id LIMIT :most) AS some_messages
) AS messages, (
    SELECT COUNT(*)
    FROM (
        SELECT e.exchange_id
        FROM exchanges AS e
        WHERE e.session_no = (SELECT s.session_no FROM sessions AS s WHERE s.session_id = :session_id)
        LIMIT :most
    ) AS some_exchanges
) AS exchanges;

-- name: delete_newest_messages
-- Children have higher numbers than their parents, so no other rows are deleted by cascade.
DELETE FROM messages
WHERE message_no IN (
    SELECT m.message_no
    FROM messages AS m
    WHERE m.session_id = :session_id
    ORDER BY m.message_no DESC
    LIMIT :limit
)
RETURNING tokens;

-- name: delete_newest_exchanges
DELETE FROM exchanges
WHERE exchange_no IN (
    SELECT e.exchange_no
    FROM exchanges AS e
    WHERE e.session_no = (SELECT s.session_no FROM sessions AS s WHERE s.session_id = :session_id)
    ORDER BY e.exchange_no DESC
    LIMIT :limit
);

-- name: shorten_session
-- Subtracts deleted newest messages from the counts. The time of the last activity stays.
UPDATE sessions
SET message_count = message_count - :messages,
    tokens = tokens - :tokens,
    leaf_no = (SELECT MAX(m.message_no) FROM messages AS m WHERE m.session_id = :session_id)
WHERE session_id = :session_id;
