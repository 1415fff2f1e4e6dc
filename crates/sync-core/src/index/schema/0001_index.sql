-- Version 1: everything an index holds, the same on a master and on a replica.
--
-- Every table that holds facts has `sum`: an XXH3 over the table's mark and all other columns of the row (see
-- sums.rs). SQLite's own checks do not notice a flipped bit inside a value, nor an old copy of the
-- database beside a newer log; the sum does, row by row.

-- One row for each path. `path` is the path with `/` as NUL, so that the order of bytes is tree order.
-- WITHOUT ROWID: rows lie in tree order in the one B-tree, and reading a tree is one sequential pass.
CREATE TABLE entries (
    path       BLOB    NOT NULL PRIMARY KEY,
    fact       BLOB    NOT NULL,                -- entry, tuple and marks, see fact.rs
    hash       BLOB    NOT NULL,                -- the entry's 32-byte hash
    changed_in INTEGER NOT NULL,                -- number of the version that last changed the entry; 0: not tracked
    sum        BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

-- What changed since a version, without reading the rest. Partial, so that a replica (which tracks nothing) pays
-- nothing, and neither does a first version: nobody stands at one before it.
CREATE INDEX entries_by_change ON entries (changed_in, path) WHERE changed_in > 1;

-- Paths that went away, and in which version. The oldest are forgotten (meta `oldest_diffable`).
CREATE TABLE tombstones (
    path       BLOB    NOT NULL PRIMARY KEY,
    deleted_in INTEGER NOT NULL,
    sum        BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX tombstones_by_change ON tombstones (deleted_in, path);

-- The history of published manifests. Numbers rise through all lineages of one database.
CREATE TABLE versions (
    number   INTEGER NOT NULL PRIMARY KEY,
    id       BLOB    NOT NULL UNIQUE,
    lineage  BLOB    NOT NULL,
    parent   BLOB,
    root     BLOB    NOT NULL,
    sec      INTEGER NOT NULL,
    nsec     INTEGER NOT NULL,
    entries  INTEGER NOT NULL,
    created  INTEGER NOT NULL,
    updated  INTEGER NOT NULL,
    deleted  INTEGER NOT NULL,
    sum      BLOB    NOT NULL
) STRICT;

-- What each replica said it holds, durable and indexed.
CREATE TABLE acks (
    replica  TEXT    NOT NULL,
    version  BLOB    NOT NULL,
    number   INTEGER NOT NULL,
    root     BLOB    NOT NULL,
    sec      INTEGER NOT NULL,
    nsec     INTEGER NOT NULL,
    exact    INTEGER NOT NULL,
    sum      BLOB    NOT NULL,
    PRIMARY KEY (replica, version)
) STRICT, WITHOUT ROWID;

-- Chunk lists, one blob for each content that is large enough to have one. A rowid table: the blobs are long.
CREATE TABLE contents (
    digest   BLOB    NOT NULL PRIMARY KEY,
    chunks   BLOB    NOT NULL,
    sum      BLOB    NOT NULL
) STRICT;

-- Single values: lineage, stand, the target of an intent, and what the roles keep.
CREATE TABLE meta (
    key      TEXT    NOT NULL PRIMARY KEY,
    value    BLOB    NOT NULL,
    sum      BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

-- The paths a publish is about to touch. Present only between the intent and its end.
CREATE TABLE intent (
    path     BLOB    NOT NULL PRIMARY KEY,
    sum      BLOB    NOT NULL
) STRICT, WITHOUT ROWID;
