-- What OpenAI's chat shape cannot say of what came on another endpoint. Mostly null: what is converted back without a
-- difference needs none.
ALTER TABLE messages ADD COLUMN wire TEXT;  -- JSON object by dialect: the difference between what was sent and the
                                            -- message converted back (ids, signatures, order, encrypted content)
ALTER TABLE exchanges ADD COLUMN wire TEXT; -- JSON object: what changes with every turn of one conversation, and so is no
                                            -- part of it (previous_response_id, cache_control, billing headers)
