-- Which upstream was asked, at last: by number, since the same few addresses stand in every row.
CREATE TABLE upstreams (
    upstream_no INTEGER PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE                   -- its address, without credentials
);

ALTER TABLE exchanges ADD COLUMN upstream_no INTEGER REFERENCES upstreams (upstream_no);  -- NULL: none was, or nobody knows
