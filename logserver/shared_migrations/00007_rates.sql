-- +goose Up

-- What is left of credentials' rates: see logserver/shared_rates.go. It is not
-- worth a write to disk each time: after a crash of the database all begin full.
CREATE UNLOGGED TABLE rates (
	id      text PRIMARY KEY,          -- of the credential
	tokens  double precision NOT NULL, -- left at at
	granted bigint NOT NULL,           -- at its last change
	at      timestamptz NOT NULL
);

-- +goose Down
DROP TABLE rates;
