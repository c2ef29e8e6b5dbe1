-- +goose NO TRANSACTION
-- +goose Up

-- Rewrites the file, so that no account name is left in its free space.
VACUUM;

-- +goose Down
SELECT 1;
