-- name: insert_response_item
INSERT INTO response_items (item_id, message_no)
VALUES (:item_id, :message_no)
ON CONFLICT DO NOTHING;

-- name: find_response_item
-- The newest message of a user that contains an item.
SELECT MAX(m.message_no)
FROM response_items AS i
JOIN messages AS m ON m.message_no = i.message_no
JOIN sessions AS s ON s.session_id = m.session_id
WHERE i.item_id = :item_id
  AND s.user_id = :user_id;

-- name: find_message_of_user
SELECT m.message_no
FROM messages AS m
JOIN sessions AS s ON s.session_id = m.session_id
WHERE m.message_id = :message_id
  AND s.user_id = :user_id;
