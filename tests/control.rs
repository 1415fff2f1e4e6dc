//! What `synccli` asks a running daemon: push without DEST, status, verify, release, reload, and who follows.

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

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::*;

/// Long enough for a loaded machine; what is waited for comes in milliseconds.
const PATIENCE: u64 = 60;

#[test]
fn a_push_without_dest_returns_when_every_replica_has_it() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src, 60, 1);
    let replicas = [replica(&scratch, "one"), replica(&scratch, "two")];
    let master = Daemon::master(&scratch, "m", &src, &[&replicas[0], &replicas[1]], "");
    wait_for("the daemon to answer", PATIENCE, || synccli(&master.state).arg("status").run().status.success());
    for round in 0..3 {
        many(&src.join(format!("round {round}")), 300, round);
        // By its path or by its name.
        let ran = synccli(&master.state).arg("push").arg(if round == 1 { Path::new("www") } else { &src }).ok();
        // Not a moment later.
        assert_exact(&src, &scratch.path("one"));
        assert_exact(&src, &scratch.path("two"));
        assert_eq!(ran.out().matches("identical and durable (").count(), 2, "{ran}");
    }
    let before = status(&master.state)["version"]["number"].clone();
    let ran = synccli(&master.state).args(&["push", "www", "--json", "--wait=quorum"]).ok();
    let said = ran.json();
    assert_eq!((&said[0]["type"], &said[0]["version"]["number"]), (&json!("published"), &before), "nothing changed");
    assert_eq!(said[0]["replicas"], 2);
    assert_eq!(said.iter().filter(|reply| reply["type"] == "acknowledged").count(), 2, "{ran}");
    let ran = synccli(&master.state).args(&["push", "www", "--dry-run"]).code(2);
    assert!(ran.err().contains("--dry-run is for a push to a DEST"), "{ran}");
    let ran = synccli(&master.state).args(&["push", "elsewhere"]).code(1);
    assert!(ran.err().contains("no share elsewhere; of www ("), "{ran}");
}

#[test]
fn who_is_behind_is_named() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src, 60, 1);
    let (one, mut two, mut three) = (replica(&scratch, "one"), replica(&scratch, "two"), replica(&scratch, "three"));
    let master = Daemon::master(&scratch, "m", &src, &[&one, &two, &three], "");
    for number in 0..3 {
        waits_for_state(&master.state, number, "in_sync");
    }
    two.kill();
    waits_for_state(&master.state, 1, "offline");
    // It has the newest version, for all that is known; but nobody can know.
    let mut verify = synccli(&master.state).args(&["verify", "www", "--replica", &two.dest("www")]).timeout(60).start();
    while verify.is_running() {
        assert_eq!(status(&master.state)["replicas"][1]["state"], "offline");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    verify.wait().code(1);
    write(src.join("while away"), b"12345");
    let ran = synccli(&master.state).args(&["push", "www", "--timeout=6s"]).timeout(60).code(1);
    assert!(ran.err().contains(&format!("1 replica has not confirmed version 2: {}", two.dest("www"))), "{ran}");
    assert_eq!(ran.out().matches("identical and durable").count(), 2, "{ran}");
    synccli(&master.state).args(&["push", "www", "--wait=quorum", "--timeout=20s"]).ok();
    synccli(&master.state).args(&["push", "www", "--wait=none"]).ok();
    let now = status(&master.state);
    let away = &now["replicas"][1];
    assert_eq!((&away["state"], &away["version"]), (&json!("offline"), &json!(1)), "{now}");
    let lag = &away["lag"];
    // The file, and the directory that it came into.
    assert_eq!((&lag["versions"], &lag["entries"], &lag["bytes"]), (&json!(1), &json!(2), &json!(5)), "{now}");
    assert!(lag["seconds"].as_f64().unwrap() > 0.0 && away["problem"].is_string(), "{now}");
    for command in [&["push", "www"][..], &["verify", "www"], &["release", "www"]] {
        let ran = synccli(&one.state).args(command).code(1);
        assert!(
            ran.err().contains("share www is a replica here: say that on the machine of its master (127.0.0.1:"),
            "{ran}"
        );
    }
    let ran = synccli(&master.state).args(&["status", "--exit-code"]).code(3);
    assert!(ran.out().contains("offline") && ran.out().contains("1 version, 2 entries, 5 B"), "{ran}");
    three.kill();
    let ran = synccli(&master.state).args(&["push", "www", "--wait=quorum", "--timeout=1s"]).code(1);
    assert!(ran.err().contains("2 replicas have not confirmed version 2 (2 of 3 would be enough): "), "{ran}");
    three.up();
    two.up();
    // A push does not wait for the next attempt.
    synccli(&master.state).args(&["push", "www", "--timeout=20s"]).ok();
    assert_exact(&src, &scratch.path("two"));
    synccli(&master.state).args(&["status", "--exit-code"]).ok();
}

#[test]
fn a_paused_replica_is_left_alone() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src, 60, 1);
    let replicas = [replica(&scratch, "one"), replica(&scratch, "two")];
    let master = Daemon::master(&scratch, "m", &src, &[&replicas[0], &replicas[1]], "");
    waits_for_state(&master.state, 1, "in_sync");
    let name = replicas[1].dest("www");
    synccli(&master.state).args(&["replica", "pause", "www", &name]).ok();
    waits_for_state(&master.state, 1, "paused");
    let before = snapshot(&scratch.path("two"));
    write(src.join("news"), b"news");
    let ran = synccli(&master.state).args(&["push", "www"]).code(1);
    assert!(ran.err().contains(&format!("{name} is paused at version 1")), "{ran}");
    let ran = synccli(&master.state).args(&["verify", "www", "--replica", &name]).code(1);
    assert!(ran.err().contains("it is paused: `synccli replica resume`"), "{ran}");
    // By the name of the share, as `log` takes it.
    let ran = synccli(&master.state).args(&["diff", "www", "--since=1"]).ok();
    assert!(ran.out().contains("news"), "{ran}");
    assert_exact(&src, &scratch.path("one"));
    assert_untouched(&before, &snapshot(&scratch.path("two")));
    synccli(&master.state).args(&["replica", "resume", "www", &name]).ok();
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &scratch.path("two"));
    let ran = synccli(&master.state).args(&["replica", "pause", "www", "nobody"]).code(1);
    assert!(ran.err().contains(&name), "{ran}");
}

#[test]
fn replicas_come_and_go_while_the_daemon_runs() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src, 60, 1);
    let (one, two) = (replica(&scratch, "one"), replica(&scratch, "two"));
    let mut master = Daemon::master(&scratch, "m", &src, &[&one], "# ours");
    waits_for_state(&master.state, 0, "in_sync");
    two.pair(&master.state);
    let address = format!("127.0.0.1:{}", two.port);
    synccli(&master.state).args(&["replica", "add", "www", &address]).ok();
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &scratch.path("two"));
    let config = scratch.path("m.toml");
    let text = || std::fs::read_to_string(&config).unwrap();
    assert!(text().contains(&address) && text().contains("# ours"), "{}", text());
    let again = synccli(&master.state).args(&["replica", "add", "www", &address]).code(1);
    assert!(again.err().contains("already"), "{again}");
    // Nobody had to connect anew.
    assert_eq!(master.logged().matches(" connected ").count(), 2, "{}", master.logged());

    synccli(&master.state).args(&["replica", "remove", "www", &address]).ok();
    let before = snapshot(&scratch.path("two"));
    write(src.join("later"), b"later");
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &scratch.path("one"));
    assert_untouched(&before, &snapshot(&scratch.path("two")));
    let ran = synccli(&master.state).args(&["replica", "add", "www", "192.0.2.1:9"]).ok();
    assert!(
        ran.out().contains("192.0.2.1:9/www cannot follow yet: not paired with 192.0.2.1:9: on that host run"),
        "{ran}"
    );
    // A push that waits for one that leaves is done.
    let pushing = synccli(&master.state).args(&["push", "www"]).start();
    std::thread::sleep(std::time::Duration::from_secs(1));
    synccli(&master.state).args(&["replica", "remove", "www", "192.0.2.1:9"]).ok();
    let pushed = pushing.wait().code(0);
    assert!(pushed.err().contains("192.0.2.1:9/www does not follow any more"), "{pushed}");

    // A share may be followed by nobody for a while.
    let address_of_one = format!("127.0.0.1:{}", one.port);
    synccli(&master.state).args(&["replica", "remove", "www", &address_of_one]).ok();
    write(src.join("alone"), b"alone");
    synccli(&master.state).args(&["push", "www", "--wait=quorum"]).ok();
    assert!(!scratch.path("one/alone").exists());
    synccli(&master.state).args(&["replica", "add", "www", &address_of_one]).ok();
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &scratch.path("one"));

    // What makes no sense changes nothing, whoever wrote it.
    let good = text();
    std::fs::write(&config, good.replace("path =", "pth =")).unwrap();
    let ran = synccli(&master.state).arg("reload").code(1);
    assert!(ran.err().contains("line ") && ran.err().contains("nothing was changed"), "{ran}");
    std::fs::write(&config, &good).unwrap();
    assert!(synccli(&master.state).arg("reload").ok().out().contains("nothing changed"));

    // A share more, on a signal.
    let (more, copy) = (scratch.dir("more"), scratch.path("one"));
    many(&more, 20, 3);
    let text = format!("{good}\n[share.more]\npath = '{}'\nreplicas = ['{address}/www']\n", more.display());
    std::fs::write(&config, text).unwrap();
    master.signal(Signal::HUP);
    wait_for("the other share", PATIENCE, || {
        let ran = synccli(&master.state).args(&["status", "more", "--json"]).run();
        ran.status.success() && ran.json()[0]["shares"][0]["replicas"][0]["state"] == "held"
    });
    // It was another share's, and is its master's no more without a word from a person.
    synccli(&master.state).args(&["release", "more"]).ok();
    synccli(&master.state).args(&["push", "more"]).ok();
    assert_exact(&more, &scratch.path("two"));
    assert_exact(&src, &copy);
    std::fs::write(&config, &good).unwrap();
    let ran = synccli(&master.state).arg("reload").ok();
    assert!(ran.out().contains("share more is not mirrored any more"), "{ran}");
    assert!(master.is_running());
}

/// One that was refused would be tried again much later.
#[test]
fn a_replica_that_is_paired_is_tried_at_once() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dir("one"));
    many(&src, 20, 1);
    let one = Daemon::replica(&scratch, "state-one", &dst, "");
    let master = Daemon::master(&scratch, "m", &src, &[], "");
    let config = scratch.path("m.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("replicas = []", &format!("replicas = ['{}']", one.address()))).unwrap();
    wait_for("the daemon", PATIENCE, || master.state.join("control.sock").exists());
    synccli(&master.state).arg("reload").ok();
    let waits = || status(&master.state)["replicas"][0]["retry_seconds"].as_f64().is_some_and(|seconds| seconds > 8.0);
    wait_for("a long wait", PATIENCE, waits);
    one.pair(&master.state);
    let began = Instant::now();
    waits_for_state(&master.state, 0, "in_sync");
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
    assert_exact(&src, &dst);
}

#[test]
fn what_is_left_out_may_change_while_the_daemon_runs() {
    let scratch = Scratch::new();
    let src = scratch.src();
    write(src.join("a.swp"), b"x");
    write(src.join("b"), b"x");
    let one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "exclude = ['*.swp']\nsettle_max = '5s'");
    waits_for_state(&master.state, 0, "in_sync");
    assert!(!scratch.path("one/a.swp").exists());
    let config = scratch.path("m.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("['*.swp']", "['b']").replace("5s", "6s")).unwrap();
    synccli(&master.state).arg("reload").ok();
    wait_for("the new rules", PATIENCE, || {
        synccli(&master.state).args(&["push", "www"]).run().status.success() && scratch.path("one/a.swp").exists()
    });
}

/// Changes the configuration that a daemon reads, and has it read; what it says.
fn reload(scratch: &Scratch, name: &str, state: &Path, change: impl FnOnce(String) -> String) -> Ran {
    let config = scratch.path(format!("{name}.toml"));
    std::fs::write(&config, change(std::fs::read_to_string(&config).unwrap())).unwrap();
    synccli(state).arg("reload").run()
}

#[test]
fn a_replica_takes_over_its_configuration_while_it_runs() {
    let scratch = Scratch::new();
    let (src, img, copy) = (scratch.src(), scratch.dir("img"), scratch.path("img-copy"));
    many(&src, 60, 1);
    many(&img, 60, 2);
    let one = Daemon::replica(&scratch, "state-one", &scratch.dir("one"), "max_delete = 10");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    let connected = || master.logged().matches(" connected ").count();
    let here = |change: &dyn Fn(String) -> String| reload(&scratch, "state-one", &one.state, change);
    let share = |name: &str| {
        let ran = synccli(&one.state).args(&["status", name, "--json"]).ok();
        ran.json()[0]["shares"][0].clone()
    };

    // One more, and another limit: nobody has to connect anew.
    let table = format!("[shares.img]\npath = '{}'\n", copy.display());
    let ran = here(&|text| text.replace("= 10", "= 12") + &table).code(0);
    assert_eq!(
        ran.out().lines().collect::<Vec<_>>(),
        ["share img is held", "share www: max_delete taken over"],
        "{ran}"
    );
    let replicas = format!("[share.img]\npath = '{}'\nreplicas = ['{}']\n", img.display(), one.address());
    reload(&scratch, "m", &master.state, |text| text + &replicas).code(0);
    synccli(&master.state).args(&["push", "img"]).ok();
    assert_exact(&img, &copy);
    assert_eq!(connected(), 2, "{}", master.logged());
    remove_files(&src, 11);
    synccli(&master.state).args(&["push", "www"]).ok();
    remove_files(&src, 2);
    let ran = synccli(&master.state).args(&["push", "www"]).code(1);
    assert!(ran.err().contains("max_delete = 12"), "{ran}");
    synccli(&master.state).args(&["release", "www"]).ok();
    synccli(&master.state).args(&["push", "www"]).ok();

    // Another way to heal: that share's session alone begins anew.
    let before = connected();
    let ran = here(&|text| text.replace("= 12", "= 12\nheal = 'report'\nrescan = '5m'")).code(0);
    assert_eq!(ran.out().trim(), "share www: heal, rescan taken over");
    wait_for("the new session", PATIENCE, || connected() > before);
    waits_for_copy(&one.state, "in_sync");
    waits_for_state(&master.state, 0, "in_sync");
    assert_eq!((&share("www")["copy"]["heal"], connected()), (&json!("report"), before + 1));
    write(scratch.path("one").join("extra"), b"extra");
    waits_for_copy(&one.state, "drifted");
    assert!(scratch.path("one/extra").exists());

    // What takes a restart is named, each time.
    for _ in 0..2 {
        let change = |text: String| {
            text.replace("127.0.0.1:", "127.0.0.2:").replace("[shares.www]", "log_level = 'warn'\n[shares.www]")
        };
        let ran = here(&|text| if text.contains("log_level") { text } else { change(text) }).code(0);
        assert_eq!(
            ran.out().trim(),
            "listen: takes effect at a restart\nlog_level: takes effect at a restart",
            "{ran}"
        );
    }
    here(&|text| text.replace("127.0.0.2:", "127.0.0.1:").replace("log_level = 'warn'\n", "")).code(0);

    // Another directory. One that is empty might be a mount point without its file system.
    let other = scratch.path("other");
    write(other.join("something"), b"that was there");
    let ran = here(&|text| text.replace(&*scratch.path("one").to_string_lossy(), &other.to_string_lossy())).code(0);
    assert_eq!(ran.out().trim(), "share www: path taken over");
    wait_for("the other directory", PATIENCE, || differences(&snapshot(&src), &snapshot(&other)).is_empty());
    assert!(scratch.path("one/extra").exists(), "what was left behind is nobody's");

    // One less.
    let before = connected();
    let ran = here(&|text| text.replace(&table, "")).code(0);
    assert_eq!(ran.out().trim(), "share img is not held any more");
    // What the replica has acknowledged it has, as long as the master has not heard of this.
    let push = || synccli(&master.state).args(&["push", "img", "--timeout=3s"]).run();
    wait_for("the master to be told", PATIENCE, || !push().status.success());
    let ran = push().code(1);
    assert!(ran.err().contains("there is no share named \"img\" here; there are: www"), "{ran}");
    write(src.join("later"), b"later");
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &other);
    let status = synccli(&master.state).args(&["status", "www", "--json"]).ok();
    assert_eq!(status.json()[0]["shares"][0]["replicas"][0]["state"], "in_sync");
    assert!(connected() >= before);

    // Nobody becomes the master of what he holds, or the other way round, while that goes on.
    let ran = here(&|text| text.replace("heal = 'report'", "replicas = ['other']")).code(1);
    assert!(ran.err().contains("share www is a replica here, or lies in one: only a restart"), "{ran}");
    assert!(ran.err().contains("nothing was changed"), "{ran}");
    let ran = reload(&scratch, "m", &master.state, |text| {
        text.replacen(&format!("replicas = [\"{}\"]", one.address()), "", 1)
    });
    assert!(ran.err().contains("share www is mirrored from here, or lies in what is: only a restart"), "{ran}");
}

/// Content that is on its way, and a version that a replica is about to have, are none of a reload's business.
#[test]
fn a_reload_drops_nothing_of_what_is_under_way_and_serves_who_is_new() {
    let scratch = Scratch::new();
    let (src, more, dst) = (scratch.src(), scratch.dir("more"), scratch.path("one"));
    many(&src, 60, 1);
    many(&more, 60, 2);
    let (mut one, two) = (replica(&scratch, "one"), replica(&scratch, "two"));
    let three = Daemon::start(&scratch, "state-three", &[("more", &scratch.dir("three"))]);
    let master = Daemon::master(&scratch, "m", &src, &[&one], "settle_max = '5s'");
    waits_for_state(&master.state, 0, "in_sync");
    two.pair(&master.state);
    three.pair(&master.state);
    let large = stops_halfway(&src, &dst, &mut one, &master);
    // The window in which changes settle is another one from then on, and this may still wait in the old one.
    write(src.join("just before"), b"x");
    let table = format!("[share.more]\npath = '{}'\nreplicas = ['{}']\n", more.display(), three.address());
    let ran = reload(&scratch, "m", &master.state, |text| {
        text.replace("5s", "6s").replace(&one.address(), &format!("{}\", \"{}", one.address(), two.address())) + &table
    });
    let ran = ran.code(0);
    assert!(ran.out().contains("share more is mirrored"), "{ran}");
    assert!(ran.out().contains(&format!("share www: {} is added", two.dest("www"))), "{ran}");
    // Who is new waits for nobody.
    waits_for_state(&master.state, 1, "in_sync");
    assert_exact(&src, &scratch.path("two"));
    synccli(&master.state).args(&["push", "more"]).ok();
    assert_exact(&more, &scratch.path("three"));
    assert!(!large_arrived(&dst, &large), "it was to be under way all the time");
    assert_eq!(status(&master.state)["replicas"][0]["state"], "catching_up");
    one.signal(Signal::CONT);
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &dst);
    // Over the connection of the beginning.
    assert_eq!(master.logged().matches(" connected ").count(), 3, "{}", master.logged());
}

/// Has a large file published, and stops the replica when it has a part of it. Returns the file's name.
fn stops_halfway(src: &Path, dst: &Path, replica: &mut Daemon, master: &Daemon) -> String {
    let has_part = || {
        let staged = std::fs::read_dir(dst.join(STAGING)).into_iter().flatten().flatten();
        staged.filter_map(|entry| entry.metadata().ok()).any(|staged| staged.is_file() && staged.len() > 0)
    };
    for attempt in 0..20 {
        let large = format!("large {attempt}");
        // Moved in, so that it is one version.
        write(src.with_extension("aside"), noise(attempt, 48 << 20));
        std::fs::rename(src.with_extension("aside"), src.join(&large)).unwrap();
        wait_for("a part of it", PATIENCE, || has_part() || large_arrived(dst, &large));
        replica.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", replica.pid());
        wait_for("it to stop", PATIENCE, || std::fs::read_to_string(&stat).unwrap().contains(") T "));
        if has_part() && !large_arrived(dst, &large) {
            return large;
        }
        // It was faster.
        replica.signal(Signal::CONT);
        waits_for_state(&master.state, 0, "in_sync");
    }
    panic!("a replica that has each of the files at once");
}

fn large_arrived(dst: &Path, large: &str) -> bool {
    dst.join(large).exists()
}

/// Removes so many of the files of [`many`].
fn remove_files(top: &Path, count: usize) {
    let is_file = |path: &std::path::PathBuf| path.is_file();
    let beneath = |dir: &Path| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let files = beneath(top).into_iter().filter(|path| path.is_dir()).flat_map(|dir| beneath(&dir)).filter(is_file);
    files.take(count).for_each(|file| std::fs::remove_file(file).unwrap());
}

#[test]
fn a_share_that_goes_ends_with_what_is_under_way_and_may_come_back() {
    let scratch = Scratch::new();
    let (src, dst) = (scratch.src(), scratch.dir("one"));
    many(&src, 3000, 1);
    let beside = format!("[shares.beside]\npath = '{}'\n", scratch.dir("beside").display());
    let one = Daemon::replica(&scratch, "state-one", &dst, &beside);
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    let table = format!("[shares.www]\npath = '{}'\n", dst.display());
    for round in 0..4 {
        many(&src.join(format!("round {round}")), 600, 10 + round);
        wait_for("a session", PATIENCE, || one.logged().contains(" push from="));
        std::thread::sleep(std::time::Duration::from_millis(90 * round));
        reload(&scratch, "state-one", &one.state, |text| text.replace(&table, "")).code(0);
        assert!(synccli(&one.state).args(&["status", "www"]).code(1).err().contains("no share www here"));
        wait_for("the session to end", PATIENCE, || !locked(&dst));
        // What is there is whole.
        let (there, here) = (snapshot(&src), snapshot(&dst));
        for (path, node) in here.iter().filter(|(path, _)| !path.starts_with(STAGING.as_bytes())) {
            let same = there.get(path).is_some_and(|wanted| wanted.content == node.content);
            assert!(same, "{} is not whole", String::from_utf8_lossy(path));
        }
        reload(&scratch, "state-one", &one.state, |text| text + &table).code(0);
    }
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &dst);
    // Waiting for a master that has nothing to say, it ends at once.
    reload(&scratch, "state-one", &one.state, |text| text.replace(&table, "")).code(0);
    wait_for("the session to end", PATIENCE, || !locked(&dst));
}

/// Whether a session has the directory.
fn locked(dir: &Path) -> bool {
    let dir = std::fs::File::open(dir).unwrap();
    rustix::fs::flock(&dir, rustix::fs::FlockOperation::NonBlockingLockShared).is_err()
}

#[test]
fn a_daemon_listens_as_long_as_it_holds_a_share() {
    let scratch = Scratch::new();
    let (src, copy) = (scratch.src(), scratch.path("copy"));
    many(&src, 60, 1);
    let one = replica(&scratch, "one");
    let mut master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    assert!(!master.logged().contains("listening"), "{}", master.logged());
    let (port, hand) = (support::daemon::free_port(), scratch.path("hand"));
    let table = format!("[share.copy]\npath = '{}'\n", copy.display());
    let listen = format!("listen = ['127.0.0.1:{port}']\n");
    let ran = reload(&scratch, "m", &master.state, |text| listen + &text + &table).code(0);
    assert_eq!(ran.out().trim(), "share copy is held");
    master.listens_on("127.0.0.1", port);
    master.pair(&hand);
    synccli(&hand).arg("push").arg(&src).arg(master.dest("copy")).ok();
    assert_exact(&src, &copy);
    let ran = reload(&scratch, "m", &master.state, |text| text.replace(&table, "")).code(0);
    assert_eq!(ran.out().trim(), "share copy is not held any more");
    wait_for("the port", PATIENCE, || std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok());
    write(src.join("after"), b"after");
    synccli(&master.state).args(&["push", "www"]).ok();
    assert!(master.is_running());
}

#[test]
fn what_differs_at_a_replica_is_named() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src, 60, 1);
    write(src.join("page"), b"as it should be");
    let one = replica(&scratch, "one");
    // It would mend what is to be found.
    let two = Daemon::replica(&scratch, "state-two", &scratch.dir("two"), "heal = 'off'");
    let master = Daemon::master(&scratch, "m", &src, &[&one, &two], "");
    waits_for_state(&master.state, 0, "in_sync");
    waits_for_state(&master.state, 1, "in_sync");
    write(scratch.path("two").join("page"), b"as nobody meant");
    write(scratch.path("two").join("extra"), b"x");
    let ran = synccli(&master.state).args(&["verify", "www"]).code(1);
    let name = two.dest("www");
    for what in [" page", " extra"] {
        assert!(ran.out().lines().any(|line| line.starts_with(&name) && line.ends_with(what)), "{what}: {ran}");
    }
    assert!(ran.out().contains(&format!("{}: identical", one.dest("www"))), "{ran}");
    // The mirror goes on, and mends what it finds.
    write(src.join("after"), b"after");
    synccli(&master.state).args(&["push", "www"]).ok();
    for number in 0..2 {
        waits_for_state(&master.state, number, "in_sync");
    }
    assert_exact(&src, &scratch.path("one"));
    assert_exact(&src, &scratch.path("two"));
    let ran = synccli(&master.state).args(&["verify", "www", "--deep"]).ok();
    assert_eq!(ran.out().matches(": identical").count(), 2, "{ran}");
    // It rests meanwhile, and is back at once.
    synccli(&master.state).args(&["status", "--exit-code"]).ok();
    let ran = synccli(&master.state).args(&["verify", "www", "--json", "--replica", &name]).ok();
    assert_eq!((&ran.json()[0]["identical"], &ran.json()[0]["replica"]), (&json!(true), &json!(name)), "{ran}");
}

/// A replica that somebody pauses while it is compared is still compared to the end, and then left alone.
#[test]
fn a_replica_may_be_paused_while_it_is_verified() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src, 60, 1);
    write(src.join("page"), b"as it should be");
    // Reading this takes a while.
    write(src.join("large"), noise(1, 64 << 20));
    // It would mend what is to be found.
    let mut one = Daemon::replica(&scratch, "state-one", &scratch.dir("one"), "heal = 'off'");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    let name = one.dest("www");
    let order = |verb: &str| synccli(&master.state).args(&["replica", verb, "www", &name]).timeout(PATIENCE).ok();
    let connected = || master.logged().matches(" connected ").count();
    let page = scratch.path("one/page");
    // Before the comparison has reached the replica, and while that reads its files; and with a second thought.
    for (is_reading, is_resumed, differs) in
        [(false, false, false), (true, false, true), (false, true, false), (true, true, true), (true, false, false)]
    {
        let place = format!("while it reads: {is_reading}, resumed: {is_resumed}, differs: {differs}");
        if differs {
            write(&page, b"as nobody meant");
        }
        let before = connected();
        if !is_reading {
            one.signal(Signal::STOP);
        }
        let verify = synccli(&master.state).args(&["verify", "www", "--deep"]).timeout(PATIENCE).start();
        if is_reading {
            wait_for("the comparison to begin", PATIENCE, || connected() > before);
            one.signal(Signal::STOP);
        } else {
            wait_for("the follower to rest", PATIENCE, || status(&master.state)["replicas"][0]["link"].is_null());
        }
        order("pause");
        assert_eq!(status(&master.state)["replicas"][0]["state"], "paused", "{place}");
        if is_resumed {
            order("resume");
        }
        one.signal(Signal::CONT);
        let ran = verify.wait().code(i32::from(differs));
        assert_eq!(ran.out().contains(&format!("{name}: identical")), !differs, "{place}: {ran}");
        assert_eq!(ran.out().lines().any(|line| line.ends_with(" page")), differs, "{place}: {ran}");
        if !is_resumed {
            // It is left alone as was asked, and whoever asks now hears why.
            waits_for_state(&master.state, 0, "paused");
            let ran = synccli(&master.state).args(&["verify", "www", "--deep"]).timeout(PATIENCE).code(1);
            assert!(ran.said().contains("it is paused"), "{place}: {ran}");
            order("resume");
        }
        write(src.join("page"), format!("as it should be after {place}"));
        synccli(&master.state).args(&["push", "www"]).timeout(PATIENCE).ok();
        assert_exact(&src, &scratch.path("one"));
    }
}

/// Whether something differs is a question of the moment then; that nothing is said which is not so is none.
#[test]
fn a_share_that_never_rests_is_verified() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src, 60, 1);
    write(src.join("page"), b"as it should be");
    // It would mend what is to be found.
    let one = Daemon::replica(&scratch, "state-one", &scratch.dir("one"), "heal = 'off'");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    let (busy, page, time) = (src.clone(), scratch.path("one/page"), mtime_of(src.join("page")));
    let changes = watch::Hammer::start(move |turn| {
        write(busy.join(format!("d000/restless {}", turn % 700)), turn.to_le_bytes());
        // Now and then it draws breath: what never is at the newest version cannot be compared with it.
        let rest = match turn % 36 {
            0..20 => 3,
            20..30 => 30,
            30..35 => 100,
            _ => 700,
        };
        std::thread::sleep(std::time::Duration::from_millis(rest));
    });
    let verify = || synccli(&master.state).args(&["verify", "www"]).timeout(PATIENCE).run().one_of(&[0, 1]);
    let is_behind = |ran: &Ran| {
        ["it does not have version ", "it is being brought to a version"]
            .iter()
            .any(|reason| ran.said().contains(reason))
    };
    let was_overtaken = |ran: &Ran| ran.said().contains("the share changed meanwhile");
    let differs = |ran: &Ran| ran.out().lines().any(|line| line.ends_with(" page"));
    let (mut identical, mut found, mut behind, mut overtaken) = (0, 0, 0, 0);
    wait_for("every kind of answer", 2 * PATIENCE, || {
        let ran = verify();
        assert_eq!(ran.out().contains(": identical"), ran.status.success(), "{ran}");
        assert!(ran.status.success() || is_behind(&ran) || was_overtaken(&ran), "{ran}");
        assert!(!differs(&ran), "nobody changed that: {ran}");
        identical += u32::from(ran.status.success());
        behind += u32::from(is_behind(&ran));
        overtaken += u32::from(was_overtaken(&ran));
        // Somebody else changes what the tree does not: no comparison that comes to its end may miss that.
        write(&page, b"as nobody meant");
        let ran = verify().code(1);
        assert!(differs(&ran) || is_behind(&ran), "{ran}");
        found += u32::from(differs(&ran));
        // If nobody has mended it by now.
        write(&page, b"as it should be");
        set_mtime(&page, time.0, time.1);
        [identical, behind, overtaken, found].iter().all(|count| *count > 0)
    });
    changes.stop();
    synccli(&master.state).args(&["push", "www"]).ok();
    assert_exact(&src, &scratch.path("one"));
    let ran = verify();
    assert!(ran.status.success() && ran.out().contains(": identical"), "{ran}");
}

#[test]
fn what_cannot_be_read_is_told_by_every_command() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src, 60, 1);
    let one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    synccli(&master.state).args(&["status", "--exit-code"]).ok();
    // Nobody may have this name, root neither.
    let reserved = src.join(".synccli-staging");
    write(&reserved, b"x");
    write(src.join("beside"), b"x");
    let told = |ran: &Ran| ran.said().contains(".synccli-staging is not published: cannot scan: the name is reserved");
    for command in [&["push", "www"][..], &["push", "www", "--wait=none"], &["verify", "www"]] {
        let ran = synccli(&master.state).args(command).code(1);
        assert!(told(&ran), "{ran}");
    }
    assert_eq!(std::fs::read(scratch.path("one/beside")).unwrap(), b"x", "the rest is published");
    assert!(!scratch.path("one/.synccli-staging").exists());
    let ran = synccli(&master.state).args(&["status", "--exit-code"]).code(3);
    assert!(told(&ran), "{ran}");
    let unread = status(&master.state)["unread"].clone();
    assert_eq!((&unread["entries"], &unread["first"]), (&json!(1), &json!(".synccli-staging")));
    let ran = synccli(&master.state).args(&["verify", "www", "--json"]).code(1);
    assert_eq!((&ran.json()[0]["type"], &ran.json()[0]["unread"]["entries"]), (&json!("unread"), &json!(1)), "{ran}");
    std::fs::remove_file(&reserved).unwrap();
    synccli(&master.state).args(&["push", "www"]).ok();
    synccli(&master.state).args(&["verify", "www"]).ok();
    synccli(&master.state).args(&["status", "--exit-code"]).ok();
    assert_exact(&src, &scratch.path("one"));
}

#[test]
fn what_a_daemon_mirrors_is_not_pushed_beside_it() {
    let scratch = Scratch::new();
    let src = scratch.src();
    many(&src, 60, 1);
    let one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    let dst = scratch.path("elsewhere");
    let ran = synccli(&master.state).arg("push").arg(&src).arg(&dst).timeout(20).code(2);
    assert!(ran.err().contains("as the share www: `synccli push www` brings it"), "{ran}");
    assert!(!dst.exists());
    // Another tree, another state directory, and a look are in nobody's way.
    synccli(&master.state).args(&["push", "--dry-run"]).arg(&src).arg(&dst).timeout(20).ok();
    many(&scratch.dir("another"), 10, 1);
    synccli(&master.state).arg("push").arg(scratch.path("another")).arg(&dst).timeout(20).ok();
    synccli(&scratch.path("state")).arg("push").arg(&src).arg(&dst).timeout(20).ok();
    assert_exact(&src, &dst);
}

#[test]
fn a_status_that_is_watched_shows_every_change() {
    let scratch = Scratch::new();
    let src = scratch.src();
    let mut one = replica(&scratch, "one");
    let master = Daemon::master(&scratch, "m", &src, &[&one], "");
    waits_for_state(&master.state, 0, "in_sync");
    let mut child = std::process::Command::new(bin("synccli"))
        .arg("--state-dir")
        .arg(&master.state)
        .args(["status", "--watch", "--json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = |wanted: &str| {
        let is = |line: &str| {
            let now: Value = serde_json::from_str(line).unwrap();
            now["shares"][0]["replicas"][0]["state"] == wanted
        };
        assert!(lines.by_ref().take(300).any(|line| is(&line.unwrap())), "never {wanted}");
    };
    next("in_sync");
    one.kill();
    next("offline");
    one.up();
    next("in_sync");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn only_the_owner_is_answered_and_nonsense_does_no_harm() {
    let scratch = Scratch::new();
    let one = replica(&scratch, "one");
    let socket = one.state.join("control.sock");
    wait_for("the socket", PATIENCE, || socket.exists());
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let ask = |request: &[u8]| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // It may answer before it has read all.
        let _ = stream.write_all(request);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    for (request, answer) in [
        (&b"{\"protocol\":1,\"order\":\"status\"}\n"[..], "\"shares\":[{\"name\":\"www\""),
        (b"{\"protocol\":99,\"order\":\"dance\"}\n", "version 99 of the control protocol"),
        (b"{\"protocol\":1,\"order\":\"dance\"}\n", "makes no sense"),
        (b"\xff\n", "no request came"),
        (b"[]\n", "makes no sense"),
        (&[b'x'; 100_000], ""),
    ] {
        let said = ask(request);
        assert!(said.contains(answer), "{}: {said}", request[..request.len().min(60)].escape_ascii());
    }
    assert!(ask(b"{\"protocol\":1,\"order\":\"push\",\"share\":\"www\"}\n").contains("is a replica here"));
    assert!(ask(b"{\"protocol\":1,\"order\":\"push\",\"share\":\"other\"}\n").contains("master of no share"));
    // Nobody takes its place while it runs.
    let share = format!("www={}", scratch.path("one").display());
    let ran = support::daemon::syncd(&one.state).args(&["--listen", "127.0.0.1:0", "--share", &share]).code(1);
    assert!(ran.err().contains("another syncd runs"), "{ran}");
    let ran = synccli(&scratch.path("nobody")).arg("status").code(1);
    assert!(ran.err().contains("no syncd runs") && ran.err().contains("systemctl start syncd"), "{ran}");
}
