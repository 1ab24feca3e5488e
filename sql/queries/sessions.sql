-- columns: session
session_no, session_id, user_id, external_id, title, is_active, metadata, leaf_no, message_count, tokens,
       created_at, updated_at

-- name: insert_session
-- Does nothing if the id or the external id already exists.
INSERT INTO sessions (session_no, session_id, user_id, external_id, title, metadata, leaf_no, message_count, tokens, created_at,
                      updated_at)
VALUES (:session_no, :session_id, :user_id, :external_id, :title, :metadata, :leaf_no, :message_count, :tokens, :created_at,
        :updated_at)
ON CONFLICT DO NOTHING;

-- name: find_session_id
-- A session by its own id or, second, by its external id. Without a user, its own id is searched in the whole database,
-- the external id only among the owner's sessions.
SELECT session_id
FROM sessions
WHERE (session_id = :id AND (CAST(:user_id AS TEXT) IS NULL OR user_id = :user_id))
   OR (external_id = :id AND user_id = COALESCE(:user_id, :owner_id))
ORDER BY CASE WHEN session_id = :id THEN 0 ELSE 1 END
LIMIT 1;

-- name: get_session
SELECT {session}
FROM sessions
WHERE session_id = :session_id
  AND (CAST(:user_id AS TEXT) IS NULL OR user_id = :user_id);

-- name: list_sessions
-- One page of a user's sessions, most recently active first, after the cursor.
SELECT {session}
FROM sessions
WHERE user_id = :user_id
  AND (NOT CAST(:active_only AS BOOLEAN) OR is_active)
  AND (CAST(:after_updated_at AS TEXT) IS NULL OR (updated_at, session_id) < (:after_updated_at, :after_session_id))
  AND (CAST(:since AS TEXT) IS NULL OR updated_at >= :since)
  AND (CAST(:until AS TEXT) IS NULL OR updated_at < :until)
ORDER BY updated_at DESC, session_id DESC
LIMIT :limit OFFSET :offset;

-- name: list_session_ids
-- The same list with ids only, for reading it while it changes.
SELECT session_id
FROM sessions
WHERE user_id = :user_id
  AND (CAST(:since AS TEXT) IS NULL OR updated_at >= :since)
  AND (CAST(:until AS TEXT) IS NULL OR updated_at < :until)
ORDER BY updated_at DESC, session_id DESC
LIMIT :limit OFFSET :offset;

-- name: count_sessions_between
SELECT COUNT(*)
FROM sessions
WHERE user_id = :user_id
  AND (CAST(:since AS TEXT) IS NULL OR updated_at >= :since)
  AND (CAST(:until AS TEXT) IS NULL OR updated_at < :until);

-- name: update_session
-- NULL parameters leave a column unchanged.
UPDATE sessions
SET title = COALESCE(:title, title),
    is_active = COALESCE(:is_active, is_active),
    metadata = COALESCE(:metadata, metadata),
    updated_at = :now
WHERE session_id = :session_id;

-- name: touch_session
-- Messages were stored: updates the counts, the newest leaf and the activity.
UPDATE sessions
SET message_count = message_count + column2,
    tokens = tokens + column3,
    leaf_no = COALESCE(column4, leaf_no),
    updated_at = column5
FROM (VALUES (:session_id, :messages, :tokens, :leaf_no, :now)) AS stored
WHERE sessions.session_id = column1;

-- name: delete_session
DELETE FROM sessions
WHERE session_id = :session_id;

-- name: shrink_session
-- Messages were deleted: updates the counts and the newest leaf; does not count as activity.
UPDATE sessions
SET message_count = message_count - :messages,
    tokens = tokens - :tokens,
    leaf_no = :leaf_no
WHERE session_id = :session_id;
