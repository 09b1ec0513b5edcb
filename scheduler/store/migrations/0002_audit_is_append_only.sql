-- The database itself refuses to change the audit log; only what retention has
-- given up may go. Runners are also found by the id of their container.

ALTER TABLE fleet ADD COLUMN audit_before INTEGER NOT NULL DEFAULT 0;

CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'audit entries are never changed');
END;

CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit
WHEN OLD.at >= (SELECT audit_before FROM fleet)
BEGIN
    SELECT RAISE(ABORT, 'audit entries are kept until retention gives them up');
END;

CREATE INDEX runners_by_container ON runners (container_id) WHERE container_id IS NOT NULL;
