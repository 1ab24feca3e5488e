-- What a transaction's writes will look up, read for all of them together (`postgresql_ahead.py`). Each query takes many
-- rows of VALUES and gives the columns of the look-up that it stands for.

-- name: ahead_users
SELECT u.user_id, u.user_no
FROM (VALUES (:user_id)) AS asked
JOIN users AS u ON u.user_id = column1;

-- name: ahead_sessions
SELECT s.session_no, s.session_id, s.user_id, s.external_id, s.title, s.is_active, s.metadata, s.leaf_no, s.message_count,
       s.tokens, s.created_at, s.updated_at
FROM (VALUES (:session_id)) AS asked
JOIN sessions AS s ON s.session_id = column1;

-- name: ahead_named_sessions
-- As find_session_id and get_session.
SELECT column1 AS named_by, column2 AS name, s.session_no, s.session_id, s.user_id, s.external_id, s.title, s.is_active, s.metadata,
       s.leaf_no, s.message_count, s.tokens, s.created_at, s.updated_at
FROM (VALUES (:user_id, :external_id)) AS asked
CROSS JOIN LATERAL (
    SELECT n.session_no
    FROM sessions AS n
    WHERE n.user_id = column1
      AND (n.session_id = column2 OR n.external_id = column2)
    ORDER BY CASE WHEN n.session_id = column2 THEN 0 ELSE 1 END
    LIMIT 1
) AS found
JOIN sessions AS s ON s.session_no = found.session_no;

-- name: ahead_prefixes
-- As find_prefix_in_session; and the position of the message and of its conversation's first one, as get_node.
-- Stops at the first position that is stored, see prefixes.sql.
SELECT column3 AS sequence, found.position, s.session_no, m.message_no, m.session_id, m.parent_no, m.depth, m.role, m.chain_hash,
       m.root_no, r.parent_no AS root_parent_no, r.depth AS root_depth, r.role AS root_role, r.chain_hash AS root_chain_hash,
       r.root_no AS root_root_no,
       EXISTS (
           SELECT 1
           FROM messages AS d
           WHERE d.session_no = s.session_no
             AND d.root_no = d.message_no
             AND d.parent_no IS NOT NULL
       ) AS has_detached
FROM (VALUES (:session_id, :hashes, :sequence)) AS asked
JOIN sessions AS s ON s.session_id = column1
CROSS JOIN LATERAL (
    SELECT i AS position, stored.message_no
    FROM generate_series(0, length(column2) / 16 - 1) AS i
    CROSS JOIN LATERAL (
        SELECT MAX(x.message_no) AS message_no
        FROM messages AS x
        WHERE x.chain_hash = substr(column2, 16 * i + 1, 16)
          AND x.session_no = s.session_no
    ) AS stored
    WHERE stored.message_no IS NOT NULL
    LIMIT 1
) AS found
JOIN messages AS m ON m.message_no = found.message_no
LEFT JOIN messages AS r ON r.message_no = m.root_no;

-- name: ahead_nodes
-- As find_node_by_hash.
SELECT m.message_no, m.session_id, m.parent_no, m.depth, m.role, m.chain_hash, m.root_no
FROM (VALUES (:session_id, :chain_hash)) AS asked
JOIN sessions AS s ON s.session_id = column1
CROSS JOIN LATERAL (
    SELECT MAX(x.message_no) AS message_no
    FROM messages AS x
    WHERE x.chain_hash = column2
      AND x.session_no = s.session_no
) AS found
JOIN messages AS m ON m.message_no = found.message_no;

-- name: ahead_exchanges
-- As get_exchange_in_progress; and the position of the request's last message, as get_node.
SELECT e.exchange_no, e.exchange_id, s.session_id, e.session_no, s.user_id, p.model AS asked_model, e.created_at, e.leaf_no,
       EXISTS (SELECT 1 FROM messages AS c WHERE c.session_no = e.session_no AND c.parent_no = e.leaf_no) AS goes_on,
       e.user_no, COALESCE(p.endpoint, '/v1/chat/completions') AS endpoint,
       m.parent_no, m.depth, m.role, m.chain_hash, m.root_no
FROM (VALUES (:exchange_id)) AS asked
JOIN exchanges AS e ON e.exchange_id = column1
LEFT JOIN parameters AS p ON p.parameters_no = e.parameters_no
JOIN sessions AS s ON s.session_no = e.session_no
LEFT JOIN messages AS m ON m.message_no = e.leaf_no
WHERE e.status = 'in_progress';

-- name: ahead_parameters
SELECT p.digest, p.parameters_no
FROM (VALUES (:digest)) AS asked
JOIN parameters AS p ON p.digest = column1;

-- name: ahead_tools
SELECT t.digest, t.tools_no
FROM (VALUES (:digest)) AS asked
JOIN tools AS t ON t.digest = column1;

-- name: ahead_upstreams
SELECT v.name, v.upstream_no
FROM (VALUES (:name)) AS asked
JOIN upstreams AS v ON v.name = column1;
