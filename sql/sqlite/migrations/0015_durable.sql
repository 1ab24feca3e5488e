-- Short ways up a long branch, so that one page of it costs a page: from each message whose depth is a multiple of 64 to
-- the message 64 above it, and from each whose depth is a multiple of 4,096 to the one 4,096 above it.
CREATE TABLE message_jumps (
    message_no INTEGER PRIMARY KEY REFERENCES messages (message_no) ON DELETE CASCADE,
    above_no   INTEGER NOT NULL REFERENCES messages (message_no) ON DELETE CASCADE
);
CREATE INDEX idx_message_jumps_above_no ON message_jumps (above_no);
INSERT INTO message_jumps (message_no, above_no)
SELECT message_no, above_no
FROM (
    SELECT m.message_no,
           (
               WITH RECURSIVE up (message_no, levels) AS (
                   SELECT m.message_no, CASE WHEN m.depth % 4096 = 0 THEN 4096 ELSE 64 END
                   UNION ALL
                   SELECT p.parent_no, up.levels - 1
                   FROM up
                   JOIN messages AS p ON p.message_no = up.message_no AND p.parent_no < p.message_no
                   WHERE up.levels > 0
               )
               SELECT up.message_no
               FROM up
               WHERE up.levels = 0
           ) AS above_no
    FROM messages AS m
    WHERE m.depth > 0
      AND m.depth % 64 = 0
) AS found
WHERE above_no IS NOT NULL;
