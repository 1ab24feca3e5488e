-- name: upsert_user
-- Inserts the user if missing and updates the last activity, but at most once a minute to save writes.
INSERT INTO users (user_id, created_at, last_active)
VALUES (:user_id, :now, :now)
ON CONFLICT (user_id) DO UPDATE SET last_active = excluded.last_active
WHERE substr(users.last_active, 1, 16) < substr(excluded.last_active, 1, 16);

-- name: insert_user
INSERT INTO users (user_no, user_id, created_at, last_active)
VALUES (:user_no, :user_id, :created_at, :last_active);

-- name: touch_user
-- Updates an existing user's last activity, as upsert_user does.
UPDATE users
SET last_active = column2
FROM (VALUES (:user_id, :now)) AS seen
WHERE users.user_id = column1
  AND substr(users.last_active, 1, 16) < substr(column2, 1, 16);

-- name: count_sessions
-- Adds new sessions to the user's counts.
UPDATE users
SET session_count = session_count + column2,
    active_session_count = active_session_count + column3
FROM (VALUES (:user_id, :sessions, :active)) AS made
WHERE users.user_id = column1;

-- name: find_user_no
SELECT user_no
FROM users
WHERE user_id = :user_id;

-- name: get_user
SELECT user_id, username, session_count, active_session_count, created_at, last_active
FROM users
WHERE user_id = :user_id;

-- name: delete_user
-- Deletes its sessions, messages, exchanges and keys as well (ON DELETE CASCADE).
DELETE FROM users
WHERE user_id = :user_id;

-- name: delete_messages_of_user
-- Some of a user's messages, newest first, so that replies are deleted before or with their questions.
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
