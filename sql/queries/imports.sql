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
       :title, :is_active <> 0, :metadata, :created_at, :updated_at
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

-- name: set_root
-- A message of an import that begins a conversation.
UPDATE messages
SET root_no = message_no
WHERE message_no = :message_no;

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

-- name: find_exchange_session
SELECT session_no
FROM exchanges
WHERE exchange_no = :exchange_no;
