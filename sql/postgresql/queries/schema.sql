-- name: note_schema
-- Records the schema version of the database.
INSERT INTO stellarchat (schema, made_at)
VALUES (:schema, clock_timestamp());
