-- name: upsert_user
-- A user comes into being with the first thing it does, and is last active now; a minute more or less is not worth a
-- write.
INSERT INTO users (user_id, created_at, last_active)
VALUES (:user_id, :now, :now)
ON CONFLICT (user_id) DO UPDATE SET last_active = excluded.last_active
WHERE substr(users.last_active, 1, 16) < substr(excluded.last_active, 1, 16);

-- name: get_user
SELECT user_id, username, session_count, active_session_count, created_at, last_active
FROM users
WHERE user_id = :user_id;

-- name: delete_user
-- Sessions, messages, exchanges and keys go with it (ON DELETE CASCADE).
DELETE FROM users
WHERE user_id = :user_id;
