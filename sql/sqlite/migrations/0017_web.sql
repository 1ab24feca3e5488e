-- The few exchanges that were cut or failed, for the list of sessions that is filtered by that. Those in progress have an
-- index of their own; the others, nearly all, are in neither, and cost nothing more.
CREATE INDEX idx_exchanges_in_trouble ON exchanges (status, exchange_no) WHERE status IN ('failed', 'incomplete');
