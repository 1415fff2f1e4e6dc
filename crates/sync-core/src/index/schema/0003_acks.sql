-- Version 3: acknowledgements by version.

-- What comes together lies together: all acknowledgements of a version are one page to write, however many replicas there
-- are.
CREATE TABLE acks_by_number (
    number   INTEGER NOT NULL,
    replica  TEXT    NOT NULL,
    version  BLOB    NOT NULL,
    root     BLOB    NOT NULL,
    sec      INTEGER NOT NULL,
    nsec     INTEGER NOT NULL,
    exact    INTEGER NOT NULL,
    sum      BLOB    NOT NULL,
    PRIMARY KEY (number, replica, version)
) STRICT, WITHOUT ROWID;

INSERT INTO acks_by_number SELECT number, replica, version, root, sec, nsec, exact, sum FROM acks;

DROP TABLE acks;

ALTER TABLE acks_by_number RENAME TO acks;
