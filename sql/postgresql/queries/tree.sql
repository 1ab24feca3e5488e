-- name: list_newest_ends
-- As on SQLite, which keeps the order of a subquery; PostgreSQL does not in every plan (a right anti join, since 16).
SELECT m.message_no
FROM (
    SELECT message_no, session_no, created_at
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
ORDER BY m.created_at DESC, m.message_no DESC
LIMIT :limit;
