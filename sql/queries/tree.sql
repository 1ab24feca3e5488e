-- name: find_prefix_in_session
-- The longest of the given prefixes in one session: its position, its message, its conversation, and whether any
-- conversation of the session is displayed below another.
WITH RECURSIVE probe (position, hash) AS (
    SELECT 0, substr(:hashes, 1, 16)
    UNION ALL
    SELECT position + 1, substr(:hashes, 16 * (position + 1) + 1, 16)
    FROM probe
    WHERE 16 * (position + 1) < length(:hashes)
)
SELECT found.position, found.message_no, m.depth, m.root_no,
       EXISTS (
           SELECT 1
           FROM messages AS d
           WHERE d.session_no = :session_no
             AND d.root_no = d.message_no
             AND d.parent_no IS NOT NULL
       ) AS has_detached
FROM (
    SELECT position, message_no
    FROM (
        SELECT probe.position,
               (
                   SELECT MAX(m.message_no)
                   FROM messages AS m
                   WHERE m.chain_hash = probe.hash
                     AND m.session_no = :session_no
               ) AS message_no
        FROM probe
    ) AS probed
    WHERE message_no IS NOT NULL
    LIMIT 1
) AS found
JOIN messages AS m ON m.message_no = found.message_no;

-- name: has_children
SELECT EXISTS (
    SELECT 1
    FROM messages AS c
    WHERE c.session_no = :session_no
      AND c.parent_no = :message_no
) AS has_children;

-- name: has_detached
SELECT EXISTS (
    SELECT 1
    FROM messages AS d
    WHERE d.session_no = :session_no
      AND d.root_no = d.message_no
      AND d.parent_no IS NOT NULL
) AS has_detached;

-- name: list_detached
-- The newest conversations that are displayed below a message of another one.
SELECT message_no
FROM messages
WHERE session_no = :session_no
  AND root_no = message_no
  AND parent_no IS NOT NULL
ORDER BY message_no DESC
LIMIT :limit;

-- name: list_subtree
-- A message and its descendants, unordered.
WITH RECURSIVE below (message_no) AS (
    SELECT CAST(:message_no AS BIGINT)
    UNION ALL
    SELECT m.message_no
    FROM below
    JOIN messages AS m ON m.session_no = :session_no AND m.parent_no = below.message_no AND m.message_no > below.message_no
)
SELECT message_no
FROM below
LIMIT :limit;

-- name: detach_from_parent
UPDATE messages
SET parent_no = NULL
WHERE message_no = :message_no;

-- name: raise_message
-- Reduces the depth of a message after an ancestor was removed.
UPDATE messages
SET depth = depth - column2
FROM (VALUES (:message_no, :levels)) AS raised
WHERE messages.message_no = column1;

-- name: raise_subtree
-- A message and its descendants, which move up by one level.
WITH RECURSIVE below (message_no) AS (
    SELECT CAST(:message_no AS BIGINT)
    UNION ALL
    SELECT m.message_no
    FROM below
    JOIN messages AS m ON m.session_no = (SELECT s.session_no FROM sessions AS s WHERE s.session_id = :session_id)
                      AND m.parent_no = below.message_no AND m.message_no > below.message_no
)
UPDATE messages
SET depth = depth - 1
WHERE message_no IN (SELECT message_no FROM below);

-- name: rechain_message
-- Sets the chain hash and root of a message that turned out to be part of a conversation.
UPDATE messages
SET chain_hash = column2,
    root_no = column3
FROM (VALUES (:message_no, :chain_hash, :root_no)) AS known
WHERE messages.message_no = column1;

-- name: list_newest_ends
-- The last messages of the conversations that a session's newest messages belong to. A conversation displayed below
-- such a message is ignored.
SELECT m.message_no
FROM (
    SELECT message_no, session_no
    FROM messages
    WHERE session_id = :session_id
    ORDER BY created_at DESC, message_no DESC
    LIMIT :among
) AS m
WHERE NOT EXISTS (
    SELECT 1
    FROM messages AS c
    WHERE c.session_no = m.session_no
      AND c.parent_no = m.message_no
      AND (c.root_no IS NULL OR c.root_no <> c.message_no)
)
LIMIT :limit;

-- name: find_sent_context
-- The system messages of the request that a message belongs to; no row if it was posted manually.
SELECT e.context
FROM messages AS m
JOIN exchanges AS e ON e.exchange_no = m.exchange_no
WHERE m.message_no = :message_no;

-- name: get_text
SELECT content
FROM messages
WHERE message_no = :message_no;

-- name: list_first_texts
-- The first messages of a session.
SELECT role, content, exchange_no
FROM messages
WHERE session_id = :session_id
ORDER BY created_at, message_no
LIMIT :limit;

-- name: move_root
-- Sets another first message for a conversation whose first message was deleted.
UPDATE messages
SET root_no = (
    SELECT MIN(c.message_no)
    FROM messages AS c
    WHERE c.session_no = messages.session_no
      AND c.parent_no = :message_no
      AND c.root_no = :message_no
)
WHERE session_no = (SELECT s.session_no FROM sessions AS s WHERE s.session_id = :session_id)
  AND root_no = :message_no
  AND message_no <> :message_no;

-- name: update_title
UPDATE sessions
SET title = :title
WHERE session_id = :session_id;

-- name: count_leaves
-- Messages without children; reads only the index on parents.
SELECT s.message_count - (
    SELECT COUNT(DISTINCT m.parent_no)
    FROM messages AS m
    WHERE m.session_no = s.session_no
) AS leaves
FROM sessions AS s
WHERE s.session_no = :session_no;

-- name: page_leaves
-- One page of a session's leaves, newest first.
SELECT m.message_no, m.message_id, m.depth, m.root_no, m.created_at
FROM messages AS m
WHERE m.session_id = :session_id
  AND NOT EXISTS (SELECT 1 FROM messages AS c WHERE c.session_no = m.session_no AND c.parent_no = m.message_no)
ORDER BY m.created_at DESC, m.message_no DESC
LIMIT :limit OFFSET :offset;

-- name: find_first_root
-- The first message of a session's first conversation.
SELECT MIN(message_no) AS message_no
FROM messages
WHERE session_no = :session_no
  AND parent_no IS NULL
  AND root_no IS NULL;

-- name: get_beginning
-- The first message of a conversation and its first question; most conversations have at most one system message.
WITH RECURSIVE descent (message_no, role, steps) AS (
    SELECT message_no, role, 1
    FROM messages
    WHERE message_no = :message_no
    UNION ALL
    SELECT m.message_no, m.role, descent.steps + 1
    FROM descent
    JOIN messages AS m ON m.message_no = (
        SELECT MIN(c.message_no)
        FROM messages AS c
        WHERE c.session_no = :session_no
          AND c.parent_no = descent.message_no
          AND c.message_no > descent.message_no
    )
    WHERE descent.role <> 'user'
      AND descent.steps < 8
)
SELECT r.message_id, r.parent_no, (SELECT MIN(d.message_no) FROM descent AS d WHERE d.role = 'user') AS question_no
FROM messages AS r
WHERE r.message_no = :message_no;
