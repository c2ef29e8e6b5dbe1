-- A fork of two sizes: ours is the smaller note, and the hashes are a root and
-- the consistency proof from it to theirs (c2sp.Evidence, claim inconsistent).
-- size is that of theirs. No ours_size, no hashes: two notes of one size.

-- +goose Up
ALTER TABLE fork ADD COLUMN ours_size INTEGER CHECK (ours_size > 0 AND ours_size < size);
ALTER TABLE fork ADD COLUMN hashes BLOB NOT NULL DEFAULT x'' CHECK (length(hashes) % 32 = 0);

-- What is published stays what it is.

-- +goose StatementBegin
CREATE TRIGGER fork_fixed BEFORE UPDATE ON fork
BEGIN
	SELECT raise(ABORT, 'evidence is never changed');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER fork_never_gone BEFORE DELETE ON fork
BEGIN
	SELECT raise(ABORT, 'evidence is never taken away');
END;
-- +goose StatementEnd
