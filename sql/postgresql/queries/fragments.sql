-- name: delete_stray_fragments
-- Unlike on SQLite, the end of an exchange may have been assumed by another host, which does not have the spill file. Its
-- fragments are kept until its process is forgotten: more may come.
DELETE FROM exchange_fragments
WHERE exchange_no IN (
    SELECT f.exchange_no
    FROM exchange_fragments AS f
    JOIN exchanges AS e ON e.exchange_no = f.exchange_no
    LEFT JOIN parameters AS p ON p.parameters_no = e.parameters_no
    WHERE e.status <> 'in_progress'
      AND (COALESCE(p.endpoint, '') <> '/v1/responses' OR e.created_at < :before)
      AND NOT EXISTS (SELECT 1 FROM workers AS w WHERE w.worker_id = e.worker_id)
);

-- name: list_stray_fragments
SELECT DISTINCT e.exchange_id
FROM exchange_fragments AS f
JOIN exchanges AS e ON e.exchange_no = f.exchange_no
WHERE e.status <> 'in_progress'
  AND NOT EXISTS (SELECT 1 FROM workers AS w WHERE w.worker_id = e.worker_id);
