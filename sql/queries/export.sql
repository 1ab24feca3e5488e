-- name: export_users
-- All users, one user, or the owner of one session; without the default user, which every new database has.
SELECT user_id, username, created_at, last_active
FROM users AS u
WHERE (CAST(:user_id AS TEXT) IS NULL OR user_id = :user_id)
  AND (CAST(:session_id AS TEXT) IS NULL OR user_id = (SELECT s.user_id FROM sessions AS s WHERE s.session_id = :session_id))
  AND (session_count > 0 OR last_active > created_at OR user_id <> :default_user_id)
ORDER BY user_id;

-- name: export_blobs
SELECT digest, data
FROM blobs
WHERE (CAST(:user_id AS TEXT) IS NULL AND CAST(:session_id AS TEXT) IS NULL)
   OR digest IN (
       SELECT mb.digest
       FROM sessions AS s
       JOIN messages AS m ON m.session_id = s.session_id
       JOIN message_blobs AS mb ON mb.message_no = m.message_no
       WHERE (CAST(:user_id AS TEXT) IS NULL OR s.user_id = :user_id)
         AND (CAST(:session_id AS TEXT) IS NULL OR s.session_id = :session_id)
   )
ORDER BY digest;

-- name: export_sessions
SELECT s.session_id, s.user_id, s.external_id, s.title, s.is_active, s.metadata, s.created_at, s.updated_at,
       m.message_id AS leaf_id
FROM sessions AS s
LEFT JOIN messages AS m ON m.message_no = s.leaf_no
WHERE (CAST(:user_id AS TEXT) IS NULL OR s.user_id = :user_id)
  AND (CAST(:session_id AS TEXT) IS NULL OR s.session_id = :session_id)
ORDER BY s.session_id;

-- name: export_messages
-- A session's messages in storage order, so that parents come before their children.
SELECT {message}, m.chain_hash, r.message_id AS root_id
FROM messages AS m
LEFT JOIN messages AS p ON p.message_no = m.parent_no
LEFT JOIN messages AS r ON r.message_no = m.root_no
LEFT JOIN exchanges AS e ON e.exchange_no = m.exchange_no
WHERE m.session_id = :session_id
ORDER BY m.message_no;

-- name: export_message_blobs
SELECT digest
FROM message_blobs
WHERE message_no = :message_no
ORDER BY digest;

-- name: export_exchanges
SELECT {exchange}, m.message_id AS leaf_id
FROM exchanges AS e
LEFT JOIN messages AS m ON m.message_no = e.leaf_no
LEFT JOIN parameters AS p ON p.parameters_no = e.parameters_no
LEFT JOIN tools AS t ON t.tools_no = p.tools_no
JOIN sessions AS s ON s.session_no = e.session_no
WHERE s.session_id = :session_id
ORDER BY e.exchange_no;

-- name: find_message_id
SELECT message_id
FROM messages
WHERE message_no = :message_no;

-- name: list_leaves
-- The leaves of a session's branches, oldest first.
SELECT m.message_no, m.message_id, m.role
FROM messages AS m
WHERE m.session_id = :session_id
  AND NOT EXISTS (SELECT 1 FROM messages AS c WHERE c.session_no = m.session_no AND c.parent_no = m.message_no)
ORDER BY m.message_no;
