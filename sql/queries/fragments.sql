-- name: insert_fragment
-- Nothing happens where the exchange has ended, or the piece is there already: it may be replayed. Where there is no
-- exchange, NOT NULL refuses the piece: it goes where the beginning of its exchange has gone.
INSERT INTO exchange_fragments (exchange_no, sequence, data)
SELECT e.exchange_no, column2, column3
FROM (VALUES (:exchange_id, :sequence, :data)) AS fragment
LEFT JOIN exchanges AS e ON e.exchange_id = column1
WHERE e.exchange_id IS NULL
   OR e.status = 'in_progress'
ON CONFLICT DO NOTHING;

-- name: list_fragments
SELECT data
FROM exchange_fragments
WHERE exchange_no = (SELECT e.exchange_no FROM exchanges AS e WHERE e.exchange_id = :exchange_id)
ORDER BY sequence;

-- name: list_fragment_range
-- The pieces of a reply from one on, up to another.
SELECT data
FROM exchange_fragments
WHERE exchange_no = (SELECT e.exchange_no FROM exchanges AS e WHERE e.exchange_id = :exchange_id)
  AND sequence >= :start
  AND sequence < :stop
ORDER BY sequence;

-- name: delete_fragments
-- Of exchanges that have ended.
DELETE FROM exchange_fragments
WHERE exchange_no IN (
    SELECT e.exchange_no
    FROM (VALUES (:exchange_id)) AS ended
    CROSS JOIN exchanges AS e
    WHERE e.exchange_id = column1
      AND e.status <> 'in_progress'
);

-- name: delete_stray_fragments
-- Of all exchanges that have ended: a process may be gone before it has deleted them. Those of responses stay for a while.
DELETE FROM exchange_fragments
WHERE exchange_no IN (
    SELECT f.exchange_no
    FROM exchange_fragments AS f
    JOIN exchanges AS e ON e.exchange_no = f.exchange_no
    LEFT JOIN parameters AS p ON p.parameters_no = e.parameters_no
    WHERE e.status <> 'in_progress'
      AND (COALESCE(p.endpoint, '') <> '/v1/responses' OR e.created_at < :before)
);
