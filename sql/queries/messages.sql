-- columns: message
m.message_id, m.session_id, p.message_id AS parent_id, e.exchange_id, m.role, m.content,
       COALESCE(m.content_form, 'text') AS content_form, m.extra, m.wire,
       CASE WHEN m.choice = '' THEN '{"finish_reason":"stop"}' ELSE m.choice END AS choice, m.model, m.tokens,
       COALESCE(m.status, 'completed') AS status, m.metadata, m.created_at, m.message_no

-- columns: node
message_no, session_id, parent_no, depth, role, chain_hash, root_no

-- name: insert_message
INSERT INTO messages (message_no, message_id, session_id, session_no, parent_no, depth, chain_hash, root_no, exchange_no, role, content,
                      content_form, extra, wire, choice, model, tokens, status, metadata, created_at)
VALUES (:message_no, :message_id, :session_id, :session_no, :parent_no, :depth, :chain_hash, :root_no, :exchange_no, :role, :content,
        :content_form, :extra, :wire, :choice, :model, :tokens, :status, :metadata, :created_at);

-- name: adopt_reply
-- A later request may contain a reply that is not stored yet: its copy then becomes the reply. So does a given message.
UPDATE messages
SET exchange_no = :exchange_no,
    content = :content,
    content_form = :content_form,
    extra = :extra,
    wire = :wire,
    choice = :choice,
    model = :model,
    tokens = :tokens,
    status = :status
WHERE message_no = COALESCE(
    CAST(:message_no AS BIGINT),
    (
        SELECT MIN(message_no)
        FROM messages
        WHERE chain_hash = :chain_hash
          AND session_no = :session_no
          AND role = 'assistant'
          AND choice IS NULL
          AND exchange_no <> :exchange_no
    )
)
RETURNING message_no;

-- name: list_prefix
-- Finds the longest of the given prefixes of a conversation, newest session first, and whether anything follows it: one
-- index probe per prefix, longest first, stopping at the first match (a recursive query returns its rows first in,
-- first out: https://sqlite.org/lang_with.html#recursive_query_examples). Many conversations have the same beginning:
-- only the newest are examined. The parameter holds the chain hashes, 16 bytes each.
WITH RECURSIVE probe (position, hash) AS (
    SELECT 0, substr(:hashes, 1, 16)
    UNION ALL
    SELECT position + 1, substr(:hashes, 16 * (position + 1) + 1, 16)
    FROM probe
    WHERE 16 * (position + 1) < length(:hashes)
)
SELECT m.message_no, m.session_id,
       EXISTS (SELECT 1 FROM messages AS c WHERE c.session_no = m.session_no AND c.parent_no = m.message_no) AS goes_on
FROM messages AS m
WHERE m.chain_hash = (
    SELECT probe.hash
    FROM probe
    WHERE EXISTS (SELECT 1 FROM messages AS stored WHERE stored.chain_hash = probe.hash)
    LIMIT 1
)
ORDER BY m.session_no DESC, m.message_no DESC
LIMIT :limit;

-- name: get_node
-- The position of a message in its tree.
SELECT {node}
FROM messages
WHERE message_no = :message_no;

-- name: find_node_by_hash
-- A message of a session by its hash; if it was stored more than once, the newest one.
SELECT {node}
FROM messages
WHERE chain_hash = :chain_hash
  AND session_no = :session_no
ORDER BY message_no DESC
LIMIT 1;

-- name: list_ancestors
-- A message and its ancestors, nearest first.
WITH RECURSIVE path (message_no, parent_no, depth, role, chain_hash, root_no) AS (
    SELECT message_no, parent_no, depth, role, chain_hash, root_no
    FROM messages
    WHERE message_no = :message_no
    UNION ALL
    SELECT m.message_no, m.parent_no, m.depth, m.role, m.chain_hash, m.root_no
    FROM path
    JOIN messages AS m ON m.message_no = path.parent_no AND m.message_no < path.message_no
)
SELECT message_no, :session_id AS session_id, parent_no, depth, role, chain_hash, root_no
FROM path
LIMIT :limit;

-- name: list_path
-- A message and its ancestors, nearest first, without their contents.
WITH RECURSIVE path (message_no, parent_no, role, exchange_no) AS (
    SELECT message_no, parent_no, role, exchange_no
    FROM messages
    WHERE message_no = :message_no
    UNION ALL
    SELECT m.message_no, m.parent_no, m.role, m.exchange_no
    FROM path
    JOIN messages AS m ON m.message_no = path.parent_no AND m.message_no < path.message_no
)
SELECT message_no, role, exchange_no
FROM path
LIMIT :limit;

-- name: newest_leaf_below
-- The newest leaf below a message.
WITH RECURSIVE descent (message_no) AS (
    SELECT CAST(:message_no AS BIGINT)
    UNION ALL
    SELECT (
        SELECT MAX(m.message_no) FROM messages AS m
        WHERE m.session_no = :session_no AND m.parent_no = descent.message_no AND m.message_no > descent.message_no
    )
    FROM descent
    WHERE descent.message_no IS NOT NULL
)
SELECT MAX(message_no)
FROM descent;

-- name: newest_message_no
SELECT MAX(message_no)
FROM messages
WHERE session_id = :session_id;

-- name: get_message
-- One message with everything that the routes return, including its parent's id and the number of its alternatives
-- (itself included). System messages are stored in the tree where they changed, so a reply below one is an alternative
-- to a reply beside it: alternatives have the same nearest ancestor that is not a system message.
SELECT {message},
       (
           WITH RECURSIVE
           above (message_no) AS (
               SELECT CASE WHEN m.parent_no < m.message_no THEN m.parent_no ELSE 0 END
               UNION ALL
               SELECT CASE WHEN a.parent_no < a.message_no THEN a.parent_no ELSE 0 END
               FROM above
               JOIN messages AS a ON a.message_no = above.message_no
               WHERE a.role IN ('system', 'developer')
                 AND m.role NOT IN ('system', 'developer')
           ),
           beside (message_no, is_linked) AS (
               SELECT s.message_no, s.role NOT IN ('system', 'developer')
               FROM messages AS s
               WHERE s.session_no = m.session_no
                 AND s.parent_no IS NOT DISTINCT FROM (SELECT NULLIF(MIN(message_no), 0) FROM above)
               UNION ALL
               SELECT s.message_no, s.role NOT IN ('system', 'developer')
               FROM beside
               JOIN messages AS s ON s.session_no = m.session_no AND s.parent_no = beside.message_no AND s.message_no > beside.message_no
               WHERE NOT beside.is_linked
                 AND m.role NOT IN ('system', 'developer')
           )
           SELECT COUNT(*)
           FROM beside
           WHERE is_linked = (m.role NOT IN ('system', 'developer'))
       ) AS siblings
FROM messages AS m
LEFT JOIN messages AS p ON p.message_no = m.parent_no
LEFT JOIN exchanges AS e ON e.exchange_no = m.exchange_no
WHERE m.message_no = :message_no;

-- name: find_message_no
SELECT message_no
FROM messages
WHERE message_id = :message_id
  AND session_id = :session_id;

-- name: find_message_no_before
-- The position of a deleted message.
SELECT MAX(message_no)
FROM messages
WHERE session_no = :session_no
  AND message_id < :message_id;

-- name: list_message_blobs
-- The blobs of a message.
SELECT b.digest, b.data
FROM message_blobs AS mb
JOIN blobs AS b ON b.digest = mb.digest
WHERE mb.message_no = :message_no;

-- name: insert_blob
INSERT INTO blobs (digest, data)
VALUES (:digest, :data)
ON CONFLICT DO NOTHING;

-- name: insert_message_blob
INSERT INTO message_blobs (message_no, digest)
VALUES (:message_no, :digest)
ON CONFLICT DO NOTHING;

-- name: list_replies
-- The replies of an exchange, ordered by choice: children of its request's last message.
SELECT message_no
FROM messages
WHERE session_no = :session_no
  AND parent_no IS NOT DISTINCT FROM :leaf_no
  AND exchange_no = :exchange_no
  AND choice IS NOT NULL
ORDER BY message_no;

-- name: delete_message_at_end
-- Deletes a message that has no children and is not the last message of any request.
DELETE FROM messages
WHERE message_no = :message_no
  AND NOT EXISTS (SELECT 1 FROM messages AS c WHERE c.session_no = :session_no AND c.parent_no = :message_no)
  AND NOT EXISTS (SELECT 1 FROM exchanges AS e WHERE e.session_no = :session_no AND e.leaf_no = :message_no)
RETURNING tokens;

-- name: find_item_no
-- The message of an item's id, or the last one before it, because a list may continue after a deleted item.
SELECT MAX(message_no)
FROM messages
WHERE session_id = :session_id
  AND message_id <= :message_id;

-- name: reparent
-- Moves the children of a message to another parent.
UPDATE messages
SET parent_no = :parent_no
WHERE session_no = (SELECT s.session_no FROM sessions AS s WHERE s.session_id = :session_id)
  AND parent_no = :message_no;

-- name: delete_message
DELETE FROM messages
WHERE message_no = :message_no
RETURNING tokens;

-- name: update_message
-- Sets all columns of a message's content.
UPDATE messages
SET content = :content,
    content_form = :content_form,
    extra = :extra,
    wire = :wire
WHERE message_no = :message_no;
