//! Whose a replica is: one master's, until a person adopts it for another one.

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

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use support::*;

/// Long enough for a loaded machine; a master that is held asks again within a minute.
const PATIENCE: u64 = 100;

/// The share `www` as `synccli status --json` has it; nothing as long as no daemon answers.
fn status(state: &Path) -> Value {
    let ran = synccli(state).args(&["status", "www", "--json"]).run();
    if !ran.status.success() {
        return Value::Null;
    }
    let said: Value = serde_json::from_str(ran.out().lines().next().unwrap()).unwrap();
    said["shares"][0].clone()
}

#[track_caller]
fn waits_for_state(state: &Path, number: usize, wanted: &str) {
    wait_for(&format!("replica {number} to be {wanted}"), PATIENCE, || {
        status(state)["replicas"][number]["state"] == wanted
    });
}

#[track_caller]
fn becomes_identical(src: &Path, dst: &Path) {
    wait_for("the replica to be identical", PATIENCE, || differences(&snapshot(src), &snapshot(dst)).is_empty());
    assert_exact(src, dst);
}

fn id(state: &Path) -> String {
    synccli(state).arg("id").ok().out().trim().to_owned()
}

/// A replica that two masters have in their configurations, and one for each of them alone.
struct Claimed {
    shared: Daemon,
    _alone: [Daemon; 2],
    masters: [Daemon; 2],
    src: [PathBuf; 2],
    scratch: Scratch,
}

impl Claimed {
    /// The first master has published to it.
    fn new() -> Claimed {
        let scratch = Scratch::new();
        let replica = |name: &str| Daemon::start(&scratch, &format!("state-{name}"), &[("www", &scratch.dir(name))]);
        let (shared, alone) = (replica("shared"), [replica("alone0"), replica("alone1")]);
        let src = [scratch.src(), scratch.dir("other")];
        for (src, whose) in src.iter().zip([1, 2]) {
            many(src, 60, whose);
            write(src.join("whose"), whose.to_string());
        }
        let first = Daemon::master(&scratch, "m0", &src[0], &[&shared, &alone[0]], "");
        waits_for_state(&first.state, 0, "in_sync");
        let second = Daemon::master(&scratch, "m1", &src[1], &[&shared, &alone[1]], "");
        Claimed { shared, _alone: alone, masters: [first, second], src, scratch }
    }

    fn tree(&self) -> PathBuf {
        self.scratch.path("shared")
    }

    fn asks(&self, master: usize, words: &[&str]) -> Run {
        let mut run = synccli(&self.masters[master].state);
        run.args(words);
        run
    }

    /// What `owner` writes arrives, what the other one writes does not; each brings the replica that it has alone up to date.
    #[track_caller]
    fn belongs_to(&self, owner: usize, round: &str) {
        waits_for_state(&self.masters[1 - owner].state, 0, "held");
        waits_for_state(&self.masters[owner].state, 0, "in_sync");
        for (src, whose) in self.src.iter().zip(["first", "second"]) {
            write(src.join(format!("{whose} {round}")), round);
        }
        becomes_identical(&self.src[owner], &self.tree());
        for number in 0..2 {
            becomes_identical(&self.src[number], &self.scratch.path(format!("alone{number}")));
        }
        let held = &status(&self.masters[1 - owner].state)["replicas"][0];
        let problem = held["problem"].as_str().unwrap();
        assert_eq!(held["state"], "held", "{held}");
        assert!(held["version"].is_null() && held["lag"].is_null(), "what is there is the other's: {held}");
        assert!(problem.contains(&id(&self.masters[owner].state)) && problem.contains("--adopt"), "{problem}");
    }
}

#[test]
fn a_second_master_is_held_and_the_first_goes_on() {
    let mut claimed = Claimed::new();
    claimed.belongs_to(0, "at once");
    let before = snapshot(&claimed.tree());
    // Nothing that does not say so takes it over, or shows what is there.
    let ran = claimed.asks(1, &["push", "www"]).code(1);
    let owner = id(&claimed.masters[0].state);
    assert!(ran.err().contains("is HELD") && ran.err().contains(&owner), "{ran}");
    let ran = claimed.asks(1, &["release", "www"]).code(1);
    assert!(ran.err().contains("`synccli release www --adopt`"), "{ran}");
    let ran = claimed.asks(1, &["verify", "www", "--replica", &claimed.shared.dest("www")]).code(1);
    assert!(ran.said().contains(&owner) && !ran.said().contains("first at once"), "{ran}");
    for _ in 0..3 {
        claimed.asks(1, &["push", "www", "--wait=none"]).ok();
        std::thread::sleep(Duration::from_millis(300));
    }
    waits_for_state(&claimed.masters[1].state, 0, "held");
    assert_untouched(&before, &snapshot(&claimed.tree()));
    // The replica says it too: in its log once for all attempts.
    let refused = "refused: it is not the owner";
    let log = claimed.shared.logged();
    assert_eq!(log.matches(refused).count(), 1, "{log}");
    assert!(log.matches(" push from=").count() > 3, "these were no attempts\n{log}");
    let there = status(&claimed.shared.state);
    assert_eq!(there["owner"], json!(owner), "{there}");
    assert!(there["reason"].as_str().unwrap().contains(&id(&claimed.masters[1].state)), "{there}");
    let ran = synccli(&claimed.shared.state).arg("status").ok();
    assert!(ran.out().contains(&format!("owned by the master {owner}")), "{ran}");

    claimed.shared.kill();
    claimed.shared.up();
    claimed.belongs_to(0, "after a restart");
    claimed.shared.kill();
    std::fs::remove_dir_all(claimed.shared.state.join("index")).unwrap();
    claimed.shared.up();
    claimed.belongs_to(0, "without an index");
    assert_eq!(status(&claimed.shared.state)["owner"], json!(owner));
}

#[test]
fn a_replica_that_is_adopted_is_the_other_masters_for_good() {
    let mut claimed = Claimed::new();
    claimed.belongs_to(0, "at once");
    let ran = claimed.asks(0, &["release", "www", "--adopt"]).code(1);
    assert!(ran.err().contains("nothing to adopt"), "{ran}");
    let ran = claimed.asks(1, &["release", "www", "--adopt"]).ok();
    assert!(ran.out().contains(&format!("takes over {}", claimed.shared.dest("www"))), "{ran}");
    claimed.belongs_to(1, "adopted");
    // It was said once: what is begun anew takes nothing back.
    for number in 0..2 {
        claimed.masters[number].kill();
        claimed.masters[number].restart();
        claimed.belongs_to(1, &format!("restarted {number}"));
    }
    claimed.shared.kill();
    claimed.shared.up();
    claimed.belongs_to(1, "after a restart");
    claimed.asks(0, &["release", "www"]).code(1);
    claimed.belongs_to(1, "released");
    claimed.asks(0, &["release", "www", "--adopt"]).ok();
    claimed.belongs_to(0, "taken back");
}

/// A tree that is held itself is given to nobody new.
#[test]
fn a_master_whose_tree_is_held_adopts_nothing() {
    let claimed = Claimed::new();
    // So many that it does not matter in how many versions they would go.
    many(&claimed.src[1].join("more"), 300, 3);
    claimed.belongs_to(0, "at once");
    for entry in std::fs::read_dir(&claimed.src[1]).unwrap() {
        remove(&entry.unwrap().path());
    }
    let ran = claimed.asks(1, &["release", "www", "--adopt"]).code(1);
    assert!(ran.err().contains("the replicas keep what they have"), "{ran}");
    std::thread::sleep(Duration::from_secs(2));
    assert_exact(&claimed.src[0], &claimed.tree());
    waits_for_state(&claimed.masters[0].state, 0, "in_sync");
}

#[test]
fn a_push_by_hand_adopts_only_if_it_says_so() {
    let scratch = Scratch::new();
    let (src, other, dst) = (scratch.src(), scratch.dir("other"), scratch.dir("dst"));
    many(&src, 60, 1);
    many(&other, 60, 2);
    write(src.join("secret name"), b"x");
    let daemon = Daemon::start(&scratch, "r", &[("www", &dst)]);
    let (one, two) = (scratch.path("one"), scratch.path("two"));
    let push = |state: &Path, src: &Path, options: &[&str]| {
        let mut run = push_with(state, src, &[daemon.dest("www")]);
        run.args(options);
        run
    };
    for state in [&one, &two] {
        daemon.pair(state);
    }
    // Nobody owns it, and who only looks does not either.
    push(&two, &other, &["-n"]).ok();
    push(&one, &src, &[]).ok();
    assert_exact(&src, &dst);
    let before = snapshot(&dst);
    for options in [&[][..], &["-n", "-i"], &["--checksum"]] {
        let ran = push(&two, &other, options).code(1);
        assert!(ran.err().contains(&id(&one)) && ran.err().contains("--adopt"), "{ran}");
        assert!(!ran.said().contains("secret name") && !ran.said().contains(dst.to_str().unwrap()), "{ran}");
    }
    let ran = synccli(&two).arg("diff").arg(&other).arg(daemon.dest("www")).code(1);
    assert!(ran.err().contains(&id(&one)) && !ran.said().contains("secret name"), "{ran}");
    // To see what would come of it is no adoption.
    let ran = push(&two, &other, &["-n", "-i", "--adopt"]).ok();
    assert!(ran.out().contains("*deleting   secret name"), "{ran}");
    push(&two, &other, &[]).code(1);
    assert_untouched(&before, &snapshot(&dst));
    // Nor is what is refused.
    push(&two, &other, &["--adopt", "--max-delete=0"]).code(1);
    push(&two, &other, &[]).code(1);
    assert_untouched(&before, &snapshot(&dst));
    push(&one, &src, &[]).ok();

    push(&two, &other, &["--adopt"]).ok();
    assert_exact(&other, &dst);
    let ran = push(&one, &src, &[]).code(1);
    assert!(ran.err().contains(&id(&two)), "{ran}");
    write(other.join("more"), b"more");
    push(&two, &other, &[]).ok();
    push(&two, &other, &["--adopt"]).ok();
    assert_exact(&other, &dst);

    // A directory is nobody's; without DEST it is the daemon's replicas that are taken over.
    let ran = synccli(&one).args(&["push", "--adopt"]).arg(&src).arg(scratch.path("here")).code(2);
    assert!(ran.err().contains("--adopt is for a DEST that is a share"), "{ran}");
    assert!(!scratch.path("here").exists());
    let ran = synccli(&one).args(&["push", "--adopt"]).arg(&src).code(2);
    assert!(ran.err().contains("synccli release SHARE --adopt"), "{ran}");
    // What is forgotten is the next one's.
    std::fs::remove_file(daemon.state.join("owners/www")).unwrap();
    push(&one, &src, &[]).ok();
    push(&two, &other, &[]).code(1);
    assert_exact(&src, &dst);
}
