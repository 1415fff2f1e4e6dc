//! Section 4: the index is a cache. Deleted, restored from an old copy, truncated, one bit flipped or filled with noise,
//! on either side or both, a push still ends exact and says that it rebuilt it.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test drives the disk itself, and its failure is its report"
)]

mod support;

use std::path::Path;

use support::damage::{Damage, apply, copy};
use support::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Master,
    Replica,
    Both,
}

const SIDES: [Side; 3] = [Side::Master, Side::Replica, Side::Both];

/// A master and a daemon that have three versions behind them, with index copies of the first.
struct Pair {
    scratch: Scratch,
    daemon: Daemon,
    master: std::path::PathBuf,
    old_master: damage::Copy,
    old_replica: damage::Copy,
}

impl Pair {
    fn new() -> Pair {
        let scratch = Scratch::new();
        let (src, dst) = (scratch.src(), scratch.dst());
        many(&src, 120, 5);
        link_to("d000", src.join("link"));
        write(src.join("hard1"), b"hard");
        hard_link(src.join("hard1"), src.join("hard2"));
        mkdir(&dst);
        let daemon = Daemon::start(&scratch, "r", &[("www", &dst)]);
        let master = scratch.path("m");
        daemon.pair(&master);
        push_with(&master, &src, &[daemon.dest("www")]).ok();
        // The daemon runs: its copy is a database with its log, as a careless backup would take it.
        let (old_master, old_replica) = (copy(&master), copy(&daemon.state));
        let pair = Pair { scratch, daemon, master, old_master, old_replica };
        pair.edit(1);
        pair.push().code(0);
        pair.edit(2);
        pair.push().code(0);
        assert_exact(&pair.scratch.src(), &pair.scratch.dst());
        pair
    }

    fn push(&self) -> Ran {
        push_with(&self.master, &self.scratch.src(), &[self.daemon.dest("www")]).run()
    }

    /// Changes the source: a content of the same size and mtime, a new one, a removed one, a move, a mode.
    fn edit(&self, round: u64) {
        let src = self.scratch.src();
        let file = |i: u64| src.join(format!("d000/f{i:05}"));
        let (s, n) = mtime_of(file(1));
        let length = usize::try_from(std::fs::metadata(file(1)).unwrap().len()).unwrap();
        write(file(1), noise(1000 + round, length));
        set_mtime(file(1), s, n);
        write(src.join(format!("new{round}")), noise(round, 3000));
        remove(&file(10 + round));
        std::fs::rename(file(30 + round), src.join(format!("moved{round}"))).unwrap();
        set_mode(file(5), if round.is_multiple_of(2) { 0o600 } else { 0o640 });
    }

    /// Changes the replica behind its back, where an old index would believe it knows better.
    fn drift(&self, round: u64) {
        let dst = self.scratch.dst();
        let file = dst.join("d001/f00060");
        let (s, n) = mtime_of(&file);
        let length = usize::try_from(std::fs::metadata(&file).unwrap().len()).unwrap();
        write(&file, noise(9000 + round, length));
        set_mtime(&file, s, n);
        write(dst.join(format!("extra{round}")), b"extra");
    }

    fn damage(&mut self, damage: Damage, side: Side, seed: u64) {
        self.daemon.kill();
        if side != Side::Replica {
            apply(damage, &self.master, &self.old_master, seed);
        }
        if side != Side::Master {
            apply(damage, &self.daemon.state, &self.old_replica, seed);
        }
        self.daemon.up();
    }

    #[track_caller]
    fn push_is_exact(&self, what: &str) -> Ran {
        let ran = self.push();
        assert!(ran.status.success(), "{what}: the push failed\n{ran}");
        let (want, have) = (snapshot(&self.scratch.src()), snapshot(&self.scratch.dst()));
        assert_no_differences(what, &differences(&want, &have));
        assert_no_differences(what, &leftovers(&have));
        ran
    }
}

/// For every side: damage it, change both trees, push, compare; then the next push has nothing to do.
fn survives(damage: Damage) {
    let mut pair = Pair::new();
    for (round, side) in SIDES.into_iter().enumerate() {
        let round = round as u64;
        let what = format!("{damage:?} on {side:?}");
        let log_start = pair.daemon.logged().len();
        pair.damage(damage, side, 31 * round + 7);
        pair.edit(10 + round);
        pair.drift(round);
        let ran = pair.push_is_exact(&what);
        let said = ran.said() + &pair.daemon.logged()[log_start..];
        let must_say = [Damage::Deleted, Damage::Empty, Damage::Noise, Damage::Truncated].contains(&damage);
        assert!(!must_say || said.to_lowercase().contains("rebuil"), "{what}: nobody says it was rebuilt\n{said}");
        let before = snapshot(&pair.scratch.dst());
        let again = pair.push_is_exact(&format!("{what}, second push"));
        let again = again.says("nothing");
        assert_untouched(&before, &snapshot(&pair.scratch.dst()));
        drop(again);
    }
}

#[test]
fn a_deleted_index_is_rebuilt() {
    survives(Damage::Deleted);
}

#[test]
fn an_emptied_index_is_rebuilt() {
    survives(Damage::Empty);
}

#[test]
fn a_truncated_index_is_rebuilt() {
    survives(Damage::Truncated);
}

#[test]
fn an_index_of_noise_is_rebuilt() {
    survives(Damage::Noise);
}

#[test]
fn an_old_copy_with_its_log_is_no_danger() {
    survives(Damage::OldWithLog);
}

#[test]
fn an_old_copy_without_its_log_is_no_danger() {
    survives(Damage::OldWithoutLog);
}

#[test]
fn an_old_copy_beside_a_newer_log_is_no_danger() {
    survives(Damage::OldBesideNewLog);
}

#[test]
fn an_index_whose_log_is_lost_is_no_danger() {
    survives(Damage::LogLost);
}

#[test]
fn one_flipped_bit_anywhere_is_no_danger() {
    let mut pair = Pair::new();
    for seed in 0..24_u64 {
        let side = SIDES[usize::try_from(seed % 3).unwrap()];
        pair.damage(Damage::OneBit, side, seed * 7_368_787 + 13);
        pair.drift(seed);
        if seed % 4 == 0 {
            append(pair.scratch.src().join("d001/f00070"), b"x");
        }
        pair.push_is_exact(&format!("bit flip {seed} on {side:?}"));
    }
}

/// No look at the tree reads these: the damage shows when the new version is being committed, and replicas prepare it.
#[test]
fn damage_that_only_a_commit_meets_is_mended_by_the_same_push() {
    let pair = Pair::new();
    for (round, table) in ["contents", "entries_by_change", "tombstones"].into_iter().enumerate() {
        write(pair.scratch.src().join("big"), noise(round as u64, 300_000));
        pair.push_is_exact("before the damage");
        flip_a_bit_in_the_root_page_of(table, &pair.master);
        write(pair.scratch.src().join("big"), noise(100 + round as u64, 310_000));
        pair.edit(10 + round as u64);
        let ran = pair.push_is_exact(table);
        let said = format!("{}{}", ran.out(), ran.err()).to_lowercase();
        assert!(said.contains("rebuil"), "{table}: nobody says it was rebuilt\n{ran}");
    }
}

fn flip_a_bit_in_the_root_page_of(table: &str, state: &std::path::Path) {
    let files = damage::index_files(state);
    let db = files.iter().find(|file| file.extension().is_some_and(|end| end == "db")).unwrap();
    let conn = rusqlite::Connection::open(db).unwrap();
    let page: u32 =
        conn.query_row("SELECT rootpage FROM sqlite_master WHERE name = ?1", [table], |row| row.get(0)).unwrap();
    let size: u32 = conn.pragma_query_value(None, "page_size", |row| row.get(0)).unwrap();
    drop(conn);
    let mut bytes = std::fs::read(db).unwrap();
    // The byte that tells the kind of page.
    bytes[((page - 1) * size) as usize] ^= 0x40;
    std::fs::write(db, bytes).unwrap();
}

#[test]
fn an_old_source_with_an_old_index_takes_the_replica_back() {
    // Source and index restored together from one backup: consistent with each other, older than the replica.
    let mut pair = Pair::new();
    copy_tree(&pair.scratch.src(), &pair.scratch.path("backup"));
    let kept = copy(&pair.master);
    pair.edit(3);
    pair.push_is_exact("before the restore");
    remove(&pair.scratch.src());
    copy_tree(&pair.scratch.path("backup"), &pair.scratch.path("src"));
    pair.old_master = kept;
    pair.damage(Damage::OldWithLog, Side::Master, 0);
    pair.push_is_exact("after the restore");
    pair.edit(4);
    pair.push_is_exact("after the restore and an edit");
}

#[test]
fn a_restored_replica_with_its_restored_index_catches_up() {
    // Tree and index of the replica from one backup: what the index says of the disk is true and old.
    let mut pair = Pair::new();
    pair.daemon.term();
    copy_tree(&pair.scratch.dst(), &pair.scratch.path("backup"));
    pair.old_replica = copy(&pair.daemon.state);
    pair.daemon.up();
    pair.edit(3);
    pair.push_is_exact("before the restore");
    pair.daemon.term();
    remove(&pair.scratch.dst());
    copy_tree(&pair.scratch.path("backup"), &pair.scratch.dst());
    pair.daemon.up();
    pair.damage(Damage::OldWithLog, Side::Replica, 0);
    pair.push_is_exact("after the restore");
}

#[test]
fn the_embedded_index_survives_the_same_damage() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dst());
    many(&src, 100, 5);
    scratch.push().ok();
    let old = copy(&scratch.state());
    edit_many(&src, 100, 5);
    scratch.push().ok();
    for (round, damage) in damage::ALL.into_iter().enumerate() {
        apply(damage, &scratch.state(), &old, round as u64 * 977 + 5);
        write(dst.join("d000/f00001"), format!("drift {round}"));
        append(src.join("d000/f00002"), b"more");
        let ran = scratch.push().run();
        assert!(ran.status.success(), "{damage:?}\n{ran}");
        let (want, have) = (snapshot(&src), snapshot(&dst));
        assert_no_differences(&format!("{damage:?}"), &differences(&want, &have));
    }
    scratch.push().ok().says("nothing");
}

#[test]
fn a_lost_state_directory_costs_pairing_and_a_word_and_nothing_else() {
    let pair = Pair::new();
    remove(&pair.master);
    let before = snapshot(&pair.scratch.dst());
    pair.push().code(1).says("pair");
    assert_untouched(&before, &snapshot(&pair.scratch.dst()));
    pair.daemon.pair(&pair.master);
    pair.edit(5);
    // With a new key it is another master.
    pair.push().code(1).says("--adopt");
    assert_untouched(&before, &snapshot(&pair.scratch.dst()));
    push_with(&pair.master, &pair.scratch.src(), &[pair.daemon.dest("www")]).arg("--adopt").ok();
    pair.push_is_exact("after pairing again");
}

#[test]
fn a_state_directory_that_cannot_be_is_a_clear_error() {
    let scratch = Scratch::new();
    write(scratch.src().join("f"), b"f");
    write(scratch.path("file"), b"no directory");
    for state in ["file", "file/below", "file/below/more"] {
        let ran = push_with(&scratch.path(state), &scratch.src(), &[scratch.dst()]).run();
        ran.one_of(&[1, 2]).names("file");
    }
    assert!(!Path::new(&scratch.dst()).exists() || snapshot(&scratch.dst()).len() == 1);
}

#[test]
fn every_damaged_file_of_the_state_directory_is_an_error_or_repaired_never_a_panic() {
    let pair = Pair::new();
    let files: Vec<_> = snapshot(&pair.master)
        .into_iter()
        .filter(|(path, node)| node.kind == Kind::File && !shown(path).contains(".db"))
        .map(|(path, _)| path)
        .collect();
    assert!(!files.is_empty(), "an identity and a pinned key must be somewhere");
    for path in files {
        let file = pair.master.join(os(&path));
        let good = std::fs::read(&file).unwrap();
        let half = good[..good.len() / 2].to_vec();
        for bad in [Vec::new(), half, noise(3, good.len().max(16)), noise(4, 100_000)] {
            write(&file, &bad);
            // Run insists that nothing panics.
            pair.push().one_of(&[0, 1, 2]);
        }
        write(&file, &good);
    }
    pair.push_is_exact("after all is good again");
}

/// Every index of one role below a state directory, changed by `sql`.
fn change_index(state: &Path, role: &str, sql: &str) -> usize {
    let dirs = std::fs::read_dir(state.join("index")).unwrap().map(|entry| entry.unwrap().path());
    let ours = dirs.filter(|dir| dir.file_name().unwrap().to_string_lossy().starts_with(role));
    ours.map(|dir| rusqlite::Connection::open(dir.join("index.db")).unwrap().execute(sql, []).unwrap()).sum()
}

#[test]
fn damage_outside_the_rows_heals_too() {
    let scratch = Scratch::new();
    many(&scratch.src(), 30, 1);
    for (role, sql) in [
        ("replica-", "UPDATE meta SET sum = zeroblob(8) WHERE key = 'index.stand'"),
        ("source-", "UPDATE versions SET sum = zeroblob(8)"),
        ("source-", "UPDATE acks SET sum = zeroblob(8)"),
    ] {
        scratch.push().ok();
        assert!(change_index(&scratch.state(), role, sql) > 0, "nothing to damage: {sql}");
        // Nothing changed since, so nothing is written over it by chance.
        scratch.push().ok().says("rebuilt");
        scratch.push().ok().says("nothing to do").does_not_say("rebuilt");
        synccli(&scratch.state()).arg("log").ok();
        assert_exact(&scratch.src(), &scratch.dst());
    }
}

#[test]
fn a_damaged_tombstone_is_no_danger_to_a_replica_that_lags() {
    let scratch = Scratch::new();
    many(&scratch.src(), 30, 1);
    let (near, lagging) = (scratch.path("near"), scratch.path("lagging"));
    scratch.push_to(&[&near, &lagging]).ok();
    remove(&scratch.src().join("d000/f00003"));
    scratch.push_to(&[&near]).ok();
    let sql = "UPDATE tombstones SET sum = zeroblob(8)";
    assert!(change_index(&scratch.state(), "source-", sql) > 0, "nothing to damage");
    scratch.push_to(&[&near, &lagging]).ok();
    assert_exact(&scratch.src(), &lagging);
}
