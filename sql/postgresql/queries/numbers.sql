-- name: last_numbers
-- The highest row ids in use.
SELECT (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM sessions_session_no_seq) AS session_no,
       (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM messages_message_no_seq) AS message_no,
       (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM exchanges_exchange_no_seq) AS exchange_no,
       (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM users_user_no_seq) AS user_no,
       (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM parameters_parameters_no_seq) AS parameters_no,
       (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM tools_tools_no_seq) AS tools_no,
       (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM upstreams_upstream_no_seq) AS upstream_no;
