-- +goose Up

-- The successor leaf that the log ends with, once it is integrated: it follows
-- from the entries. The operator's decision is in identity, as in log.json.
ALTER TABLE log ADD COLUMN ended text NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE log DROP COLUMN ended;
