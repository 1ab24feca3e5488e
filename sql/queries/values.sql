-- name: users_values
-- Every row of a table, with the columns that `check` verifies, and the row's identity.
SELECT user_id AS id, username, session_count, active_session_count, created_at, last_active
FROM users;

-- name: sessions_values
SELECT session_id AS id, user_id, external_id, title, is_active, metadata, leaf_no, message_count, tokens, created_at,
       updated_at
FROM sessions;

-- name: messages_values
-- A missing row that a link refers to is reported as the column's name with 1. An exchange may be missing after
-- retention.
SELECT m.message_id AS id, m.parent_no, m.depth, m.chain_hash, m.exchange_no, m.role, m.content, m.content_form, m.extra,
       m.choice, m.model, m.tokens, m.status, m.metadata, m.created_at, m.root_no, m.wire, m.message_no,
       CASE WHEN m.parent_no IS NOT NULL AND p.message_no IS NULL THEN 1 END AS no_parent_no,
       CASE WHEN m.root_no IS NOT NULL AND r.message_no IS NULL THEN 1 END AS no_root_no
FROM messages AS m
LEFT JOIN messages AS p ON p.message_no = m.parent_no
LEFT JOIN messages AS r ON r.message_no = m.root_no;

-- name: exchanges_values
SELECT e.exchange_id AS id, e.leaf_no, e.context, e.linked_count, e.model, e.status, e.http_status, e.finish_reason,
       e.prompt_tokens, e.completion_tokens, e.total_tokens, e.reasoning_tokens, e.cached_tokens,
       e.time_to_first_token_ms, e.duration_ms, e.own_parameters, e.metadata, e.request_id, e.completion_id, e.completion,
       e.completion_created, e.error, e.created_at, e.completed_at, e.wire,
       e.queued_ms, e.head_ms, e.stored_ms,
       CASE WHEN p.parameters_no IS NULL THEN 1 END AS no_parameters_no
FROM exchanges AS e
LEFT JOIN parameters AS p ON p.parameters_no = e.parameters_no;

-- name: parameters_values
SELECT parameters_no AS id, endpoint, model, data
FROM parameters;

-- name: tools_values
SELECT tools_no AS id, data
FROM tools;

-- name: blobs_values
SELECT digest AS id, data
FROM blobs;
