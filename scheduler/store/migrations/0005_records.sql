-- What the scheduler keeps beside its facts, as JSON by kind and key: who may join, which
-- certificates count. No value holds a secret, at most a hash.

CREATE TABLE records (
    kind  TEXT NOT NULL,
    key   TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID;
