-- name: upsert_tombstone
-- Keeps the time of the last deletion.
INSERT INTO tombstones (digest, kind, deleted_at)
VALUES (:digest, :kind, :now)
ON CONFLICT (digest) DO UPDATE SET deleted_at = excluded.deleted_at
WHERE tombstones.deleted_at < excluded.deleted_at;

-- name: newest_deletion
SELECT COALESCE(MAX(deleted_at), '')
FROM tombstones;

-- name: was_deleted
-- Whether the user or the session was deleted at that time or later.
SELECT EXISTS (
    SELECT 1
    FROM tombstones
    WHERE digest IN (:user_digest, :session_digest)
      AND deleted_at >= :asked_at
);

-- name: delete_old_tombstones
DELETE FROM tombstones
WHERE digest IN (
    SELECT digest
    FROM tombstones
    WHERE deleted_at < :before
    LIMIT :limit
);
