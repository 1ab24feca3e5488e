-- Search without an index: the server pre-filters, the program verifies the rest.

-- name: list_search_candidates
-- Messages that may contain a text, newest first. The parameter `run` is the part of the text that no change of case
-- alters, so every match contains it. For an ASCII text, `ascii`, ASCII messages are decided exactly; a message is
-- ASCII if it has as many bytes as characters. In the collation "C", lower() changes only ASCII letters.
SELECT m.message_no, octet_length(m.content) AS size
FROM messages AS m
JOIN sessions AS s ON s.session_no = m.session_no
WHERE m.message_no < :below
  AND (CAST(:user_id AS TEXT) IS NULL OR s.user_id = :user_id)
  AND (CAST(:session_id AS TEXT) IS NULL OR m.session_id = :session_id)
  AND (CAST(:role AS TEXT) IS NULL OR m.role = :role)
  AND (CAST(:model AS TEXT) IS NULL OR m.model = :model)
  AND (CAST(:since AS TEXT) IS NULL OR m.created_at >= :since)
  AND (CAST(:until AS TEXT) IS NULL OR m.created_at < :until)
  AND (CAST(:run AS TEXT) IS NULL OR position(CAST(:run AS TEXT) IN m.content) > 0)
  AND (
      CASE
          WHEN octet_length(m.content) <> char_length(m.content) THEN TRUE
          WHEN CAST(:ascii AS TEXT) IS NULL THEN FALSE
          ELSE position(CAST(:ascii AS TEXT) IN lower(m.content)) > 0
      END
  )
ORDER BY m.message_no DESC
LIMIT :limit;

-- name: list_search_texts
SELECT message_no, content
FROM messages
WHERE message_no IN (SELECT CAST(given.value AS BIGINT) FROM json_array_elements_text(CAST(:numbers AS JSON)) AS given);

-- name: get_search_hit
-- The columns of a hit without its text.
SELECT m.session_id, m.message_id, p.message_id AS parent_id, e.exchange_id, m.role, m.model, m.tokens,
       COALESCE(m.status, 'completed') AS status, m.created_at
FROM messages AS m
LEFT JOIN messages AS p ON p.message_no = m.parent_no
LEFT JOIN exchanges AS e ON e.exchange_no = m.exchange_no
WHERE m.message_no = :message_no;
