-- name: count_everything
SELECT (SELECT COUNT(*) FROM users) AS users,
       (SELECT COALESCE(SUM(session_count), 0) FROM users) AS sessions,
       (SELECT COUNT(*) FROM messages) AS messages,
       (SELECT COUNT(*) FROM exchanges) AS exchanges,
       (SELECT COUNT(*) FROM blobs) AS blobs;

-- name: list_tokens_by_day
-- Tokens by day and model, newest day first.
SELECT substr(e.created_at, 1, 10) AS day, COALESCE(e.model, p.model) AS model, COUNT(*) AS exchanges,
       COALESCE(SUM(e.prompt_tokens), 0) AS prompt_tokens,
       COALESCE(SUM(e.completion_tokens), 0) AS completion_tokens
FROM exchanges AS e
LEFT JOIN parameters AS p ON p.parameters_no = e.parameters_no
WHERE e.created_at >= :since
GROUP BY substr(e.created_at, 1, 10), COALESCE(e.model, p.model)
ORDER BY day DESC, exchanges DESC, model;
