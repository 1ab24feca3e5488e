-- name: insert_fragment
-- Does nothing if the exchange has ended, or if the fragment is already stored: it may be a replay. An assumed end counts
-- as none: recovery adds what comes late. If the exchange is missing, NOT NULL rejects the fragment, which then goes to
-- the dead-letter file like its exchange.
INSERT INTO exchange_fragments (exchange_no, sequence, data)
SELECT e.exchange_no, column2, column3
FROM (VALUES (:exchange_id, :sequence, :data)) AS fragment
LEFT JOIN exchanges AS e ON e.exchange_id = column1
WHERE e.exchange_id IS NULL
   OR e.status = 'in_progress'
   OR (e.status = 'incomplete' AND e.worker_id IS NOT NULL)
ON CONFLICT DO NOTHING;

-- name: list_fragments
SELECT sequence, data
FROM exchange_fragments
WHERE exchange_no = (SELECT e.exchange_no FROM exchanges AS e WHERE e.exchange_id = :exchange_id)
ORDER BY sequence;

-- name: list_fragment_range
-- The fragments of a reply from one position up to another.
SELECT data
FROM exchange_fragments
WHERE exchange_no = (SELECT e.exchange_no FROM exchanges AS e WHERE e.exchange_id = :exchange_id)
  AND sequence >= :start
  AND sequence < :stop
ORDER BY sequence;

-- name: delete_fragments
-- Only of exchanges that have ended.
DELETE FROM exchange_fragments
WHERE exchange_no IN (
    SELECT e.exchange_no
    FROM (VALUES (:exchange_id)) AS ended
    CROSS JOIN exchanges AS e
    WHERE e.exchange_id = column1
      AND e.status <> 'in_progress'
);

-- name: delete_stray_fragments
-- Of all exchanges that have ended, in case their process died before deleting them. Those of responses are kept a
-- while.
DELETE FROM exchange_fragments
WHERE exchange_no IN (
    SELECT f.exchange_no
    FROM exchange_fragments AS f
    JOIN exchanges AS e ON e.exchange_no = f.exchange_no
    LEFT JOIN parameters AS p ON p.parameters_no = e.parameters_no
    WHERE e.status <> 'in_progress'
      AND (COALESCE(p.endpoint, '') <> '/v1/responses' OR e.created_at < :before)
);
