-- The few exchanges that were cut or failed, for the list of sessions that is filtered by that. Those in progress have an
-- index of their own; the others, nearly all, are in neither, and cost nothing more.
CREATE INDEX idx_exchanges_in_trouble ON exchanges (status, exchange_no) WHERE status IN ('failed', 'incomplete');

-- When a request's stations were passed, in milliseconds after it came: for the waterfall of its page.
ALTER TABLE exchanges ADD COLUMN queued_ms INTEGER;    -- it went to upstream
ALTER TABLE exchanges ADD COLUMN head_ms   INTEGER;    -- upstream's status and headers had come
ALTER TABLE exchanges ADD COLUMN stored_ms INTEGER;    -- its end was written, to be committed at once
