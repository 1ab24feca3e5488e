-- name: upsert_user
-- A user comes into being with the first thing it does, and is last active now; a minute more or less is not worth a
-- write.
INSERT INTO users (user_id, created_at, last_active)
VALUES (:user_id, :now, :now)
ON CONFLICT (user_id) DO UPDATE SET last_active = excluded.last_active
WHERE substr(users.last_active, 1, 16) < substr(excluded.last_active, 1, 16);

-- name: count_sessions
-- Sessions of a user were made.
UPDATE users
SET session_count = session_count + :sessions,
    active_session_count = active_session_count + :active
WHERE user_id = :user_id;

-- name: find_user_no
SELECT user_no
FROM users
WHERE user_id = :user_id;

-- name: get_user
SELECT user_id, username, session_count, active_session_count, created_at, last_active
FROM users
WHERE user_id = :user_id;

-- name: delete_user
-- Sessions, messages, exchanges and keys go with it (ON DELETE CASCADE).
DELETE FROM users
WHERE user_id = :user_id;

-- name: delete_messages_of_user
-- Some of a user's messages, newest first: what answers a message goes with it or before it.
DELETE FROM messages
WHERE message_no IN (
    SELECT m.message_no
    FROM messages AS m
    WHERE m.session_id = (
        SELECT s.session_id
        FROM sessions AS s
        WHERE s.user_id = :user_id
          AND EXISTS (SELECT 1 FROM messages AS o WHERE o.session_id = s.session_id)
        LIMIT 1
    )
    ORDER BY m.message_no DESC
    LIMIT :limit
);

-- name: delete_exchanges_of_user
DELETE FROM exchanges
WHERE exchange_id IN (
    SELECT exchange_id
    FROM exchanges
    WHERE user_no = (SELECT u.user_no FROM users AS u WHERE u.user_id = :user_id)
    LIMIT :limit
);

-- name: delete_empty_sessions_of_user
DELETE FROM sessions
WHERE session_id IN (
    SELECT s.session_id
    FROM sessions AS s
    WHERE s.user_id = :user_id
      AND NOT EXISTS (SELECT 1 FROM messages AS m WHERE m.session_id = s.session_id)
    LIMIT :limit
);
