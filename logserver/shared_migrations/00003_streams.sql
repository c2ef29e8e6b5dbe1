-- +goose Up

-- How far named streams have come: see logserver/shared_streams.go.
CREATE TABLE streams (
	key      bytea PRIMARY KEY CHECK (length(key) = 24), -- of the credential and the stream's name
	position bigint NOT NULL,                            -- so many entries have been answered
	least    bigint NOT NULL,                            -- entries that the log must have for this to be so
	moved    timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- +goose Down
DROP TABLE streams;
