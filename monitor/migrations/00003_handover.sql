-- +goose Up

-- A log that has ended, and the one that took over: both halves of the proof,
-- which is verified under the policy at each start.
CREATE TABLE handover (
    log   INTEGER PRIMARY KEY, -- the one that has ended
    next  INTEGER NOT NULL,
    last  TEXT    NOT NULL,    -- tlog-proof of the successor leaf
    first TEXT    NOT NULL     -- tlog-proof of the predecessor leaf
);
CREATE INDEX entry_successor ON entry (log, idx) WHERE kind = 'successor';

-- +goose Down
DROP INDEX entry_successor; DROP TABLE handover;
