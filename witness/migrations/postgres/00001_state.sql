-- The state of one witness with several instances. Tables as in SQLite; rowid is
-- there for the order in which rows were added. Times are seconds since the
-- epoch; sizes are below 2^63.

-- +goose Up

CREATE TABLE witness_key (
	rowid   bigint GENERATED ALWAYS AS IDENTITY,
	vkey    text   COLLATE "C" NOT NULL PRIMARY KEY,
	name    text   COLLATE "C" NOT NULL,
	raw     bytea  NOT NULL UNIQUE,
	created bigint NOT NULL CHECK (created > 0)
);

CREATE TABLE log (
	origin      text   COLLATE "C" NOT NULL PRIMARY KEY CHECK (origin <> ''),
	origin_hash text   COLLATE "C" NOT NULL UNIQUE CHECK (length(origin_hash) = 64),
	added       bigint NOT NULL
);

CREATE TABLE log_key (
	rowid  bigint GENERATED ALWAYS AS IDENTITY,
	vkey   text   COLLATE "C" NOT NULL PRIMARY KEY,
	origin text   COLLATE "C" NOT NULL REFERENCES log (origin),
	raw    bytea  NOT NULL UNIQUE,
	added  bigint NOT NULL
);
CREATE INDEX log_key_origin ON log_key (origin);

CREATE TABLE head (
	origin text   COLLATE "C" NOT NULL PRIMARY KEY REFERENCES log (origin),
	size   bigint NOT NULL CHECK (size >= 0),
	root   bytea  NOT NULL CHECK (length(root) = 32),
	time   bigint NOT NULL CHECK (time > 0),
	note   bytea  NOT NULL
);

CREATE TABLE fork (
	id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	origin    text   COLLATE "C" NOT NULL REFERENCES log (origin),
	size      bigint NOT NULL CHECK (size >= 0),
	ours_size bigint CHECK (ours_size > 0 AND ours_size < size),
	ours      bytea  NOT NULL,
	theirs    bytea  NOT NULL,
	hashes    bytea  NOT NULL DEFAULT '' CHECK (length(hashes) % 32 = 0),
	seen      bigint NOT NULL,
	UNIQUE (origin, size)
);

CREATE TABLE generation (n bigint NOT NULL);
INSERT INTO generation VALUES (0);

-- Who serves this state. Each has a mark of its own; a row goes away only when
-- an operator vouches that its mark is not needed any more.
CREATE TABLE instance (
	id        text   COLLATE "C" NOT NULL PRIMARY KEY, -- stands in its mark
	host      text   NOT NULL,                         -- for people
	joined    bigint NOT NULL,                         -- generation that it came with
	seen      bigint NOT NULL,                         -- a generation that its mark is not below
	confirmed text   COLLATE "C" NOT NULL              -- server on which it last found its mark not ahead
);

-- What the program already checks, the database refuses once more.

-- +goose StatementBegin
CREATE FUNCTION head_never_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF new.origin <> old.origin OR new.size < old.size OR new.time < old.time OR (new.size = old.size AND new.root <> old.root) THEN
		RAISE EXCEPTION 'a witness never signs backwards';
	END IF;
	RETURN new;
END $$;
-- +goose StatementEnd
CREATE TRIGGER head_never_back BEFORE UPDATE ON head FOR EACH ROW EXECUTE FUNCTION head_never_back();

-- +goose StatementBegin
CREATE FUNCTION generation_never_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF new.n <= old.n THEN
		RAISE EXCEPTION 'a witness never counts backwards';
	END IF;
	RETURN new;
END $$;
-- +goose StatementEnd
CREATE TRIGGER generation_never_back BEFORE UPDATE ON generation FOR EACH ROW EXECUTE FUNCTION generation_never_back();

-- +goose StatementBegin
CREATE FUNCTION never_gone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'a witness never forgets';
END $$;
-- +goose StatementEnd
CREATE TRIGGER head_never_gone BEFORE DELETE OR TRUNCATE ON head EXECUTE FUNCTION never_gone();
CREATE TRIGGER generation_never_gone BEFORE DELETE OR TRUNCATE ON generation EXECUTE FUNCTION never_gone();
CREATE TRIGGER fork_fixed BEFORE UPDATE OR DELETE OR TRUNCATE ON fork EXECUTE FUNCTION never_gone();
CREATE TRIGGER witness_key_fixed BEFORE UPDATE OR DELETE OR TRUNCATE ON witness_key EXECUTE FUNCTION never_gone();
