-- How often the heads have been written. The mark, on another file system,
-- remembers it: a database that counts less is an old copy.

-- +goose Up
CREATE TABLE generation (n INTEGER NOT NULL) STRICT;
INSERT INTO generation VALUES (0);

-- +goose StatementBegin
CREATE TRIGGER generation_never_back BEFORE UPDATE ON generation
WHEN new.n <= old.n
BEGIN
	SELECT raise(ABORT, 'a witness never counts backwards');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER generation_never_gone BEFORE DELETE ON generation
BEGIN
	SELECT raise(ABORT, 'a witness never forgets');
END;
-- +goose StatementEnd
