-- Version 2: on a replica, what somebody else added.

-- Paths that came into a replica's tree after it was at a version, and not from its master. Empty again at the next one.
CREATE TABLE additions (
    path     BLOB    NOT NULL PRIMARY KEY,
    sum      BLOB    NOT NULL
) STRICT, WITHOUT ROWID;
