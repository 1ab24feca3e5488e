-- name: insert_jump
-- Stores the jump of a message to its ancestor at a given depth, unless the tree has none.
INSERT INTO message_jumps (message_no, above_no)
SELECT column1, above_no
FROM (
    SELECT column1,
           (
               WITH RECURSIVE climb (message_no, parent_no, depth) AS (
                   SELECT message_no, parent_no, depth
                   FROM messages
                   WHERE message_no = column1
                   UNION ALL
                   SELECT m.message_no, m.parent_no, m.depth
                   FROM climb
                   JOIN messages AS m ON m.message_no = COALESCE(
                       (
                           SELECT j.above_no
                           FROM message_jumps AS j
                           JOIN messages AS a ON a.message_no = j.above_no
                           WHERE j.message_no = climb.message_no
                             AND a.depth >= column2
                       ),
                       climb.parent_no
                   )
                   WHERE climb.depth > column2
                     AND m.message_no < climb.message_no
               )
               SELECT message_no
               FROM climb
               WHERE depth = column2
           ) AS above_no
    FROM (VALUES (:message_no, :depth)) AS far
) AS found
WHERE above_no IS NOT NULL
ON CONFLICT DO NOTHING;

-- name: delete_jumps
-- Deletes the jumps of messages that are about to be moved.
DELETE FROM message_jumps
WHERE message_no IN (SELECT column1 FROM (VALUES (:message_no)) AS moved);

-- name: find_ancestor
-- The ancestor of a message at a given depth; if the tree is broken, the last one found on the way.
WITH RECURSIVE climb (message_no, parent_no, depth) AS (
    SELECT message_no, parent_no, depth
    FROM messages
    WHERE message_no = :message_no
    UNION ALL
    SELECT m.message_no, m.parent_no, m.depth
    FROM climb
    JOIN messages AS m ON m.message_no = COALESCE(
        (
            SELECT j.above_no
            FROM message_jumps AS j
            JOIN messages AS a ON a.message_no = j.above_no
            WHERE j.message_no = climb.message_no
              AND a.depth >= :depth
        ),
        climb.parent_no
    )
    WHERE climb.depth > :depth
      AND m.message_no < climb.message_no
)
SELECT message_no, depth
FROM climb
ORDER BY message_no
LIMIT 1;

-- name: find_ancestor_before
-- The nearest ancestor with a number below a given one; otherwise the first message of the branch.
WITH RECURSIVE climb (message_no, parent_no, depth) AS (
    SELECT message_no, parent_no, depth
    FROM messages
    WHERE message_no = :message_no
    UNION ALL
    SELECT m.message_no, m.parent_no, m.depth
    FROM climb
    JOIN messages AS m ON m.message_no = COALESCE(
        (SELECT j.above_no FROM message_jumps AS j WHERE j.message_no = climb.message_no AND j.above_no >= :before),
        climb.parent_no
    )
    WHERE climb.message_no >= :before
      AND m.message_no < climb.message_no
)
SELECT message_no, depth
FROM climb
ORDER BY message_no
LIMIT 1;

-- name: find_exchange_above
-- The last exchange of a branch, and the depth of its last message there. Nothing is traversed if the session has no
-- exchanges.
WITH RECURSIVE climb (message_no, parent_no, depth, exchange_no) AS (
    SELECT message_no, parent_no, depth, exchange_no
    FROM messages
    WHERE message_no = :message_no
      AND EXISTS (SELECT 1 FROM exchanges AS x WHERE x.session_no = :session_no)
    UNION ALL
    SELECT m.message_no, m.parent_no, m.depth, m.exchange_no
    FROM climb
    JOIN messages AS m ON m.message_no = climb.parent_no AND m.message_no < climb.message_no
    WHERE NOT EXISTS (SELECT 1 FROM exchanges AS s WHERE s.exchange_no = climb.exchange_no)
)
SELECT climb.depth, (SELECT e.exchange_id FROM exchanges AS e WHERE e.exchange_no = climb.exchange_no) AS exchange_id
FROM climb
ORDER BY climb.message_no
LIMIT 1;

-- name: list_system_messages
-- The newest system messages of a session up to a message, on any branch.
SELECT message_no, depth
FROM messages
WHERE session_no = :session_no
  AND role IN ('system', 'developer')
  AND message_no <= :message_no
ORDER BY message_no DESC
LIMIT :limit;
