-- +goose Up

-- New entries of a day, for credentials that have a quota: see
-- logserver/shared_slots.go.
CREATE TABLE quotas (
	day    bigint NOT NULL,           -- since 1970 (UTC), by this server's clock
	key    bytea NOT NULL,            -- of the credential and the project
	used   bigint NOT NULL,
	before bigint NOT NULL DEFAULT 0, -- what used was before its last change
	most   bigint NOT NULL,           -- the quota at its last change
	PRIMARY KEY (day, key)
);

-- +goose Down
DROP TABLE quotas;
