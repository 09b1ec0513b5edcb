-- Bearer tokens by their hash, and an audit log in which each row's hash covers
-- the row before it. Rows of earlier releases get their hashes when the store is
-- opened; that is the only change the triggers let through.

CREATE TABLE tokens (
    id           TEXT    PRIMARY KEY,
    name         TEXT    NOT NULL,
    -- SHA-256 of the whole token; the token itself is nowhere.
    hash         BLOB    NOT NULL CHECK (length(hash) = 32),
    role         TEXT    NOT NULL,
    -- Empty for the whole fleet, else owner or owner/name.
    scope        TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    created_by   TEXT    NOT NULL,
    expires_at   INTEGER,
    last_used_at INTEGER,
    revoked_at   INTEGER
) STRICT;

ALTER TABLE audit ADD COLUMN kind TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN credential TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN address TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN surface TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN trace TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN hash BLOB NOT NULL DEFAULT x'';

-- The last row that retention gave up, and the last one written. No hash: the
-- log begins (or ends) at its first row, whose predecessor is made of the fleet's id.
ALTER TABLE fleet ADD COLUMN audit_pruned_id INTEGER NOT NULL DEFAULT 0;
ALTER TABLE fleet ADD COLUMN audit_pruned_hash BLOB NOT NULL DEFAULT x'';
ALTER TABLE fleet ADD COLUMN audit_last_id INTEGER NOT NULL DEFAULT 0;
ALTER TABLE fleet ADD COLUMN audit_last_hash BLOB NOT NULL DEFAULT x'';
ALTER TABLE fleet ADD COLUMN audit_is_chained INTEGER NOT NULL DEFAULT 0;

DROP TRIGGER audit_is_never_changed;
CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit
WHEN OLD.hash <> x'' OR (SELECT audit_is_chained FROM fleet) OR NEW.id <> OLD.id
     OR NEW.at <> OLD.at OR NEW.actor <> OLD.actor OR NEW.action <> OLD.action
     OR NEW.subject <> OLD.subject OR NEW.outcome <> OLD.outcome
     OR NEW.detail <> OLD.detail OR NEW.request_id <> OLD.request_id
BEGIN
    SELECT RAISE(ABORT, 'audit entries are never changed');
END;
