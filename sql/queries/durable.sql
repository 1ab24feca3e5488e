-- name: get_boot_clock
SELECT boot_id, started_at
FROM boot_clock;

-- name: delete_boot_clock
DELETE FROM boot_clock;

-- name: insert_boot_clock
INSERT INTO boot_clock (boot_id, started_at)
VALUES (:boot_id, :started_at);

-- name: get_idempotency_key
SELECT request_digest, made_id
FROM idempotency_keys
WHERE digest = :digest;

-- name: insert_idempotency_key
INSERT INTO idempotency_keys (digest, request_digest, made_id, created_at)
VALUES (:digest, :request_digest, :made_id, :now);

-- name: delete_old_idempotency_keys
DELETE FROM idempotency_keys
WHERE created_at < :before;
