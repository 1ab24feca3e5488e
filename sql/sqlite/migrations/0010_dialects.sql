-- What OpenAI's chat shape cannot say of what came on another endpoint. Mostly null: what is converted back without a
-- difference needs none.
ALTER TABLE messages ADD COLUMN wire TEXT;  -- JSON object by dialect: the difference between what was sent and the
                                            -- message converted back (ids, signatures, order, encrypted content)
ALTER TABLE exchanges ADD COLUMN wire TEXT; -- JSON object: what changes with every turn of one conversation, and so is no
                                            -- part of it (previous_response_id, cache_control, billing headers)

-- Which message holds the item of an id that upstream gave it, for requests that refer to it. Only of responses that may
-- be referred to.
CREATE TABLE response_items (
    item_id    TEXT NOT NULL,
    message_no INTEGER NOT NULL REFERENCES messages (message_no) ON DELETE CASCADE,
    PRIMARY KEY (item_id, message_no)
) WITHOUT ROWID;
CREATE INDEX idx_response_items_message_no ON response_items (message_no);
