-- A session may hold several conversations. Each message's chain hash is from its own conversation's root, whatever it
-- is shown below. Null stands for the session's first conversation, and for all of a database of before.
ALTER TABLE messages ADD COLUMN root_no INTEGER;       -- the first message of its conversation; null: the session's first
-- Conversations that are shown below a message of another: the first message of each.
CREATE INDEX idx_messages_detached ON messages (session_no) WHERE root_no = message_no AND parent_no IS NOT NULL;

-- The tools of requests, each list once: clients send the same with every turn.
CREATE TABLE tools (
    tools_no INTEGER PRIMARY KEY,
    digest   BLOB NOT NULL UNIQUE,                     -- SHA-256 of data
    data     TEXT NOT NULL                             -- JSON, the request's `tools`
);
ALTER TABLE parameters ADD COLUMN tools_no INTEGER REFERENCES tools (tools_no);
CREATE INDEX idx_parameters_tools ON parameters (tools_no) WHERE tools_no IS NOT NULL;
CREATE TRIGGER tools_go_with_their_last_parameters AFTER DELETE ON parameters
WHEN OLD.tools_no IS NOT NULL
BEGIN
    DELETE FROM tools
    WHERE tools_no = OLD.tools_no
      AND NOT EXISTS (SELECT 1 FROM parameters WHERE tools_no = OLD.tools_no);
END;
-- What changes with every request, so that the rest is not stored again.
ALTER TABLE exchanges ADD COLUMN own_parameters TEXT;  -- JSON object: further parameters, of this request alone
