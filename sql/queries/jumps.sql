-- name: insert_jump
INSERT INTO message_jumps (message_no, above_no)
VALUES (:message_no, :above_no)
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
