-- name: insert_exchange
INSERT INTO exchanges (exchange_id, session_id, user_id, leaf_no, context, linked_count, endpoint, model, status, http_status,
                       finish_reason, prompt_tokens, completion_tokens, total_tokens, reasoning_tokens, cached_tokens,
                       time_to_first_token_ms, duration_ms, parameters, parameters_digest, metadata, request_id,
                       completion_id, completion, error, worker_id, created_at, completed_at)
VALUES (:exchange_id, :session_id, :user_id, :leaf_no, :context, :linked_count, :endpoint, :model, :status, :http_status,
        :finish_reason, :prompt_tokens, :completion_tokens, :total_tokens, :reasoning_tokens, :cached_tokens,
        :time_to_first_token_ms, :duration_ms, :parameters, :parameters_digest, :metadata, :request_id,
        :completion_id, :completion, :error, :worker_id, :created_at, :completed_at)
ON CONFLICT DO NOTHING;

-- name: insert_parameters
INSERT INTO shared_parameters (digest, data)
VALUES (:digest, :data)
ON CONFLICT DO NOTHING;

-- name: finish_exchange
-- Its outcome, once: an exchange that has ended is never touched again.
UPDATE exchanges
SET status = :status,
    model = :model,
    http_status = :http_status,
    finish_reason = :finish_reason,
    prompt_tokens = :prompt_tokens,
    completion_tokens = :completion_tokens,
    total_tokens = :total_tokens,
    reasoning_tokens = :reasoning_tokens,
    cached_tokens = :cached_tokens,
    time_to_first_token_ms = :time_to_first_token_ms,
    duration_ms = :duration_ms,
    completion_id = :completion_id,
    completion = :completion,
    error = :error,
    worker_id = NULL,
    completed_at = :completed_at
WHERE exchange_id = :exchange_id
  AND status = 'in_progress';

-- name: get_exchange
SELECT exchange_id, session_id, user_id, leaf_no, context, linked_count, endpoint, model, status, http_status, finish_reason,
       prompt_tokens, completion_tokens, total_tokens, reasoning_tokens, cached_tokens, time_to_first_token_ms,
       duration_ms, COALESCE((SELECT data FROM shared_parameters WHERE digest = parameters_digest), parameters),
       metadata, request_id, completion_id, completion, error, worker_id, created_at, completed_at
FROM exchanges
WHERE exchange_id = :exchange_id;

-- name: list_exchanges
-- One page of a session's exchanges, oldest first.
SELECT exchange_id, session_id, user_id, leaf_no, context, linked_count, endpoint, model, status, http_status, finish_reason,
       prompt_tokens, completion_tokens, total_tokens, reasoning_tokens, cached_tokens, time_to_first_token_ms,
       duration_ms, COALESCE((SELECT data FROM shared_parameters WHERE digest = parameters_digest), parameters),
       metadata, request_id, completion_id, completion, error, worker_id, created_at, completed_at
FROM exchanges
WHERE session_id = :session_id
  AND (:after IS NULL OR exchange_id > :after)
ORDER BY exchange_id
LIMIT :limit OFFSET :offset;

-- name: count_exchanges
SELECT COUNT(*)
FROM exchanges
WHERE session_id = :session_id;

-- name: list_workers_in_progress
-- The processes that have exchanges in progress, some of which may be gone.
SELECT DISTINCT worker_id
FROM exchanges
WHERE status = 'in_progress';

-- name: list_exchanges_in_progress
-- What a process left behind.
SELECT exchange_id
FROM exchanges
WHERE status = 'in_progress'
  AND worker_id = :worker_id;

-- name: insert_fragment
-- Nothing happens where the exchange has ended, or was deleted, or the piece is there already: it may be replayed.
INSERT INTO exchange_fragments (exchange_id, sequence, data)
SELECT exchange_id, :sequence, :data
FROM exchanges
WHERE exchange_id = :exchange_id
  AND status = 'in_progress'
ON CONFLICT DO NOTHING;

-- name: list_fragments
SELECT data
FROM exchange_fragments
WHERE exchange_id = :exchange_id
ORDER BY sequence;

-- name: delete_fragments
DELETE FROM exchange_fragments
WHERE exchange_id = :exchange_id;

-- name: find_stored_exchange
-- The exchange of a user that upstream's id names: the newest, since a client may use a request id again.
SELECT exchange_id
FROM exchanges
WHERE user_id = :user_id
  AND completion_id = :completion_id
  AND status IN ('completed', 'incomplete')
ORDER BY created_at DESC, exchange_id DESC
LIMIT 1;

-- name: find_stored_exchange_of_anyone
-- The same where no key and no header says whose: one probe of the index a user.
SELECT e.exchange_id
FROM users AS u
CROSS JOIN exchanges AS e
WHERE e.user_id = u.user_id
  AND e.completion_id = :completion_id
  AND e.status IN ('completed', 'incomplete')
ORDER BY e.created_at DESC, e.exchange_id DESC
LIMIT 1;

-- name: scan_exchanges_of_user
-- The next exchanges of a user after one, oldest first, by what a list of completions is filtered by.
SELECT exchange_id, status, model, metadata
FROM exchanges
WHERE user_id = :user_id
  AND exchange_id > :after
ORDER BY exchange_id
LIMIT :limit;

-- name: scan_exchanges_of_user_newest_first
SELECT exchange_id, status, model, metadata
FROM exchanges
WHERE user_id = :user_id
  AND exchange_id < :after
ORDER BY exchange_id DESC
LIMIT :limit;

-- name: scan_exchanges_of_session
-- The same within a session.
SELECT exchange_id, status, model, metadata
FROM exchanges
WHERE session_id = :session_id
  AND exchange_id > :after
ORDER BY exchange_id
LIMIT :limit;

-- name: scan_exchanges_of_session_newest_first
SELECT exchange_id, status, model, metadata
FROM exchanges
WHERE session_id = :session_id
  AND exchange_id < :after
ORDER BY exchange_id DESC
LIMIT :limit;

-- name: update_exchange_metadata
UPDATE exchanges
SET metadata = :metadata
WHERE exchange_id = :exchange_id;

-- name: delete_exchange
DELETE FROM exchanges
WHERE exchange_id = :exchange_id;

-- name: move_requests
-- The requests that end with a message end with another.
UPDATE exchanges
SET leaf_no = :parent_no
WHERE session_id = :session_id
  AND leaf_no = :message_no;

-- name: list_contexts
-- The system messages of a session's requests.
SELECT exchange_id, context
FROM exchanges
WHERE session_id = :session_id
  AND context IS NOT NULL;

-- name: update_context
UPDATE exchanges
SET context = :context
WHERE exchange_id = :exchange_id;
