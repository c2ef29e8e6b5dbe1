-- +goose Up

-- What all frontends of one log share. See logserver/shared.go for what each
-- table is for, and docs/running.md for what who can change it can do at most.

CREATE TABLE log (
	one        bool PRIMARY KEY DEFAULT true CHECK (one),
	identity   text NOT NULL,              -- origin and keys, as in log.json
	engine     text NOT NULL,              -- what orders its entries: another one is refused
	integrated bigint NOT NULL DEFAULT 0,  -- entries [0, integrated) have tiles, and are applied to slots and policies
	published  bigint NOT NULL DEFAULT 0,  -- size of checkpoint
	checkpoint bytea NOT NULL DEFAULT '',  -- the newest published one, with its cosignatures
	-- Submissions are taken while opened is when this database server started: a
	-- publisher made sure of the log since. A standby that is promoted, or a
	-- restored copy, started at another time.
	opened     text NOT NULL DEFAULT '',
	latched    text NOT NULL DEFAULT '',   -- why a guard failed
	trouble    text NOT NULL DEFAULT ''    -- why the last round published nothing
);

-- The anchor: what the log signed last, and the fencing token of who may sign.
CREATE TABLE anchor (
	one    bool PRIMARY KEY DEFAULT true CHECK (one),
	origin text NOT NULL,
	size   bigint NOT NULL,
	root   bytea NOT NULL CHECK (length(root) = 32),
	fence  bigint NOT NULL,                -- raised by every election
	holder text NOT NULL DEFAULT ''        -- for people
);

-- What is in the log: follows from entries [0, log.integrated).
CREATE TABLE slots (
	key     bytea PRIMARY KEY,             -- see slotKey
	digest  bytea NOT NULL,
	idx     bigint NOT NULL,
	removed bool NOT NULL DEFAULT false
);
CREATE TABLE policies (
	registry  text NOT NULL,
	ecosystem text NOT NULL,
	overwrite text NOT NULL,
	PRIMARY KEY (registry, ecosystem)
);

-- What is on its way (idx is null), and for a while what has arrived.
CREATE TABLE submissions (
	id     bytea PRIMARY KEY CHECK (length(id) = 32), -- the engine takes each once
	key    bytea NOT NULL,
	digest bytea NOT NULL,
	leaf   bytea NOT NULL,
	alone  bytea,                          -- the need that it has alone: see needs
	policy bytea,                          -- the policy that it goes by
	idx    bigint,
	at     timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX submissions_key ON submissions (key) WHERE idx IS NULL;
CREATE INDEX submissions_alone ON submissions (alone) WHERE idx IS NULL AND alone IS NOT NULL;
CREATE INDEX submissions_policy ON submissions (policy) WHERE idx IS NULL AND policy IS NOT NULL;
CREATE INDEX submissions_at ON submissions (at) WHERE idx IS NULL;
CREATE INDEX submissions_idx ON submissions (idx) WHERE idx IS NOT NULL;

-- Needs that somebody waits to have alone: nothing new overtakes them. A row
-- outlives its frontend by a moment.
CREATE TABLE waiting (
	need  bytea NOT NULL,
	owner bytea NOT NULL,
	until timestamptz NOT NULL,
	PRIMARY KEY (need, owner)
);

CREATE TABLE credentials (
	one     bool PRIMARY KEY DEFAULT true CHECK (one),
	body    bytea NOT NULL,
	version bigint NOT NULL
);
INSERT INTO credentials (body, version) VALUES ('', 0);

-- +goose Down
DROP TABLE credentials, waiting, submissions, policies, slots, anchor, log;
