-- columns: exchange
e.exchange_no, e.exchange_id, s.session_id, e.session_no, s.user_id, e.leaf_no, e.context, e.linked_count,
       COALESCE(p.endpoint, '/v1/chat/completions') AS endpoint, COALESCE(e.model, p.model) AS model, e.status, e.http_status, e.finish_reason, e.prompt_tokens,
       e.completion_tokens, e.total_tokens, e.reasoning_tokens, e.cached_tokens, e.time_to_first_token_ms,
       e.duration_ms, COALESCE(p.data, '{}') AS parameters, t.data AS tools, e.own_parameters, e.metadata,
       COALESCE(e.request_id, e.exchange_id) AS request_id,
       CASE WHEN e.completion_id = '' THEN 'chatcmpl-' || e.exchange_id ELSE e.completion_id END AS completion_id,
       e.completion, e.completion_created, e.error, e.worker_id, e.created_at, e.completed_at, e.wire,
       (SELECT v.name FROM upstreams AS v WHERE v.upstream_no = e.upstream_no) AS upstream,
       e.queued_ms, e.head_ms, e.stored_ms

-- name: insert_exchange
INSERT INTO exchanges (exchange_no, exchange_id, session_no, user_no, leaf_no, context, linked_count, model, status,
                       http_status, finish_reason, prompt_tokens, completion_tokens, total_tokens, reasoning_tokens,
                       cached_tokens, time_to_first_token_ms, duration_ms, parameters_no, own_parameters, metadata, request_id,
                       completion_id, completion, completion_created, error, worker_id, created_at, completed_at, wire,
                       upstream_no, queued_ms, head_ms, stored_ms)
VALUES (:exchange_no, :exchange_id, :session_no, :user_no, :leaf_no, :context, :linked_count, :model, :status,
        :http_status, :finish_reason, :prompt_tokens, :completion_tokens, :total_tokens, :reasoning_tokens,
        :cached_tokens, :time_to_first_token_ms, :duration_ms, :parameters_no, :own_parameters, :metadata, :request_id,
        :completion_id, :completion, :completion_created, :error, :worker_id, :created_at, :completed_at, :wire,
        :upstream_no, :queued_ms, :head_ms, :stored_ms);

-- name: last_numbers
-- The highest row ids in use. https://sqlite.org/autoinc.html
SELECT COALESCE((SELECT MAX(session_no) FROM sessions), 0) AS session_no,
       COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'messages'), 0) AS message_no,
       COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'exchanges'), 0) AS exchange_no,
       COALESCE((SELECT MAX(user_no) FROM users), 0) AS user_no,
       COALESCE((SELECT MAX(parameters_no) FROM parameters), 0) AS parameters_no,
       COALESCE((SELECT MAX(tools_no) FROM tools), 0) AS tools_no,
       COALESCE((SELECT MAX(upstream_no) FROM upstreams), 0) AS upstream_no;

-- name: find_parameters
SELECT parameters_no
FROM parameters
WHERE digest = :digest;

-- name: find_tools
SELECT tools_no
FROM tools
WHERE digest = :digest;

-- name: insert_tools
INSERT INTO tools (tools_no, digest, data)
VALUES (:tools_no, :digest, :data);

-- name: find_upstream
SELECT upstream_no
FROM upstreams
WHERE name = :name;

-- name: insert_upstream
INSERT INTO upstreams (upstream_no, name)
VALUES (:upstream_no, :name);

-- name: insert_parameters
INSERT INTO parameters (parameters_no, digest, endpoint, model, data, tools_no)
VALUES (:parameters_no, :digest, :endpoint, :model, :data, :tools_no);

-- name: finish_exchange
-- Stores the outcome of an exchange in progress.
UPDATE exchanges
SET status = column2,
    model = column3,
    http_status = column4,
    finish_reason = column5,
    prompt_tokens = column6,
    completion_tokens = column7,
    total_tokens = column8,
    reasoning_tokens = column9,
    cached_tokens = column10,
    time_to_first_token_ms = column11,
    duration_ms = column12,
    completion_id = column13,
    completion = column14,
    completion_created = column15,
    error = column16,
    completed_at = column17,
    upstream_no = column18,
    queued_ms = column19,
    head_ms = column20,
    stored_ms = column21,
    worker_id = NULL
FROM (
    VALUES (:exchange_no, :status, :model, :http_status, :finish_reason, :prompt_tokens, :completion_tokens,
            :total_tokens, :reasoning_tokens, :cached_tokens, :time_to_first_token_ms, :duration_ms, :completion_id,
            :completion, :completion_created, :error, :completed_at, :upstream_no, :queued_ms, :head_ms, :stored_ms)
) AS outcome
WHERE exchanges.exchange_no = column1;

-- name: mark_recovered
-- Marks an end as assumed, because the process seemed dead; the process's own end replaces it.
UPDATE exchanges
SET worker_id = :worker_id
WHERE exchange_id = :exchange_id;

-- name: reopen_recovered
-- Sets an exchange with an assumed end back to in progress.
UPDATE exchanges
SET status = 'in_progress'
WHERE exchange_id = :exchange_id
  AND status = 'incomplete'
  AND worker_id IS NOT NULL;

-- name: list_recovered
-- The exchanges of a process whose end was assumed, and whose fragments are kept. Without the first fragment, the others
-- were deleted too, and what came late is only the rest of the reply that is stored.
SELECT e.exchange_id, COALESCE(p.endpoint, '/v1/chat/completions') AS endpoint
FROM exchanges AS e
LEFT JOIN parameters AS p ON p.parameters_no = e.parameters_no
WHERE e.exchange_no IN (SELECT f.exchange_no FROM exchange_fragments AS f WHERE f.sequence = 0)
  AND e.status = 'incomplete'
  AND e.worker_id = :worker_id;

-- name: get_exchange_in_progress
-- What is needed to store the end: the position of the request's last message, and whether it has children already.
SELECT e.exchange_no, e.exchange_id, s.session_id, e.session_no, s.user_id, p.model AS asked_model,
       e.created_at, e.leaf_no,
       EXISTS (SELECT 1 FROM messages AS c WHERE c.session_no = e.session_no AND c.parent_no = e.leaf_no) AS goes_on,
       e.user_no, COALESCE(p.endpoint, '/v1/chat/completions') AS endpoint
FROM exchanges AS e
LEFT JOIN parameters AS p ON p.parameters_no = e.parameters_no
JOIN sessions AS s ON s.session_no = e.session_no
WHERE e.exchange_id = :exchange_id
  AND e.status = 'in_progress';

-- name: find_exchange_id
SELECT exchange_id
FROM exchanges
WHERE exchange_no = :exchange_no;

-- name: find_exchange_no
SELECT exchange_no
FROM exchanges
WHERE exchange_id = :exchange_id;

-- name: get_exchange
SELECT {exchange}
FROM exchanges AS e
LEFT JOIN parameters AS p ON p.parameters_no = e.parameters_no
LEFT JOIN tools AS t ON t.tools_no = p.tools_no
JOIN sessions AS s ON s.session_no = e.session_no
WHERE e.exchange_id = :exchange_id;

-- name: list_exchanges
-- One page of a session's exchanges in storage order. If the exchange to continue after was deleted, its id still tells
-- the position.
SELECT {exchange}
FROM exchanges AS e
LEFT JOIN parameters AS p ON p.parameters_no = e.parameters_no
LEFT JOIN tools AS t ON t.tools_no = p.tools_no
JOIN sessions AS s ON s.session_no = e.session_no
WHERE e.session_no = (SELECT o.session_no FROM sessions AS o WHERE o.session_id = :session_id)
  AND e.exchange_no > COALESCE(
    (SELECT a.exchange_no FROM exchanges AS a WHERE a.exchange_id = :after),
    (
      SELECT MAX(d.exchange_no)
      FROM exchanges AS d
      WHERE CAST(:after AS TEXT) IS NOT NULL
        AND d.session_no = (SELECT o.session_no FROM sessions AS o WHERE o.session_id = :session_id)
        AND d.exchange_id < :after
    ),
    0
  )
ORDER BY e.exchange_no
LIMIT :limit OFFSET :offset;

-- name: count_exchanges
SELECT COUNT(*)
FROM exchanges
WHERE session_no = (SELECT s.session_no FROM sessions AS s WHERE s.session_id = :session_id);

-- name: list_workers_in_progress
-- The processes with exchanges in progress; some of them may be dead.
SELECT DISTINCT worker_id
FROM exchanges
WHERE status = 'in_progress';

-- name: list_exchanges_in_progress
-- The exchanges that a process has in progress.
SELECT e.exchange_id, COALESCE(p.endpoint, '/v1/chat/completions') AS endpoint
FROM exchanges AS e
LEFT JOIN parameters AS p ON p.parameters_no = e.parameters_no
WHERE e.status = 'in_progress'
  AND e.worker_id = :worker_id;

-- name: update_exchange_metadata
UPDATE exchanges
SET metadata = :metadata
WHERE exchange_id = :exchange_id;

-- name: delete_exchange
DELETE FROM exchanges
WHERE exchange_id = :exchange_id;

-- name: move_requests
-- Changes the last message of the requests that end with a given message.
UPDATE exchanges
SET leaf_no = :parent_no
WHERE session_no = (SELECT s.session_no FROM sessions AS s WHERE s.session_id = :session_id)
  AND leaf_no = :message_no;

-- name: list_contexts
-- The contexts (system messages) of a session's requests.
SELECT exchange_id, context
FROM exchanges
WHERE session_no = (SELECT s.session_no FROM sessions AS s WHERE s.session_id = :session_id)
  AND context IS NOT NULL;

-- name: update_context
UPDATE exchanges
SET context = :context
WHERE exchange_id = :exchange_id;

-- name: find_failed_request
-- The most recently used session, since a point in time, whose last request ends with this chain hash and got no
-- complete reply. Many conversations have the same beginning: only the newest are examined.
SELECT m.session_id
FROM (
    SELECT message_no, session_no, session_id
    FROM messages
    WHERE chain_hash = :chain_hash
    ORDER BY session_no DESC
    LIMIT :limit
) AS m
JOIN sessions AS s ON s.session_no = m.session_no AND s.updated_at >= :since
JOIN exchanges AS e ON e.exchange_no = (
    SELECT MAX(x.exchange_no) FROM exchanges AS x WHERE x.session_no = m.session_no AND x.leaf_no = m.message_no
)
WHERE e.status IN ('failed', 'incomplete')
ORDER BY m.session_no DESC
LIMIT 1;
