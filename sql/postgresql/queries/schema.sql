-- name: note_schema
-- The database has this schema from now on.
INSERT INTO stellarchat (schema, made_at)
VALUES (:schema, clock_timestamp());
