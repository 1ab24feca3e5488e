-- name: list_workers_in_progress
-- The processes with exchanges in progress but without a recent heartbeat, by the server's clock.
SELECT DISTINCT e.worker_id
FROM exchanges AS e
WHERE e.status = 'in_progress'
  AND NOT EXISTS (
      SELECT 1
      FROM workers AS w
      WHERE w.worker_id = e.worker_id
        AND w.seen_at > clock_timestamp() - INTERVAL '15 seconds'
  );

-- name: beat
-- Stores a heartbeat; deletes processes without one for a day. The time is the server's, in Unix seconds.
WITH forgotten AS (
    DELETE FROM workers
    WHERE seen_at < clock_timestamp() - INTERVAL '1 day'
)
INSERT INTO workers (worker_id, host, seen_at)
VALUES (:worker_id, :host, clock_timestamp())
ON CONFLICT (worker_id) DO UPDATE SET seen_at = excluded.seen_at
RETURNING CAST(EXTRACT(EPOCH FROM seen_at) AS DOUBLE PRECISION) AS server_seconds;

-- name: forget_worker
DELETE FROM workers
WHERE worker_id = :worker_id;

-- name: count_living_workers
SELECT COUNT(*)
FROM workers
WHERE seen_at > clock_timestamp() - INTERVAL '15 seconds';

-- name: list_living_workers
SELECT worker_id
FROM workers
WHERE seen_at > clock_timestamp() - INTERVAL '15 seconds';
