-- name: list_miscounted_users
SELECT user_id
FROM users AS u
WHERE session_count <> (SELECT COUNT(*) FROM sessions AS s WHERE s.user_id = u.user_id)
   OR active_session_count <> (SELECT COUNT(*) FROM sessions AS s WHERE s.user_id = u.user_id AND s.is_active);

-- name: list_miscounted_sessions
-- Sessions with wrong counts, or with a newest leaf of another session.
SELECT s.session_id
FROM sessions AS s
LEFT JOIN (
    SELECT session_id, COUNT(*) AS messages, SUM(tokens) AS tokens
    FROM messages
    GROUP BY session_id
) AS counted ON counted.session_id = s.session_id
WHERE s.message_count <> COALESCE(counted.messages, 0)
   OR s.tokens <> COALESCE(counted.tokens, 0)
   OR (s.leaf_no IS NULL) <> (counted.messages IS NULL)
   OR (s.leaf_no IS NOT NULL
       AND NOT EXISTS (SELECT 1 FROM messages AS m WHERE m.message_no = s.leaf_no AND m.session_id = s.session_id));

-- name: list_misplaced_messages
-- Messages whose parent is in another session, or not exactly one level above.
SELECT m.message_id
FROM messages AS m
LEFT JOIN messages AS p ON p.message_no = m.parent_no
WHERE m.depth <> COALESCE(p.depth + 1, 0)
   OR (p.message_no IS NOT NULL AND p.session_id <> m.session_id);

-- name: list_misplaced_exchanges
-- Exchanges whose last message is in another session, or whose user does not own the session.
SELECT e.exchange_id
FROM exchanges AS e
JOIN sessions AS s ON s.session_no = e.session_no
LEFT JOIN users AS u ON u.user_no = e.user_no
WHERE s.user_id IS DISTINCT FROM u.user_id
   OR (e.leaf_no IS NOT NULL
       AND NOT EXISTS (SELECT 1 FROM messages AS m WHERE m.message_no = e.leaf_no AND m.session_no = e.session_no));

-- name: list_exchanges_of_workers
-- Every exchange in progress with the process that streams it.
SELECT exchange_id, worker_id
FROM exchanges
WHERE status = 'in_progress';

-- name: list_stray_fragments
-- Fragments of replies that have ended.
SELECT DISTINCT e.exchange_id
FROM exchange_fragments AS f
JOIN exchanges AS e ON e.exchange_no = f.exchange_no
WHERE e.status <> 'in_progress';

-- name: list_stray_blobs
SELECT b.digest
FROM blobs AS b
WHERE NOT EXISTS (SELECT 1 FROM message_blobs AS mb WHERE mb.digest = b.digest);
