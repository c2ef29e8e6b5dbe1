-- The state of one witness. Times are seconds since the epoch; sizes are below 2^63.

-- +goose Up

-- Whose state this is. Written by init, never changed: another key with this
-- history, or this key with another history, could sign backwards.
CREATE TABLE witness_key (
	vkey    TEXT    NOT NULL PRIMARY KEY,
	name    TEXT    NOT NULL,
	raw     BLOB    NOT NULL UNIQUE,
	created INTEGER NOT NULL CHECK (created > 0),
	UNIQUE (name, raw)
) STRICT;

CREATE TABLE log (
	origin      TEXT    NOT NULL PRIMARY KEY CHECK (origin <> ''),
	origin_hash TEXT    NOT NULL UNIQUE CHECK (length(origin_hash) = 64),
	added       INTEGER NOT NULL
) STRICT;

-- A log may have several keys (rotation); a raw key serves one log only.
CREATE TABLE log_key (
	vkey   TEXT    NOT NULL PRIMARY KEY,
	origin TEXT    NOT NULL REFERENCES log (origin),
	raw    BLOB    NOT NULL UNIQUE,
	added  INTEGER NOT NULL
) STRICT;
CREATE INDEX log_key_origin ON log_key (origin);

-- The latest checkpoint cosigned for a log. No row: none yet. The note is the
-- text, the log signatures that verified, and our cosignatures; nothing else.
CREATE TABLE head (
	origin TEXT    NOT NULL PRIMARY KEY REFERENCES log (origin),
	size   INTEGER NOT NULL CHECK (size >= 0),
	root   BLOB    NOT NULL CHECK (length(root) = 32),
	time   INTEGER NOT NULL CHECK (time > 0),
	note   BLOB    NOT NULL
) STRICT;

-- Two log-signed notes of one size and different roots. Evidence: never deleted.
CREATE TABLE fork (
	id     INTEGER PRIMARY KEY,
	origin TEXT    NOT NULL REFERENCES log (origin),
	size   INTEGER NOT NULL CHECK (size >= 0),
	ours   BLOB    NOT NULL,
	theirs BLOB    NOT NULL,
	seen   INTEGER NOT NULL,
	UNIQUE (origin, size)
) STRICT;

-- What the program already checks, the database refuses once more: a head never
-- shrinks, never changes its root at one size, never goes back in time, never goes away.

-- +goose StatementBegin
CREATE TRIGGER head_never_back BEFORE UPDATE ON head
WHEN new.origin <> old.origin OR new.size < old.size OR new.time < old.time
	OR (new.size = old.size AND new.root <> old.root)
BEGIN
	SELECT raise(ABORT, 'a witness never signs backwards');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER head_never_gone BEFORE DELETE ON head
BEGIN
	SELECT raise(ABORT, 'a witness never forgets');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER witness_key_fixed BEFORE UPDATE ON witness_key
BEGIN
	SELECT raise(ABORT, 'the state of a witness belongs to its first key');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER witness_key_never_gone BEFORE DELETE ON witness_key
BEGIN
	SELECT raise(ABORT, 'the state of a witness belongs to its first key');
END;
-- +goose StatementEnd
