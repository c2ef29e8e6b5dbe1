-- +goose Up

-- What an upload or baseline on its way will be found by once it is in the log:
-- a status that names it waits for it. See announces in logserver/shared_slots.go.
ALTER TABLE submissions ADD COLUMN mark bytea;
CREATE INDEX submissions_mark ON submissions (mark) WHERE idx IS NULL AND mark IS NOT NULL;

-- +goose Down
DROP INDEX submissions_mark;
ALTER TABLE submissions DROP COLUMN mark;
