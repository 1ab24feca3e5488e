-- What was used, a row a day, user, model and endpoint: so that a page of usage never looks through the exchanges.
-- Counted up in the transaction that stores an exchange's end. What is pruned stays counted; a user's rows go with it.
CREATE TABLE usage_days (
    day               TEXT NOT NULL,                   -- of the request, UTC: 2026-11-27
    user_no           INTEGER NOT NULL REFERENCES users (user_no) ON DELETE CASCADE,
    model             TEXT NOT NULL,                   -- the one that answered, else the one asked for; '' for none
    endpoint          TEXT NOT NULL,
    requests          INTEGER NOT NULL,
    incomplete        INTEGER NOT NULL,
    failed            INTEGER NOT NULL,
    prompt_tokens     INTEGER NOT NULL,
    cached_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    reasoning_tokens  INTEGER NOT NULL,
    first_token_50    INTEGER NOT NULL,                -- replies whose first token came within so many milliseconds, and
    first_token_100   INTEGER NOT NULL,                -- not within the next smaller number
    first_token_200   INTEGER NOT NULL,
    first_token_400   INTEGER NOT NULL,
    first_token_800   INTEGER NOT NULL,
    first_token_1600  INTEGER NOT NULL,
    first_token_3200  INTEGER NOT NULL,
    first_token_6400  INTEGER NOT NULL,
    first_token_12800 INTEGER NOT NULL,
    first_token_25600 INTEGER NOT NULL,
    first_token_more  INTEGER NOT NULL,
    PRIMARY KEY (day, user_no, model, endpoint)
) WITHOUT ROWID;
CREATE INDEX idx_usage_days_user_no ON usage_days (user_no);

INSERT INTO usage_days (day, user_no, model, endpoint, requests, incomplete, failed, prompt_tokens, cached_tokens,
                        completion_tokens, reasoning_tokens, first_token_50, first_token_100, first_token_200,
                        first_token_400, first_token_800, first_token_1600, first_token_3200, first_token_6400,
                        first_token_12800, first_token_25600, first_token_more)
SELECT substr(e.created_at, 1, 10), e.user_no, COALESCE(e.model, p.model, ''), p.endpoint, COUNT(*),
       SUM(e.status = 'incomplete'), SUM(e.status = 'failed'),
       COALESCE(SUM(e.prompt_tokens), 0), COALESCE(SUM(e.cached_tokens), 0),
       COALESCE(SUM(e.completion_tokens), 0), COALESCE(SUM(e.reasoning_tokens), 0),
       COUNT(CASE WHEN e.time_to_first_token_ms <= 50 THEN 1 END),
       COUNT(CASE WHEN e.time_to_first_token_ms BETWEEN 51 AND 100 THEN 1 END),
       COUNT(CASE WHEN e.time_to_first_token_ms BETWEEN 101 AND 200 THEN 1 END),
       COUNT(CASE WHEN e.time_to_first_token_ms BETWEEN 201 AND 400 THEN 1 END),
       COUNT(CASE WHEN e.time_to_first_token_ms BETWEEN 401 AND 800 THEN 1 END),
       COUNT(CASE WHEN e.time_to_first_token_ms BETWEEN 801 AND 1600 THEN 1 END),
       COUNT(CASE WHEN e.time_to_first_token_ms BETWEEN 1601 AND 3200 THEN 1 END),
       COUNT(CASE WHEN e.time_to_first_token_ms BETWEEN 3201 AND 6400 THEN 1 END),
       COUNT(CASE WHEN e.time_to_first_token_ms BETWEEN 6401 AND 12800 THEN 1 END),
       COUNT(CASE WHEN e.time_to_first_token_ms BETWEEN 12801 AND 25600 THEN 1 END),
       COUNT(CASE WHEN e.time_to_first_token_ms > 25600 THEN 1 END)
FROM exchanges AS e
JOIN parameters AS p ON p.parameters_no = e.parameters_no
JOIN users AS u ON u.user_no = e.user_no
WHERE e.status <> 'in_progress'
GROUP BY substr(e.created_at, 1, 10), e.user_no, COALESCE(e.model, p.model, ''), p.endpoint;

-- Browsers that are logged in to the history page. A session is good as long as its key is; which key, its hash says.
CREATE TABLE web_sessions (
    token_hash  BLOB PRIMARY KEY,                      -- SHA-256 of the cookie
    key_hash    BLOB NOT NULL,                         -- of the key it was opened with; api_keys has the rest, or the
                                                       -- settings where it is the admin key from outside
    created_at  DATETIME NOT NULL,
    expires_at  DATETIME NOT NULL                      -- moves on while it is used, up to a few days after created_at
) WITHOUT ROWID;
CREATE INDEX idx_web_sessions_key_hash ON web_sessions (key_hash, created_at);
CREATE INDEX idx_web_sessions_expires_at ON web_sessions (expires_at);
