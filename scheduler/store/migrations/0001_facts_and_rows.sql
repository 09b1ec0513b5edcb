-- Facts are the truth; jobs and runners are rows derived from them for people.
-- Times are milliseconds since 1970-01-01 UTC.

CREATE TABLE fleet (
    one               INTEGER PRIMARY KEY CHECK (one = 1),
    fleet_id          TEXT    NOT NULL,
    epoch             INTEGER NOT NULL DEFAULT 0,
    sequence          INTEGER NOT NULL DEFAULT 0,
    snapshot_sequence INTEGER NOT NULL DEFAULT 0
) STRICT;

-- One row per commit, keyed by the sequence of its last fact.
CREATE TABLE facts (
    last  INTEGER PRIMARY KEY,
    at    INTEGER NOT NULL,
    batch BLOB    NOT NULL
) STRICT;

-- In force once fleet.snapshot_sequence names it.
CREATE TABLE snapshot_parts (
    sequence INTEGER NOT NULL,
    part     INTEGER NOT NULL,
    batch    BLOB    NOT NULL,
    PRIMARY KEY (sequence, part)
) STRICT;

CREATE TABLE jobs (
    id           INTEGER PRIMARY KEY,
    run_id       INTEGER NOT NULL,
    attempt      INTEGER NOT NULL,
    repository   TEXT    NOT NULL,
    scope        TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    workflow     TEXT    NOT NULL,
    labels       TEXT    NOT NULL,
    -- 0 waiting, 1 queued, 2 in progress, 3 completed
    phase        INTEGER NOT NULL,
    conclusion   TEXT,
    runner       TEXT,
    ours         INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    started_at   INTEGER,
    completed_at INTEGER,
    html_url     TEXT    NOT NULL,
    changed_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX jobs_by_repository ON jobs (repository, id);
CREATE INDEX jobs_by_phase ON jobs (phase, id) WHERE phase < 3;
CREATE INDEX jobs_by_end ON jobs (completed_at) WHERE phase = 3;

CREATE TABLE runners (
    name          TEXT    PRIMARY KEY,
    node          TEXT    NOT NULL,
    pool          TEXT    NOT NULL,
    scope         TEXT    NOT NULL,
    repository    TEXT,
    labels        TEXT    NOT NULL,
    cpu_millis    INTEGER NOT NULL,
    memory_bytes  INTEGER NOT NULL,
    gpus          INTEGER NOT NULL,
    gpu_uuids     TEXT    NOT NULL,
    image         TEXT    NOT NULL,
    profile       TEXT    NOT NULL,
    -- 0 reserved, 1 registered, 2 starting, 3 idle, 4 busy, 5 stopping, 6 retired
    stage         INTEGER NOT NULL,
    github_id     INTEGER,
    container_id  TEXT,
    job           INTEGER,
    placed_at     INTEGER NOT NULL,
    registered_at INTEGER,
    online_at     INTEGER,
    busy_at       INTEGER,
    stopping_at   INTEGER,
    stop_reason   TEXT,
    retired_at    INTEGER,
    retire_reason TEXT,
    exit_code     INTEGER,
    exit_cause    TEXT,
    exit_detail   TEXT,
    cpu_ns        INTEGER,
    peak_memory   INTEGER
) STRICT;
CREATE INDEX runners_by_time ON runners (placed_at, name);
CREATE INDEX runners_alive ON runners (placed_at, name) WHERE stage < 6;
CREATE INDEX runners_by_end ON runners (retired_at) WHERE stage = 6;

CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE audit (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    at         INTEGER NOT NULL,
    actor      TEXT    NOT NULL,
    action     TEXT    NOT NULL,
    subject    TEXT    NOT NULL,
    outcome    TEXT    NOT NULL,
    detail     TEXT    NOT NULL,
    request_id TEXT    NOT NULL
) STRICT;
CREATE INDEX audit_by_time ON audit (at);
