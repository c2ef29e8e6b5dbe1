-- +goose Up

-- Which registry this directory belongs to; one row.
CREATE TABLE gateway (
	registry TEXT NOT NULL
);

-- Uploads on their way to the index, whose answer is not known yet. A row is
-- durable before the index hears of the upload, and goes when it has answered:
-- to files if it accepted, nowhere if it refused.
CREATE TABLE attempts (
	id         INTEGER PRIMARY KEY AUTOINCREMENT,
	state      TEXT NOT NULL,              -- received | forwarding
	project    TEXT NOT NULL,
	file       TEXT NOT NULL,
	sha256     TEXT NOT NULL,
	entry      BLOB NOT NULL,              -- the leaf, if the index accepts
	listed     TEXT NOT NULL,              -- the index's page before: no | same | other
	created_at INTEGER NOT NULL,           -- all times: Unix milliseconds
	tries      INTEGER NOT NULL DEFAULT 0, -- of asking the index what became of it
	next_try   INTEGER NOT NULL DEFAULT 0,
	last_error TEXT NOT NULL DEFAULT ''
);
CREATE INDEX attempts_by_project ON attempts (project);
CREATE INDEX attempts_due ON attempts (state, next_try);

-- Files that the index accepted, once for each content.
CREATE TABLE files (
	seq         INTEGER PRIMARY KEY AUTOINCREMENT,
	state       TEXT NOT NULL,             -- accepted | submitted | proven | conflict
	project     TEXT NOT NULL,
	file        TEXT NOT NULL,
	sha256      TEXT NOT NULL,
	entry       BLOB NOT NULL,             -- the leaf
	listed      TEXT NOT NULL,             -- as in attempts
	rank        INTEGER NOT NULL,          -- of two contents of one name, the later accepted has the higher
	accepted_at INTEGER NOT NULL,
	tries       INTEGER NOT NULL DEFAULT 0,-- of logging it
	next_try    INTEGER NOT NULL DEFAULT 0,
	last_error  TEXT NOT NULL DEFAULT '',
	first_index INTEGER NOT NULL DEFAULT 0,-- conflict: the entry that holds the name
	log_index   INTEGER NOT NULL DEFAULT 0,-- proven: where it is logged
	proof       BLOB,                      -- proven: the first proof, never replaced
	proven_at   INTEGER NOT NULL DEFAULT 0,
	UNIQUE (project, file, sha256)
);
CREATE INDEX files_due ON files (state, next_try);
CREATE INDEX files_by_rank ON files (rank);

-- The salts of uploader pseudonyms. Deleting a row makes what was logged for
-- that account in that project anonymous for ever.
CREATE TABLE salts (
	registry TEXT NOT NULL,
	project  TEXT NOT NULL,
	account  TEXT NOT NULL,
	salt     BLOB NOT NULL,
	PRIMARY KEY (registry, project, account)
) WITHOUT ROWID;

-- +goose Down
DROP TABLE salts;
DROP TABLE files;
DROP TABLE attempts;
DROP TABLE gateway;
