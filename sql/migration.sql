-- Copying whole tables from one engine to the other. {table}, {columns} and so on stand for names of our own.

-- name: count_rows
SELECT COUNT(*)
FROM {table};

-- name: list_rows
SELECT {columns}
FROM {table};

-- name: delete_rows
DELETE FROM {table};

-- name: insert_row
INSERT INTO {table} ({columns})
VALUES ({places});

-- name: copy_rows
COPY {table} ({columns}) FROM STDIN;

-- name: delete_sequence
DELETE FROM sqlite_sequence
WHERE name = :table_name;

-- name: insert_sequence
INSERT INTO sqlite_sequence (name, seq)
VALUES (:table_name, :number);

-- name: list_column_kinds
SELECT table_name, column_name, data_type, is_identity
FROM information_schema.columns
WHERE table_schema = current_schema();

-- name: set_sequence
-- To the largest number in use, or that has been in use.
SELECT setval(pg_get_serial_sequence('{table}', '{columns}'), GREATEST(1, found.number), found.number > 0)
FROM (SELECT GREATEST({number}, COALESCE(MAX({columns}), 0)) AS number FROM {table}) AS found;
