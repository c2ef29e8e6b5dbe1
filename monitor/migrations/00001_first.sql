-- +goose Up

-- One row for each log. verified_* is the cursor; head_* the newest checkpoint
-- accepted (quorum and consistency), at or ahead of the cursor.
CREATE TABLE log (
    id             INTEGER PRIMARY KEY,
    origin         TEXT    NOT NULL UNIQUE,
    alert_from     INTEGER NOT NULL,            -- entries below are history: indexed, not alerted
    verified_size  INTEGER NOT NULL DEFAULT 0,
    verified_root  BLOB    NOT NULL,
    verified_range BLOB    NOT NULL DEFAULT x'', -- compact range hashes, 32 bytes each
    verified_at    INTEGER NOT NULL DEFAULT 0,   -- unix seconds, our clock
    head_size      INTEGER NOT NULL DEFAULT 0,
    head_root      BLOB    NOT NULL,
    head_note      BLOB    NOT NULL DEFAULT x'', -- the signed checkpoint, verbatim
    head_time      INTEGER NOT NULL DEFAULT 0,   -- unix seconds of its quorum; 0 = policy without witnesses
    canary_at      INTEGER NOT NULL DEFAULT 0,   -- time field of the newest canary
    tampering      TEXT    NOT NULL DEFAULT ''   -- why the monitor stands still; '' = it does not
);

CREATE TABLE project (
    id        INTEGER PRIMARY KEY,
    registry  TEXT NOT NULL,
    ecosystem TEXT NOT NULL,
    name      TEXT NOT NULL,
    UNIQUE (name, registry, ecosystem)
);

-- The index. Everything here can be rebuilt from tiles.
CREATE TABLE entry (
    log     INTEGER NOT NULL,
    idx     INTEGER NOT NULL,
    project INTEGER NOT NULL, -- 0 = none
    kind    TEXT    NOT NULL, -- 'unreadable' where the leaf cannot be parsed
    digest  INTEGER NOT NULL, -- first 8 bytes of sha256, 0 = none
    leaf    BLOB    NOT NULL,
    PRIMARY KEY (log, idx)
) WITHOUT ROWID;
CREATE INDEX entry_project ON entry (project, log, idx) WHERE project <> 0;
CREATE INDEX entry_digest ON entry (digest) WHERE digest <> 0;

-- slot -> the entry that holds it. freed: a remove entry was logged for the
-- file, so that the policy after-remove lets it come again.
CREATE TABLE slot (
    log    INTEGER NOT NULL,
    key    BLOB    NOT NULL,
    idx    INTEGER NOT NULL,
    digest BLOB    NOT NULL, -- sha256, else sha512
    freed  INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (log, key)
) WITHOUT ROWID;

CREATE TABLE registry_policy (
    log       INTEGER NOT NULL,
    registry  TEXT    NOT NULL,
    ecosystem TEXT    NOT NULL,
    overwrite TEXT    NOT NULL,
    idx       INTEGER NOT NULL,
    PRIMARY KEY (log, registry, ecosystem)
) WITHOUT ROWID;

-- What is watched, as last loaded from the subscriptions file.
CREATE TABLE subscription (
    name   TEXT PRIMARY KEY,
    watch  TEXT NOT NULL, -- JSON: the projects
    expect TEXT NOT NULL  -- JSON: the expectations
) WITHOUT ROWID;

CREATE TABLE receiver (
    id            INTEGER PRIMARY KEY,
    kind          TEXT    NOT NULL,
    address       TEXT    NOT NULL,
    secret        TEXT    NOT NULL DEFAULT '',
    active        INTEGER NOT NULL DEFAULT 1, -- in the subscriptions file
    operator      INTEGER NOT NULL DEFAULT 0, -- told of failed deliveries
    failures      INTEGER NOT NULL DEFAULT 0, -- in a row
    blocked_until INTEGER NOT NULL DEFAULT 0, -- unix milliseconds
    last_error    TEXT    NOT NULL DEFAULT '',
    last_sent     INTEGER NOT NULL DEFAULT 0, -- unix milliseconds
    UNIQUE (kind, address)
);

-- What one set of receivers gets at once. open: alerts of the same group may
-- still join.
CREATE TABLE notice (
    id           TEXT PRIMARY KEY,
    severity     INTEGER NOT NULL, -- 0 tampering, 1 unexpected, 2 infrastructure
    subscription TEXT    NOT NULL,
    group_key    TEXT    NOT NULL DEFAULT '',
    open         INTEGER NOT NULL DEFAULT 1,
    send_after   INTEGER NOT NULL, -- unix milliseconds
    created      INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX notice_group ON notice (group_key) WHERE open = 1 AND group_key <> '';

-- One finding. A row without a notice was recorded and not sent (no receiver,
-- or one like it was sent lately).
CREATE TABLE alert (
    id          TEXT PRIMARY KEY,
    notice      TEXT    NOT NULL DEFAULT '',
    severity    INTEGER NOT NULL,
    kind        TEXT    NOT NULL,
    log         INTEGER NOT NULL,
    idx         INTEGER,                    -- entry, if it is about one
    quiet_key   TEXT    NOT NULL DEFAULT '',
    body        TEXT    NOT NULL,           -- JSON of alert.Alert
    needs_proof INTEGER NOT NULL DEFAULT 0, -- sent only when 0
    proof       TEXT    NOT NULL DEFAULT '',
    proof_error TEXT    NOT NULL DEFAULT '',
    created     INTEGER NOT NULL            -- unix milliseconds
) WITHOUT ROWID;
CREATE INDEX alert_notice ON alert (notice) WHERE notice <> '';
CREATE INDEX alert_quiet ON alert (quiet_key, created) WHERE quiet_key <> '';
CREATE INDEX alert_needs_proof ON alert (needs_proof) WHERE needs_proof = 1;
CREATE INDEX alert_created ON alert (created);

CREATE TABLE delivery (
    id       INTEGER PRIMARY KEY,
    notice   TEXT    NOT NULL,
    receiver INTEGER NOT NULL,
    severity INTEGER NOT NULL,                -- the notice's: gravest first
    state    TEXT    NOT NULL DEFAULT 'owed', -- owed, sent, failed, dropped
    attempts INTEGER NOT NULL DEFAULT 0,
    error    TEXT    NOT NULL DEFAULT '',
    owed_at  INTEGER NOT NULL,
    done_at  INTEGER NOT NULL DEFAULT 0,
    UNIQUE (notice, receiver)
);
CREATE INDEX delivery_owed ON delivery (receiver, severity, attempts, id) WHERE state = 'owed';

-- Infrastructure troubles in progress, so that a restart neither forgets nor
-- repeats them.
CREATE TABLE condition (
    log     INTEGER NOT NULL,
    kind    TEXT    NOT NULL,
    since   INTEGER NOT NULL, -- unix milliseconds
    told    INTEGER NOT NULL DEFAULT 0,
    detail  TEXT    NOT NULL,
    PRIMARY KEY (log, kind)
) WITHOUT ROWID;

-- +goose Down
DROP TABLE condition; DROP TABLE delivery; DROP TABLE alert; DROP TABLE notice; DROP TABLE receiver;
DROP TABLE subscription; DROP TABLE registry_policy; DROP TABLE slot; DROP TABLE entry; DROP TABLE project; DROP TABLE log;
