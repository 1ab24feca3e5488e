-- name: last_numbers
-- The highest numbers of sessions, messages and exchanges.
SELECT (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM sessions_session_no_seq) AS session_no,
       (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM messages_message_no_seq) AS message_no,
       (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM exchanges_exchange_no_seq) AS exchange_no;
