-- +goose Up

-- Who logged what, as runs of entries in the log's order: see
-- logserver/shared_logged.go.

-- The credential that reserved it; empty: the log itself; null: an older version
-- did, which does not say.
ALTER TABLE submissions ADD COLUMN by text;

CREATE TABLE logged (
	first bigint PRIMARY KEY CHECK (first >= 0), -- runs do not overlap
	count bigint NOT NULL CHECK (count > 0),
	by    text NOT NULL,
	at    timestamptz NOT NULL DEFAULT clock_timestamp(),
	late  bool NOT NULL                          -- as in Attributed
);

-- Entries below it are not recorded.
ALTER TABLE log ADD COLUMN logged_from bigint NOT NULL DEFAULT 0;
UPDATE log SET logged_from = integrated;

-- +goose Down
ALTER TABLE log DROP COLUMN logged_from;
DROP TABLE logged;
ALTER TABLE submissions DROP COLUMN by;
