-- columns: api_key
key_id, user_id, name, key_hash, hint, is_admin, requests_per_minute, tokens_per_day, created_at, expires_at,
       revoked_at, last_used_at

-- name: insert_key
INSERT INTO api_keys (key_id, user_id, name, key_hash, hint, is_admin, requests_per_minute, tokens_per_day, created_at,
                      expires_at)
VALUES (:key_id, :user_id, :name, :key_hash, :hint, :is_admin, :requests_per_minute, :tokens_per_day, :created_at,
        :expires_at);

-- name: find_key
-- By its hash alone: the key itself is not here.
SELECT {api_key}
FROM api_keys
WHERE key_hash = :key_hash;

-- name: list_keys
SELECT {api_key}
FROM api_keys
WHERE (CAST(:user_id AS TEXT) IS NULL OR user_id = :user_id)
ORDER BY key_id;

-- name: key_exists
-- Whether there was ever a key: revoking the last one must not open the door to everyone.
SELECT EXISTS (SELECT 1 FROM api_keys);

-- name: revoke_key
-- By id, or by the first characters that are shown of it. A key is revoked once.
UPDATE api_keys
SET revoked_at = :now
WHERE (key_id = :key OR hint = :key)
  AND revoked_at IS NULL
RETURNING key_id;

-- name: revoke_keys_of_user
UPDATE api_keys
SET revoked_at = :now
WHERE user_id = :user_id
  AND revoked_at IS NULL;

-- name: touch_key
UPDATE api_keys
SET last_used_at = :used_at
WHERE key_id = :key_id
  AND (last_used_at IS NULL OR last_used_at < :used_at);

-- name: sum_tokens
-- What a user's recorded chats have used since a moment, which is given as the least identifier of that time.
SELECT COALESCE(SUM(total_tokens), 0)
FROM exchanges
WHERE user_no = (SELECT u.user_no FROM users AS u WHERE u.user_id = :user_id)
  AND exchange_id >= :since_id;
