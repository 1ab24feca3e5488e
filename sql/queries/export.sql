-- name: export_users
-- Every user, or the one, or the one of a session; not the default user that every new database has.
SELECT user_id, username, created_at, last_active
FROM users AS u
WHERE (:user_id IS NULL OR user_id = :user_id)
  AND (:session_id IS NULL OR user_id = (SELECT s.user_id FROM sessions AS s WHERE s.session_id = :session_id))
  AND (session_count > 0 OR last_active > created_at OR user_id <> :default_user_id)
ORDER BY user_id;

-- name: export_blobs
SELECT digest, data
FROM blobs
WHERE (:user_id IS NULL AND :session_id IS NULL)
   OR digest IN (
       SELECT mb.digest
       FROM sessions AS s
       JOIN messages AS m ON m.session_id = s.session_id
       JOIN message_blobs AS mb ON mb.message_no = m.message_no
       WHERE (:user_id IS NULL OR s.user_id = :user_id)
         AND (:session_id IS NULL OR s.session_id = :session_id)
   )
ORDER BY digest;

-- name: export_sessions
SELECT s.session_id, s.user_id, s.external_id, s.title, s.is_active, s.metadata, s.created_at, s.updated_at,
       m.message_id AS leaf_id
FROM sessions AS s
LEFT JOIN messages AS m ON m.message_no = s.leaf_no
WHERE (:user_id IS NULL OR s.user_id = :user_id)
  AND (:session_id IS NULL OR s.session_id = :session_id)
ORDER BY s.session_id;

-- name: export_messages
-- A session's messages in the order they were stored: parents before what follows them.
SELECT m.message_no, m.message_id, m.session_id, p.message_id AS parent_id, lower(hex(m.chain_hash)) AS chain_hash,
       e.exchange_id, m.role, m.content, COALESCE(m.content_form, 'text') AS content_form, m.extra, m.wire,
       CASE WHEN m.choice = '' THEN '{"finish_reason":"stop"}' ELSE m.choice END AS choice, m.model, m.tokens,
       COALESCE(m.status, 'completed') AS status, m.metadata, m.created_at
FROM messages AS m
LEFT JOIN messages AS p ON p.message_no = m.parent_no
LEFT JOIN exchanges AS e ON e.exchange_no = m.exchange_no
WHERE m.session_id = :session_id
ORDER BY m.message_no;

-- name: export_message_blobs
SELECT digest
FROM message_blobs
WHERE message_no = :message_no
ORDER BY digest;

-- name: export_exchanges
SELECT e.exchange_id, s.session_id, s.user_id, m.message_id AS leaf_id, e.context, e.linked_count, p.endpoint,
       COALESCE(e.model, p.model) AS model, e.status, e.http_status, e.finish_reason, e.prompt_tokens,
       e.completion_tokens, e.total_tokens, e.reasoning_tokens, e.cached_tokens, e.time_to_first_token_ms, e.duration_ms,
       p.data AS parameters, e.metadata, COALESCE(e.request_id, e.exchange_id) AS request_id,
       CASE WHEN e.completion_id = '' THEN 'chatcmpl-' || e.exchange_id ELSE e.completion_id END AS completion_id,
       e.completion, e.completion_created, e.error, e.worker_id, e.created_at, e.completed_at, e.wire
FROM exchanges AS e
LEFT JOIN messages AS m ON m.message_no = e.leaf_no
JOIN parameters AS p ON p.parameters_no = e.parameters_no
JOIN sessions AS s ON s.session_no = e.session_no
WHERE s.session_id = :session_id
ORDER BY e.exchange_no;

-- name: find_message_id
SELECT message_id
FROM messages
WHERE message_no = :message_no;

-- name: list_leaves
-- The ends of a session's branches, oldest first.
SELECT m.message_no, m.message_id, m.role
FROM messages AS m
WHERE m.session_id = :session_id
  AND NOT EXISTS (SELECT 1 FROM messages AS c WHERE c.session_no = m.session_no AND c.parent_no = m.message_no)
ORDER BY m.message_no;

-- name: import_user
-- What is known already stays; the dates take in both.
INSERT INTO users (user_id, username, created_at, last_active)
VALUES (:user_id, :username, :created_at, :last_active)
ON CONFLICT (user_id) DO UPDATE
SET username = COALESCE(users.username, excluded.username),
    created_at = CASE WHEN excluded.created_at < users.created_at THEN excluded.created_at ELSE users.created_at END,
    last_active = CASE WHEN excluded.last_active > users.last_active THEN excluded.last_active
                       ELSE users.last_active END;

-- name: import_session
-- Without its client's id where another session of the user has that.
INSERT INTO sessions (session_id, user_id, external_id, title, is_active, metadata, created_at, updated_at)
SELECT :session_id, :user_id,
       CASE WHEN EXISTS (SELECT 1 FROM sessions WHERE user_id = :user_id AND external_id = :external_id) THEN NULL
            ELSE :external_id END,
       :title, :is_active, :metadata, :created_at, :updated_at
WHERE NOT EXISTS (SELECT 1 FROM sessions WHERE session_id = :session_id);

-- name: import_blob
INSERT INTO blobs (digest, data)
VALUES (:digest, :data)
ON CONFLICT DO NOTHING;

-- name: set_exchange
-- A message of an import whose exchange came after it.
UPDATE messages
SET exchange_no = :exchange_no
WHERE message_no = :message_no
  AND exchange_no IS NULL;

-- name: find_place
-- Number, depth and session of a message by its id.
SELECT message_no, depth, session_id
FROM messages
WHERE message_id = :message_id;

-- name: settle_session
-- After an import: counts what is there. The newest message is the import's where the import is as new.
UPDATE sessions
SET message_count = (SELECT COUNT(*) FROM messages AS m WHERE m.session_id = :session_id),
    tokens = (SELECT COALESCE(SUM(m.tokens), 0) FROM messages AS m WHERE m.session_id = :session_id),
    leaf_no = CASE
        WHEN leaf_no IS NULL OR updated_at <= :updated_at
        THEN COALESCE(
            (SELECT m.message_no FROM messages AS m WHERE m.message_id = :leaf_id AND m.session_id = :session_id),
            (SELECT MAX(m.message_no) FROM messages AS m WHERE m.session_id = :session_id)
        )
        ELSE leaf_no
    END,
    updated_at = CASE WHEN updated_at < :updated_at THEN :updated_at ELSE updated_at END
WHERE session_id = :session_id;
