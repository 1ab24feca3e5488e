-- name: count_usage
-- Adds ended exchanges to the usage counts.
INSERT INTO usage_days (day, user_no, model, endpoint, requests, incomplete, failed, prompt_tokens, cached_tokens,
                        completion_tokens, reasoning_tokens, first_token_50, first_token_100, first_token_200,
                        first_token_400, first_token_800, first_token_1600, first_token_3200, first_token_6400,
                        first_token_12800, first_token_25600, first_token_more)
VALUES (:day, :user_no, :model, :endpoint, :requests, :incomplete, :failed, :prompt_tokens, :cached_tokens,
        :completion_tokens, :reasoning_tokens, :first_token_50, :first_token_100, :first_token_200,
        :first_token_400, :first_token_800, :first_token_1600, :first_token_3200, :first_token_6400,
        :first_token_12800, :first_token_25600, :first_token_more)
ON CONFLICT (day, user_no, model, endpoint) DO UPDATE
SET requests = usage_days.requests + excluded.requests,
    incomplete = usage_days.incomplete + excluded.incomplete,
    failed = usage_days.failed + excluded.failed,
    prompt_tokens = usage_days.prompt_tokens + excluded.prompt_tokens,
    cached_tokens = usage_days.cached_tokens + excluded.cached_tokens,
    completion_tokens = usage_days.completion_tokens + excluded.completion_tokens,
    reasoning_tokens = usage_days.reasoning_tokens + excluded.reasoning_tokens,
    first_token_50 = usage_days.first_token_50 + excluded.first_token_50,
    first_token_100 = usage_days.first_token_100 + excluded.first_token_100,
    first_token_200 = usage_days.first_token_200 + excluded.first_token_200,
    first_token_400 = usage_days.first_token_400 + excluded.first_token_400,
    first_token_800 = usage_days.first_token_800 + excluded.first_token_800,
    first_token_1600 = usage_days.first_token_1600 + excluded.first_token_1600,
    first_token_3200 = usage_days.first_token_3200 + excluded.first_token_3200,
    first_token_6400 = usage_days.first_token_6400 + excluded.first_token_6400,
    first_token_12800 = usage_days.first_token_12800 + excluded.first_token_12800,
    first_token_25600 = usage_days.first_token_25600 + excluded.first_token_25600,
    first_token_more = usage_days.first_token_more + excluded.first_token_more;

-- columns: usage_sums
SUM(d.requests) AS requests, SUM(d.incomplete) AS incomplete, SUM(d.failed) AS failed,
       SUM(d.prompt_tokens) AS prompt_tokens, SUM(d.cached_tokens) AS cached_tokens,
       SUM(d.completion_tokens) AS completion_tokens, SUM(d.reasoning_tokens) AS reasoning_tokens,
       SUM(d.first_token_50) AS first_token_50, SUM(d.first_token_100) AS first_token_100,
       SUM(d.first_token_200) AS first_token_200, SUM(d.first_token_400) AS first_token_400,
       SUM(d.first_token_800) AS first_token_800, SUM(d.first_token_1600) AS first_token_1600,
       SUM(d.first_token_3200) AS first_token_3200, SUM(d.first_token_6400) AS first_token_6400,
       SUM(d.first_token_12800) AS first_token_12800, SUM(d.first_token_25600) AS first_token_25600,
       SUM(d.first_token_more) AS first_token_more

-- columns: usage_of_all
usage_days AS d
WHERE d.day >= :since
  AND d.day <= :until

-- columns: usage_of_user
usage_days AS d
WHERE d.user_no = (SELECT o.user_no FROM users AS o WHERE o.user_id = :user_id)
  AND d.day >= :since
  AND d.day <= :until

-- columns: most_tokens
SUM(d.prompt_tokens + d.completion_tokens) DESC, SUM(d.requests) DESC

-- name: sum_usage_by_day
-- The usage of a range of days, newest day first. One query per grouping: grouping by a CASE would sort wide rows and
-- take four times as long. One user's usage has queries of its own, so that the index on users is used.
SELECT d.day AS name, {usage_sums}
FROM {usage_of_all}
GROUP BY d.day
ORDER BY d.day DESC
LIMIT :limit OFFSET :offset;

-- name: sum_usage_by_day_of_user
SELECT d.day AS name, {usage_sums}
FROM {usage_of_user}
GROUP BY d.day
ORDER BY d.day DESC
LIMIT :limit OFFSET :offset;

-- name: sum_usage_totals
-- The sums by day that the totals and the chart need, in half the time of all.
SELECT d.day AS name, SUM(d.requests) AS requests, SUM(d.incomplete) AS incomplete, SUM(d.failed) AS failed,
       SUM(d.prompt_tokens) AS prompt_tokens, SUM(d.completion_tokens) AS completion_tokens
FROM {usage_of_all}
GROUP BY d.day
ORDER BY d.day DESC
LIMIT :limit OFFSET :offset;

-- name: sum_usage_by_model
-- The same by model, most tokens first.
SELECT d.model AS name, {usage_sums}
FROM {usage_of_all}
GROUP BY d.model
ORDER BY {most_tokens}, d.model
LIMIT :limit OFFSET :offset;

-- name: list_usage_models
-- At most `limit` names.
SELECT DISTINCT d.model
FROM {usage_of_all}
LIMIT :limit;

-- name: sum_usage_of_model
SELECT CAST(:name AS TEXT) AS name, {usage_sums}
FROM {usage_of_all}
  AND d.model = :name;

-- name: sum_usage_by_model_of_user
SELECT d.model AS name, {usage_sums}
FROM {usage_of_user}
GROUP BY d.model
ORDER BY {most_tokens}, d.model
LIMIT :limit OFFSET :offset;

-- name: sum_usage_by_endpoint
-- The same by endpoint, most tokens first.
SELECT d.endpoint AS name, {usage_sums}
FROM {usage_of_all}
GROUP BY d.endpoint
ORDER BY {most_tokens}, d.endpoint
LIMIT :limit OFFSET :offset;

-- name: list_usage_endpoints
-- At most `limit` names.
SELECT DISTINCT d.endpoint
FROM {usage_of_all}
LIMIT :limit;

-- name: sum_usage_of_endpoint
SELECT CAST(:name AS TEXT) AS name, {usage_sums}
FROM {usage_of_all}
  AND d.endpoint = :name;

-- name: sum_usage_by_endpoint_of_user
SELECT d.endpoint AS name, {usage_sums}
FROM {usage_of_user}
GROUP BY d.endpoint
ORDER BY {most_tokens}, d.endpoint
LIMIT :limit OFFSET :offset;

-- name: sum_usage_by_user
-- The same by user, and one page of them: two sums of every user's rows find its users, and only theirs are summed up
-- in full. All sums of all users take twice as long. User names are joined after the sums.
SELECT u.user_id AS name, s.*
FROM (
    SELECT d.user_no, {usage_sums}
    FROM usage_days AS d
    WHERE d.user_no IN (
        SELECT t.user_no
        FROM (
            SELECT d.user_no, SUM(d.prompt_tokens + d.completion_tokens) AS tokens, SUM(d.requests) AS requests
            FROM {usage_of_all}
            GROUP BY d.user_no
        ) AS t
        JOIN users AS v ON v.user_no = t.user_no
        ORDER BY t.tokens DESC, t.requests DESC, v.user_id
        LIMIT :limit OFFSET :offset
    )
      AND d.day >= :since
      AND d.day <= :until
    GROUP BY d.user_no
) AS s
JOIN users AS u ON u.user_no = s.user_no
ORDER BY s.prompt_tokens + s.completion_tokens DESC, s.requests DESC, u.user_id;

-- name: sum_usage_by_user_of_user
SELECT u.user_id AS name, s.*
FROM (SELECT d.user_no, {usage_sums} FROM {usage_of_user} GROUP BY d.user_no) AS s
JOIN users AS u ON u.user_no = s.user_no
ORDER BY s.prompt_tokens + s.completion_tokens DESC, s.requests DESC, u.user_id
LIMIT :limit OFFSET :offset;

-- columns: page_session
s.session_no, s.session_id, s.user_id, s.title, s.is_active, s.message_count, s.tokens, s.updated_at

-- columns: is_newest_and_shown
s.updated_at >= :since
       AND s.updated_at < :until
       AND (CAST(:user_id AS TEXT) IS NULL OR s.user_id = :user_id)
       AND {uses_model}
       AND NOT EXISTS (
           SELECT 1
           FROM exchanges AS n
           WHERE n.session_no = e.session_no
             AND n.exchange_no > e.exchange_no
             AND (e.status <> 'in_progress' OR n.status = 'in_progress')
       )

-- columns: uses_model
(CAST(:model AS TEXT) IS NULL
        OR EXISTS (
            SELECT 1
            FROM exchanges AS x
            LEFT JOIN parameters AS y ON y.parameters_no = x.parameters_no
            WHERE x.session_no = s.session_no
              AND COALESCE(x.model, y.model) = :model
        ))

-- name: list_page_sessions_of_user
-- A user's sessions before a point in time, most recently active first, and whether each ever used a model.
SELECT {page_session}, {uses_model} AS fits
FROM sessions AS s
WHERE s.user_id = :user_id
  AND s.updated_at >= :since
  AND (s.updated_at, s.session_id) < (:before, :before_id)
ORDER BY s.updated_at DESC, s.session_id DESC
LIMIT :limit;

-- name: list_page_sessions
-- The same for all users. Executed separately for active and inactive sessions, so that the index is used.
SELECT {page_session}, {uses_model} AS fits
FROM sessions AS s
WHERE s.is_active = :is_active
  AND s.updated_at >= :since
  AND (s.updated_at, s.session_id) < (:before, :before_id)
ORDER BY s.updated_at DESC, s.session_id DESC
LIMIT :limit;

-- name: list_page_sessions_in_trouble
-- The sessions of cut or failed exchanges, newest exchange first, and whether to show each: only for the session's
-- newest exchange. The conditions are in the column list, so that a page can continue after any row.
SELECT e.exchange_no, {page_session}, {is_newest_and_shown} AS fits
FROM exchanges AS e
JOIN sessions AS s ON s.session_no = e.session_no
WHERE e.status IN ('failed', 'incomplete')
  AND e.status = :status
  AND e.exchange_no < :before
ORDER BY e.exchange_no DESC
LIMIT :limit;

-- name: list_page_sessions_in_progress
-- The same for exchanges in progress, of which there are few. The plus signs keep SQLite from scanning all exchanges by
-- number (https://sqlite.org/optoverview.html#disqualifying_where_clause_terms_using_unary_).
SELECT e.exchange_no, {page_session}, {is_newest_and_shown} AS fits
FROM exchanges AS e
JOIN sessions AS s ON s.session_no = e.session_no
WHERE e.status = 'in_progress'
  AND +e.exchange_no < :before
ORDER BY +e.exchange_no DESC
LIMIT :limit;

-- name: session_exists
SELECT EXISTS (SELECT 1 FROM sessions WHERE CAST(:user_id AS TEXT) IS NULL OR user_id = :user_id);

-- name: list_newest_exchanges
-- The models and statuses of a session's newest exchanges.
SELECT e.exchange_id, COALESCE(p.endpoint, '/v1/chat/completions') AS endpoint, COALESCE(e.model, p.model) AS model,
       e.status, e.leaf_no, e.created_at
FROM exchanges AS e
LEFT JOIN parameters AS p ON p.parameters_no = e.parameters_no
WHERE e.session_no = :session_no
ORDER BY e.exchange_no DESC
LIMIT :limit;

-- name: get_page_message
-- A message for the history page; long values are truncated, or omitted if a part would be useless.
SELECT m.message_no, m.message_id, e.exchange_id, m.role, substr(m.content, 1, CAST(:characters AS INTEGER)) AS content,
       length(m.content) AS length, COALESCE(m.content_form, 'text') AS content_form,
       CASE WHEN length(m.extra) <= :extra_characters THEN m.extra END AS extra,
       m.extra IS NOT NULL AND length(m.extra) > :extra_characters AS is_extra_left_out,
       CASE WHEN length(m.wire) <= :extra_characters THEN m.wire END AS wire,
       m.choice IS NOT NULL AS is_reply, m.model, m.tokens, COALESCE(m.status, 'completed') AS status, m.created_at,
       CASE WHEN m.status IS NOT NULL THEN substr(e.error, 1, 10000) END AS error
FROM messages AS m
LEFT JOIN exchanges AS e ON e.exchange_no = m.exchange_no
WHERE m.message_no = :message_no;

-- name: get_alternatives
-- The number of alternatives of a message, its position among them, and the previous and next one. As in get_message,
-- system messages between a reply and its question are ignored.
WITH RECURSIVE
above (message_no) AS (
    SELECT CASE WHEN m.parent_no < m.message_no THEN m.parent_no ELSE 0 END
    FROM messages AS m
    WHERE m.message_no = :message_no
    UNION ALL
    SELECT CASE WHEN a.parent_no < a.message_no THEN a.parent_no ELSE 0 END
    FROM above
    JOIN messages AS a ON a.message_no = above.message_no
    WHERE a.role IN ('system', 'developer')
),
beside (message_no, is_linked) AS (
    SELECT s.message_no, s.role NOT IN ('system', 'developer')
    FROM messages AS s
    WHERE s.session_no = :session_no
      AND s.parent_no IS NOT DISTINCT FROM (SELECT NULLIF(MIN(message_no), 0) FROM above)
    UNION ALL
    SELECT s.message_no, s.role NOT IN ('system', 'developer')
    FROM beside
    JOIN messages AS s ON s.session_no = :session_no AND s.parent_no = beside.message_no AND s.message_no > beside.message_no
    WHERE NOT beside.is_linked
)
SELECT f.count, f.position,
       (SELECT m.message_id FROM messages AS m WHERE m.message_no = f.previous_no) AS previous,
       (SELECT m.message_id FROM messages AS m WHERE m.message_no = f.next_no) AS next
FROM (
    SELECT COUNT(*) AS count,
           COALESCE(SUM(CASE WHEN message_no <= :message_no THEN 1 ELSE 0 END), 0) AS position,
           MAX(CASE WHEN message_no < :message_no THEN message_no END) AS previous_no,
           MIN(CASE WHEN message_no > :message_no THEN message_no END) AS next_no
    FROM beside
    WHERE is_linked
) AS f;

-- name: list_page_branches
-- The leaves of a session's branches, newest first.
SELECT m.message_no, m.message_id, m.depth + 1 AS message_count, substr(m.content, 1, 80) AS title,
       m.created_at AS updated_at
FROM messages AS m
WHERE m.session_id = :session_id
  AND m.role NOT IN ('system', 'developer')
  AND NOT EXISTS (SELECT 1 FROM messages AS c WHERE c.session_no = :session_no AND c.parent_no = m.message_no)
ORDER BY m.message_no DESC
LIMIT :limit;

-- name: get_message_text
SELECT m.content
FROM messages AS m
WHERE m.message_id = :message_id
  AND m.session_id = :session_id;

-- name: get_message_blob
-- A blob of a message in a session that the visitor may read.
SELECT b.data
FROM messages AS m
JOIN message_blobs AS mb ON mb.message_no = m.message_no
JOIN blobs AS b ON b.digest = mb.digest
WHERE m.message_id = :message_id
  AND m.session_id = :session_id
  AND b.digest = :digest;

-- name: list_fragments_from
-- The fragments of a reply in progress from a position on.
SELECT f.sequence, f.data
FROM exchange_fragments AS f
JOIN exchanges AS e ON e.exchange_no = f.exchange_no
WHERE e.exchange_id = :exchange_id
  AND f.sequence >= :sequence
ORDER BY f.sequence;

-- name: list_page_keys
-- The newest keys, of everyone or of one user.
SELECT {api_key}
FROM api_keys
WHERE CAST(:user_id AS TEXT) IS NULL OR user_id = :user_id
ORDER BY key_id DESC
LIMIT :limit;

-- name: get_web_session
-- A logged-in browser, with its key if that is in the database.
SELECT w.key_hash, w.created_at, w.expires_at, k.key_id, k.user_id, k.is_admin, k.expires_at AS key_expires_at,
       k.revoked_at
FROM web_sessions AS w
LEFT JOIN api_keys AS k ON k.key_hash = w.key_hash
WHERE w.token_hash = :token_hash
  AND w.expires_at > :now;

-- name: insert_web_session
INSERT INTO web_sessions (token_hash, key_hash, created_at, expires_at)
VALUES (:token_hash, :key_hash, :created_at, :expires_at);

-- name: extend_web_session
UPDATE web_sessions
SET expires_at = :expires_at
WHERE token_hash = :token_hash;

-- name: delete_web_session
DELETE FROM web_sessions
WHERE token_hash = :token_hash;

-- name: delete_expired_web_sessions
DELETE FROM web_sessions
WHERE expires_at <= :now;

-- name: delete_oldest_web_sessions
-- Limits the logins per key: the oldest ones are deleted.
DELETE FROM web_sessions
WHERE token_hash IN (
    SELECT w.token_hash
    FROM web_sessions AS w
    WHERE w.key_hash = :key_hash
    ORDER BY w.created_at DESC
    LIMIT 1000 OFFSET :most
);
