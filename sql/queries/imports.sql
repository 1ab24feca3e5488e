-- name: import_user
-- Keeps an existing user; its dates are widened.
INSERT INTO users (user_id, username, created_at, last_active)
VALUES (:user_id, :username, :created_at, :last_active)
ON CONFLICT (user_id) DO UPDATE
SET username = COALESCE(users.username, excluded.username),
    created_at = CASE WHEN excluded.created_at < users.created_at THEN excluded.created_at ELSE users.created_at END,
    last_active = CASE WHEN excluded.last_active > users.last_active THEN excluded.last_active
                       ELSE users.last_active END;

-- name: import_session
-- Omits the external id if another session of the user has it.
INSERT INTO sessions (session_id, user_id, external_id, title, is_active, metadata, created_at, updated_at)
SELECT :session_id, :user_id,
       CASE WHEN EXISTS (SELECT 1 FROM sessions WHERE user_id = :user_id AND external_id = :external_id) THEN NULL
            ELSE :external_id END,
       :title, :is_active <> 0, :metadata, :created_at, :updated_at
WHERE NOT EXISTS (SELECT 1 FROM sessions WHERE session_id = :session_id);

-- name: import_blob
INSERT INTO blobs (digest, data)
VALUES (:digest, :data)
ON CONFLICT DO NOTHING;

-- name: set_exchange
-- Sets the exchange of a message that was imported before its exchange.
UPDATE messages
SET exchange_no = :exchange_no
WHERE message_no = :message_no
  AND exchange_no IS NULL;

-- name: set_root
-- Marks an imported message as the first of a conversation.
UPDATE messages
SET root_no = message_no
WHERE message_no = :message_no;

-- name: find_place
-- Number, depth and session of a message by its id.
SELECT message_no, depth, session_id
FROM messages
WHERE message_id = :message_id;

-- name: settle_session
-- Recomputes the counts after an import. The newest leaf is the import's if the import is at least as new.
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

-- name: find_exchange_session
SELECT session_no
FROM exchanges
WHERE exchange_no = :exchange_no;
