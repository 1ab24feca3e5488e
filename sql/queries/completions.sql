-- columns: candidate
-- The columns that a list of completions is filtered by.
e.exchange_id, e.status, COALESCE(e.model, p.model) AS model, e.metadata

-- name: find_stored_exchange
-- A user's newest exchange with upstream's id: a client may use a request id again.
SELECT exchange_id
FROM exchanges
WHERE user_no = (SELECT u.user_no FROM users AS u WHERE u.user_id = :user_id)
  AND completion_id = :completion_id
  AND completion_id <> ''
  AND status IN ('completed', 'incomplete')
ORDER BY created_at DESC, exchange_id DESC
LIMIT 1;

-- name: find_stored_exchange_of_anyone
-- The same for any user: one index probe per user.
SELECT e.exchange_id
FROM users AS u
CROSS JOIN exchanges AS e
WHERE e.user_no = u.user_no
  AND e.completion_id = :completion_id
  AND e.completion_id <> ''
  AND e.status IN ('completed', 'incomplete')
ORDER BY e.created_at DESC, e.exchange_id DESC
LIMIT 1;

-- name: scan_exchanges_of_user
-- The next exchanges of a user after a given one, oldest first, with the filter columns.
SELECT {candidate}
FROM exchanges AS e
LEFT JOIN parameters AS p ON p.parameters_no = e.parameters_no
WHERE e.user_no = (SELECT u.user_no FROM users AS u WHERE u.user_id = :user_id)
  AND e.exchange_id > :after
ORDER BY e.exchange_id
LIMIT :limit;

-- name: scan_exchanges_of_user_newest_first
SELECT {candidate}
FROM exchanges AS e
LEFT JOIN parameters AS p ON p.parameters_no = e.parameters_no
WHERE e.user_no = (SELECT u.user_no FROM users AS u WHERE u.user_id = :user_id)
  AND e.exchange_id < :after
ORDER BY e.exchange_id DESC
LIMIT :limit;

-- name: scan_exchanges_of_session
-- The same within a session. All of its exchanges are sorted at each step: an index for that order would cost about 40
-- bytes per exchange; without it, a session of 60,000 exchanges takes 14 ms per step.
SELECT {candidate}
FROM exchanges AS e
LEFT JOIN parameters AS p ON p.parameters_no = e.parameters_no
WHERE e.session_no = (SELECT s.session_no FROM sessions AS s WHERE s.session_id = :session_id)
  AND e.exchange_id > :after
ORDER BY e.exchange_id
LIMIT :limit;

-- name: scan_exchanges_of_session_newest_first
SELECT {candidate}
FROM exchanges AS e
LEFT JOIN parameters AS p ON p.parameters_no = e.parameters_no
WHERE e.session_no = (SELECT s.session_no FROM sessions AS s WHERE s.session_id = :session_id)
  AND e.exchange_id < :after
ORDER BY e.exchange_id DESC
LIMIT :limit;
