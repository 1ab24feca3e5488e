-- Pieces of replies in progress lie in the order in which they came: a turn of the recorder, which brings one of each
-- stream, writes few pages. They refer to their exchange by its number, and go some moments after it has ended, many
-- together.
CREATE TABLE fragments_as_they_came (
    fragment_no INTEGER PRIMARY KEY,
    exchange_no INTEGER NOT NULL REFERENCES exchanges (exchange_no) ON DELETE CASCADE,
    sequence    INTEGER NOT NULL,                      -- of its exchange's, from 0
    data        BLOB NOT NULL,                         -- events that mean what upstream sent
    UNIQUE (exchange_no, sequence)
);
INSERT INTO fragments_as_they_came (exchange_no, sequence, data)
SELECT e.exchange_no, f.sequence, f.data
FROM exchange_fragments AS f
JOIN exchanges AS e ON e.exchange_id = f.exchange_id
ORDER BY e.exchange_no, f.sequence;
DROP TABLE exchange_fragments;
ALTER TABLE fragments_as_they_came RENAME TO exchange_fragments;
