-- columns: api_key
key_id, user_id, name, key_hash, hint, is_admin, requests_per_minute, tokens_per_day, created_at, expires_at,
       revoked_at, last_used_at

-- name: insert_key
INSERT INTO api_keys (key_id, user_id, name, key_hash, hint, is_admin, requests_per_minute, tokens_per_day, created_at,
                      expires_at)
VALUES (:key_id, :user_id, :name, :key_hash, :hint, :is_admin, :requests_per_minute, :tokens_per_day, :created_at,
        :expires_at);

-- name: find_key
-- By hash only: the key itself is not stored.
SELECT {api_key}
FROM api_keys
WHERE key_hash = :key_hash;

-- name: list_keys
SELECT {api_key}
FROM api_keys
WHERE (CAST(:user_id AS TEXT) IS NULL OR user_id = :user_id)
ORDER BY key_id;

-- name: key_exists
-- Whether there is any key, revoked ones included.
SELECT EXISTS (SELECT 1 FROM api_keys);

-- name: keys_were_required
-- Whether keys were ever required: deleting the last one must not open the server to everyone.
SELECT EXISTS (SELECT 1 FROM doors WHERE name = 'keys') OR EXISTS (SELECT 1 FROM api_keys);

-- name: require_keys
INSERT INTO doors (name, locked_at)
VALUES ('keys', :now)
ON CONFLICT (name) DO NOTHING;

-- name: list_key_hashes
-- The hashes of keys created after a given one; they distinguish our keys from unknown ones.
SELECT key_id, key_hash
FROM api_keys
WHERE key_id > :after
ORDER BY key_id;

-- name: revoke_key
-- By id or displayed prefix. A key is revoked only once.
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

-- name: add_key_tokens
-- Adds tokens used with a key on a day.
INSERT INTO key_tokens (key_id, day, tokens)
SELECT key_id, :day, :tokens
FROM api_keys
WHERE key_id = :key_id
ON CONFLICT (key_id, day) DO UPDATE SET tokens = key_tokens.tokens + excluded.tokens;

-- name: get_key_tokens
SELECT tokens
FROM key_tokens
WHERE key_id = :key_id
  AND day = :day;

-- name: delete_old_key_tokens
DELETE FROM key_tokens
WHERE key_id = :key_id
  AND day < :day;
