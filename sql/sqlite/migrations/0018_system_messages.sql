-- The system messages of a session, so that one page of a branch as it was sent costs a page. Few messages are in it.
CREATE INDEX idx_messages_system ON messages (session_no, message_no) WHERE role IN ('system', 'developer');
