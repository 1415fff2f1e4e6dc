//! Section 3: `syncd` as a replica. Identity, invitations, pairing, configuration, and how it ends.

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

use std::io::Write as _;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use rustix::process::Signal;
use support::daemon::{free_port, pair, syncd};
use support::*;

/// A scratch with a small SRC and an existing DST.
fn small() -> Scratch {
    let scratch = Scratch::new();
    many(&scratch.src(), 60, 1);
    mkdir(scratch.dst());
    scratch
}

#[test]
fn the_four_commands_of_the_contract_work() {
    let scratch = small();
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    let token = daemon.invite();
    pair(&scratch.path("m"), daemon.port, &token).ok();
    push_with(&scratch.path("m"), &scratch.src(), &[daemon.dest("www")]).ok();
    assert_exact(&scratch.src(), &scratch.dst());
    push_with(&scratch.path("m"), &scratch.src(), &[daemon.dest("www")]).ok().says("nothing");
}

#[test]
fn a_share_whose_directory_is_absent_is_made_or_refused_clearly() {
    let scratch = small();
    let absent = scratch.path("absent");
    let mut run = syncd(&scratch.path("r"));
    let port = free_port();
    let mut running =
        run.args(&["--listen", &format!("127.0.0.1:{port}"), "--share", &format!("www={}", absent.display())]).start();
    std::thread::sleep(Duration::from_millis(800));
    if running.is_running() {
        let token = syncd(&scratch.path("r")).arg("invite").ok().out();
        pair(&scratch.path("m"), port, token.trim()).ok();
        push_with(&scratch.path("m"), &scratch.src(), &[format!("127.0.0.1:{port}/www")]).ok();
        assert_exact(&scratch.src(), &absent);
        running.signal(Signal::TERM);
        running.wait();
    } else {
        running.wait().names("absent");
    }
}

/// As `timeout` sends one to the process and to its group.
#[test]
fn a_signal_that_comes_twice_at_once_ends_it_in_order() {
    let scratch = small();
    let mut daemon = Daemon::new(&scratch, "r", &[("www", &scratch.dst())]);
    for _ in 0..5 {
        daemon.up();
        daemon.signal(Signal::INT);
        assert!(daemon.term().1.success(), "{}", daemon.logged());
    }
}

#[test]
fn an_invitation_works_whether_or_not_the_daemon_runs() {
    let scratch = small();
    let mut daemon = Daemon::new(&scratch, "r", &[("www", &scratch.dst())]);
    // Made before the daemon ever ran.
    let early = daemon.invite();
    daemon.up();
    pair(&scratch.path("m1"), daemon.port, &early).ok();
    // Made while it runs.
    let later = daemon.invite();
    pair(&scratch.path("m2"), daemon.port, &later).ok();
    // Made while it is down; used after its restart.
    daemon.term();
    let down = daemon.invite();
    daemon.up();
    pair(&scratch.path("m3"), daemon.port, &down).ok();
    for (i, master) in ["m1", "m2", "m3"].iter().enumerate() {
        write(scratch.src().join("who"), format!("{i}"));
        // Another master's share may need adopting; the handshake is what counts here.
        let ran = push_with(&scratch.path(master), &scratch.src(), &[daemon.dest("www")]).run();
        assert!(!ran.said().contains("synccli pair"), "{master} is not paired\n{ran}");
        if i == 0 {
            ran.code(0);
        }
    }
}

#[test]
fn a_token_works_once() {
    let scratch = small();
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    let token = daemon.invite();
    pair(&scratch.path("m"), daemon.port, &token).ok();
    pair(&scratch.path("thief"), daemon.port, &token).code(1);
    let before = snapshot(&scratch.dst());
    push_with(&scratch.path("thief"), &scratch.src(), &[daemon.dest("www")]).code(1);
    assert_untouched(&before, &snapshot(&scratch.dst()));
}

#[test]
fn two_at_once_with_one_token_are_not_both_paired() {
    let scratch = small();
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    for round in 0..5 {
        let token = daemon.invite();
        let one = pair(&scratch.path(format!("a{round}")), daemon.port, &token).start();
        let two = pair(&scratch.path(format!("b{round}")), daemon.port, &token).start();
        let (one, two) = (one.wait(), two.wait());
        assert!(one.status.success() != two.status.success(), "{one}\n{two}");
    }
}

/// Also where the configuration makes no sense.
#[test]
fn the_manual_and_the_completions_name_what_the_help_does() {
    let scratch = Scratch::new();
    let config = scratch.path("bad.toml");
    std::fs::write(&config, "nonsense").unwrap();
    let ask =
        |args: &[&str]| daemon::syncd(&scratch.state()).args(&["--config", config.to_str().unwrap()]).args(args).ok();
    let page = ask(&["man"]).out().replace('\\', "");
    for said in ["--state-dir", "--log-format", "invite", "Exit codes"] {
        assert!(page.contains(said), "{said} is missing: {page}");
    }
    assert!(ask(&["completions", "bash"]).out().contains("--log-format"));
}

#[test]
fn a_wrong_or_mangled_token_pairs_nobody() {
    let scratch = small();
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    let other = Daemon::start(&scratch, "other", &[("www", &scratch.dir("other dst"))]);
    let token = daemon.invite();
    // The token of another daemon: its id is checked before the secret is sent.
    pair(&scratch.path("m"), other.port, &token).code(1);
    let mut mangled =
        vec![String::new(), "x".into(), token[..token.len() - 1].to_string(), format!("{token}a"), "-".repeat(500)];
    for at in (0..token.len()).step_by(7) {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'b' { b'c' } else { b'b' };
        mangled.push(String::from_utf8(bytes).unwrap());
    }
    for bad in mangled {
        let mut run = synccli(&scratch.path("m"));
        run.args(&["pair", &format!("127.0.0.1:{}", daemon.port), "--", &bad]).run().one_of(&[1, 2]);
    }
    // None of these has used it up.
    pair(&scratch.path("m"), daemon.port, &token).ok();
}

#[test]
fn the_secret_of_a_token_is_not_stored() {
    let scratch = small();
    let daemon = Daemon::new(&scratch, "r", &[("www", &scratch.dst())]);
    let token = daemon.invite();
    let parts: Vec<&str> = token.split(|c: char| !c.is_ascii_alphanumeric()).filter(|p| p.len() >= 8).collect();
    assert!(!parts.is_empty(), "{token}");
    let id = syncd(&daemon.state).arg("id").ok().out();
    for (path, node) in snapshot(&daemon.state) {
        let Content::Bytes(bytes) = &node.content else { continue };
        let text = String::from_utf8_lossy(bytes).to_lowercase();
        assert!(!text.contains(&token.to_lowercase()), "{} holds the token", shown(&path));
        for part in parts.iter().filter(|p| !id.to_lowercase().contains(&p.to_lowercase())) {
            assert!(!text.contains(&part.to_lowercase()), "{} holds a part of the token", shown(&path));
        }
    }
}

#[test]
fn the_identity_is_made_once_and_its_key_is_private() {
    let scratch = small();
    let state = scratch.path("r");
    let id = syncd(&state).arg("id").ok().out();
    assert_eq!(id.lines().count(), 1, "{id}");
    assert!(id.trim().len() >= 20);
    assert_eq!(syncd(&state).arg("id").ok().out(), id);
    assert_eq!(std::fs::metadata(&state).unwrap().permissions().mode() & 0o077, 0, "others may look into the state");
    let secret = snapshot(&state).into_values().filter(|n| n.kind == Kind::File && n.mode == 0o600).count();
    assert!(secret >= 1, "no file with mode 0600");
    for (path, node) in snapshot(&state) {
        assert!(node.kind != Kind::File || node.mode & 0o077 == 0, "{} is {:o}", shown(&path), node.mode);
    }
    // Two at once agree on one.
    let fresh = scratch.path("fresh");
    let runs: Vec<_> = (0..4).map(|_| syncd(&fresh).arg("id").start()).collect();
    let ids: std::collections::BTreeSet<String> = runs.into_iter().map(|r| r.wait().code(0).out()).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
}

#[test]
fn an_unknown_key_is_refused_and_told_how_to_pair() {
    let scratch = small();
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.path("m"));
    write(scratch.dst().join("theirs"), b"theirs");
    let before = snapshot(&scratch.dst());
    // Never paired: the pushing side does not know the replica either.
    let stranger = push_with(&scratch.path("stranger"), &scratch.src(), &[daemon.dest("www")]).code(1);
    stranger.names("synccli pair").does_not_say("nothing to do");
    // Knows the replica, but is not known by it: the daemon has lost its list, keeping its identity.
    let kept: Vec<_> = snapshot(&daemon.state).into_keys().filter(|p| shown(p).contains("trusted")).collect();
    if kept.is_empty() {
        skip("an_unknown_key_is_refused_and_told_how_to_pair", "the list of trusted masters was not found by name");
    } else {
        let mut daemon = daemon;
        daemon.term();
        remove(&daemon.state.join(os(&kept[0])));
        daemon.up();
        push_with(&scratch.path("m"), &scratch.src(), &[daemon.dest("www")]).code(1).names("synccli pair");
    }
    assert_untouched(&before, &snapshot(&scratch.dst()));
}

#[test]
fn another_identity_at_the_same_address_is_refused() {
    // The keys are pinned both ways: a daemon that lost its identity is somebody else.
    let scratch = small();
    let mut daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.path("m"));
    push_with(&scratch.path("m"), &scratch.src(), &[daemon.dest("www")]).ok();
    daemon.term();
    remove(&daemon.state);
    daemon.up();
    append(scratch.src().join("d000/f00001"), b"more");
    let before = snapshot(&scratch.dst());
    push_with(&scratch.path("m"), &scratch.src(), &[daemon.dest("www")]).code(1).names("pair");
    assert_untouched(&before, &snapshot(&scratch.dst()));
    daemon.pair(&scratch.path("m"));
    push_with(&scratch.path("m"), &scratch.src(), &[daemon.dest("www")]).ok();
    assert_exact(&scratch.src(), &scratch.dst());
}

#[test]
fn an_unknown_share_is_named() {
    let scratch = small();
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.path("m"));
    push_with(&scratch.path("m"), &scratch.src(), &[daemon.dest("nosuch")]).code(1).names("nosuch");
    assert_eq!(std::fs::read_dir(scratch.dst()).unwrap().count(), 0);
}

#[test]
fn several_shares_have_their_own_versions() {
    let scratch = small();
    let (one, two) = (scratch.dir("one"), scratch.dir("two"));
    let daemon = Daemon::start(&scratch, "r", &[("one", &one), ("two", &two)]);
    daemon.pair(&scratch.path("m"));
    write(scratch.path("src2/file"), b"second tree");
    let push = |src: &str, share: &str| push_with(&scratch.path("m"), &scratch.path(src), &[daemon.dest(share)]).ok();
    push("src", "one");
    push("src2", "two");
    assert_exact(&scratch.src(), &one);
    assert_exact(&scratch.path("src2"), &two);
    // A share that is given another tree becomes that tree.
    push("src2", "one");
    assert_exact(&scratch.path("src2"), &one);
    push("src", "one");
    assert_exact(&scratch.src(), &one);
}

#[test]
fn bad_shares_are_refused() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.dir("a"), scratch.dir("a/below"));
    link_to("a", scratch.path("alias"));
    write(scratch.path("file"), b"file");
    let share = |name: &str, path: &std::path::Path| format!("{name}={}", path.display());
    let state = scratch.path("r");
    let inside = scratch.dir("a/state");
    let cases: Vec<(&str, std::path::PathBuf, Vec<String>)> = vec![
        ("overlap", state.clone(), vec![share("one", &a), share("two", &b)]),
        ("overlap, other order", state.clone(), vec![share("one", &b), share("two", &a)]),
        ("twice the same directory", state.clone(), vec![share("one", &a), share("two", &a)]),
        ("the same through a link", state.clone(), vec![share("one", &a), share("two", &scratch.path("alias"))]),
        ("below through a link", state.clone(), vec![share("one", &b), share("two", &scratch.path("alias"))]),
        ("twice the same name", state.clone(), vec![share("one", &a), share("one", &scratch.dir("c"))]),
        ("the root", state.clone(), vec!["one=/".into()]),
        ("the root, spelled otherwise", state.clone(), vec!["one=/usr/..".into()]),
        ("state inside", inside.clone(), vec![share("one", &a)]),
        ("state is the share", a.clone(), vec![share("one", &a)]),
        ("state inside through a link", scratch.path("alias/state"), vec![share("one", &a)]),
        ("relative", state.clone(), vec!["one=relative/path".into()]),
        ("no path", state.clone(), vec!["one=".into()]),
        ("no name", state.clone(), vec![format!("={}", a.display())]),
        ("no equals", state.clone(), vec!["one".into()]),
        ("a slash in the name", state.clone(), vec![share("o/ne", &a)]),
        ("a file", state.clone(), vec![share("one", &scratch.path("file"))]),
    ];
    for (what, state, shares) in cases {
        let mut run = syncd(&state);
        run.args(&["--listen", &format!("127.0.0.1:{}", free_port())]).timeout(5);
        for share in &shares {
            run.args(&["--share", share]);
        }
        let mut running = run.start();
        let end = std::time::Instant::now() + Duration::from_secs(4);
        while running.is_running() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!running.is_running(), "syncd runs with: {what}");
        let ran = running.wait();
        assert!(ran.status.code().is_some_and(|c| c != 0) && !ran.raw_err.is_empty(), "{what}\n{ran}");
    }
}

#[test]
fn a_configuration_file_is_read_and_its_errors_have_their_place() {
    let scratch = small();
    let config = scratch.path("syncd.toml");
    let port = free_port();
    let good = format!(
        "state_dir = \"{}\"\nlisten = [\"127.0.0.1:{port}\"]\n\n[shares.www]\npath = \"{}\"\n",
        scratch.path("r").display(),
        scratch.dst().display()
    );
    write(&config, &good);
    let start = || {
        let mut run = Run::new(&bin("syncd"));
        run.arg("--config").arg(&config).timeout(20).start()
    };
    let mut running = start();
    wait_for("syncd to listen", 10, || UdpSocket::bind(("127.0.0.1", port)).is_err());
    let token = syncd(&scratch.path("r")).arg("invite").ok().out();
    pair(&scratch.path("m"), port, token.trim()).ok();
    push_with(&scratch.path("m"), &scratch.src(), &[format!("127.0.0.1:{port}/www")]).ok();
    assert_exact(&scratch.src(), &scratch.dst());
    running.signal(Signal::TERM);
    running.wait();
    let bad: [(&str, String, &[&str]); 6] = [
        ("an unknown key", format!("unheard_of = 1\n{good}"), &["unheard_of", "1"]),
        ("an unknown key below", format!("{good}colour = \"red\"\n"), &["colour", "6"]),
        ("a wrong type", good.replace("[\"127", "[17, \"127"), &["2"]),
        ("no TOML", "listen = [\n\n= =".to_string(), &["syncd.toml"]),
        ("no UTF-8", String::new(), &["syncd.toml"]),
        ("a relative share", good.replace("path = \"/", "path = \"./"), &["5"]),
    ];
    for (what, text, words) in bad {
        write(&config, if what == "no UTF-8" { b"listen = \"\xff\xfe\"\n".to_vec() } else { text.into_bytes() });
        let mut running = start();
        std::thread::sleep(Duration::from_millis(100));
        wait_for(&format!("syncd to refuse {what}"), 5, || !running.is_running());
        let ran = running.wait();
        assert!(!ran.status.success(), "{what}\n{ran}");
        for word in words {
            assert!(ran.err().contains(word), "{what}: {word} is not named\n{ran}");
        }
    }
    std::fs::remove_file(&config).unwrap();
    start().wait().one_of(&[1, 2]).names("syncd.toml");
}

#[test]
fn a_port_that_is_taken_is_a_clear_error() {
    let scratch = small();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut run = syncd(&scratch.path("r"));
    let share = format!("www={}", scratch.dst().display());
    let ran = run.args(&["--listen", &format!("127.0.0.1:{port}"), "--share", &share]).timeout(10).run();
    assert!(!ran.status.success(), "{ran}");
    ran.names(&port.to_string());
}

#[test]
fn sigterm_ends_an_idle_daemon_at_once() {
    let scratch = small();
    let mut daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.path("m"));
    let (took, status) = daemon.term();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(status.success() || status.code() == Some(143), "{status}");
    // And its state is whole.
    daemon.up();
    push_with(&scratch.path("m"), &scratch.src(), &[daemon.dest("www")]).ok();
    assert_exact(&scratch.src(), &scratch.dst());
}

#[test]
fn sigterm_ends_a_working_daemon_within_five_seconds_with_nothing_half_done() {
    let scratch = Scratch::new();
    many(&scratch.src(), 600, 1);
    mkdir(scratch.dst());
    let mut daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.path("m"));
    let whole = push_with(&scratch.path("m"), &scratch.src(), &[daemon.dest("www")]).ok().took;
    for point in 0..6 {
        let old = snapshot(&scratch.dst());
        edit_many(&scratch.src(), if point == 0 { 600 } else { 0 }, 3);
        write(scratch.src().join("large"), noise(point.into(), 8 << 20));
        let new = snapshot(&scratch.src());
        let push = push_with(&scratch.path("m"), &scratch.src(), &[daemon.dest("www")]).timeout(60).start();
        std::thread::sleep(whole * (point + 1) / 7);
        let (took, _) = daemon.term();
        assert!(took < Duration::from_secs(5), "{took:?}");
        // A daemon that goes in order says good-bye, so the master does not wait for a time-out.
        let ran = push.wait().one_of(&[0, 1]);
        assert!(ran.took < Duration::from_secs(12), "the master was left to wait\n{ran}");
        let seen = snapshot(&scratch.dst());
        assert_old_or_new(&old, &new, &seen);
        assert_no_differences("left over", &leftovers(&seen));
        daemon.up();
        push_with(&scratch.path("m"), &scratch.src(), &[daemon.dest("www")]).ok();
        assert_exact(&scratch.src(), &scratch.dst());
    }
}

#[test]
fn garbage_on_the_wire_disturbs_nobody() {
    let scratch = small();
    let mut daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.path("m"));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = ("127.0.0.1", daemon.port);
    for seed in 0..3000_u64 {
        let mut packet = noise(seed, usize::try_from(seed % 1500).unwrap());
        if let Some(first) = packet.first_mut().filter(|_| seed % 2 == 0) {
            // Looks like the first packet of a QUIC version 1 connection.
            *first = 0xC0 | (*first & 0x0F);
            packet.splice(1..packet.len().min(5), [0, 0, 0, 1]);
        }
        let _ = socket.send_to(&packet, target);
    }
    push_with(&scratch.path("m"), &scratch.src(), &[daemon.dest("www")]).ok();
    assert_exact(&scratch.src(), &scratch.dst());
    assert!(daemon.is_running());
}

#[test]
fn a_second_daemon_with_the_same_state_or_share_is_no_danger() {
    let scratch = small();
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    daemon.pair(&scratch.path("m"));
    push_with(&scratch.path("m"), &scratch.src(), &[daemon.dest("www")]).ok();
    // The same share from another state directory: it may run, but pushes to the two never mix.
    let other = Daemon::start(&scratch, "r2", &[("www", &scratch.dst())]);
    other.pair(&scratch.path("m2"));
    write(scratch.path("src2/only"), noise(1, 3 << 20));
    let one = push_with(&scratch.path("m"), &scratch.src(), &[daemon.dest("www")]).start();
    let two = push_with(&scratch.path("m2"), &scratch.path("src2"), &[other.dest("www")]).start();
    let (one, two) = (one.wait(), two.wait());
    assert!(one.status.success() || two.status.success(), "{one}\n{two}");
    let seen = snapshot(&scratch.dst());
    let (to_one, to_two) =
        (differences(&snapshot(&scratch.src()), &seen), differences(&snapshot(&scratch.path("src2")), &seen));
    assert!(to_one.is_empty() || to_two.is_empty(), "a mix\n{to_one:?}\n{to_two:?}");
}

#[test]
fn logs_are_text_or_json() {
    let scratch = small();
    let config = scratch.path("syncd.toml");
    let port = free_port();
    let text = format!(
        "log_format = \"json\"\nstate_dir = \"{}\"\nlisten = [\"127.0.0.1:{port}\"]\n[shares.www]\npath = \"{}\"\n",
        scratch.path("r").display(),
        scratch.dst().display()
    );
    std::fs::File::create(&config).unwrap().write_all(text.as_bytes()).unwrap();
    let mut run = Run::new(&bin("syncd"));
    let mut running = run.arg("--config").arg(&config).start();
    wait_for("syncd to listen", 10, || UdpSocket::bind(("127.0.0.1", port)).is_err());
    let token = syncd(&scratch.path("r")).arg("invite").ok().out();
    pair(&scratch.path("m"), port, token.trim()).ok();
    push_with(&scratch.path("m"), &scratch.src(), &[format!("127.0.0.1:{port}/www")]).ok();
    running.signal(Signal::TERM);
    let ran = running.wait();
    let lines: Vec<String> = ran.said().lines().filter(|l| !l.is_empty()).map(str::to_string).collect();
    assert!(!lines.is_empty(), "it says nothing\n{ran}");
    let parsed = |line: &String| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
    let values: Vec<serde_json::Value> = lines.iter().map(parsed).collect();
    // Which share came to which version, and how.
    let done: Vec<_> = values.iter().filter(|line| line["message"] == "done").collect();
    assert_eq!(done.len(), 1, "{ran}");
    assert_eq!((&done[0]["share"], &done[0]["version"]), (&"www".into(), &1.into()));
    assert_eq!(done[0]["exact"], true);
}

/// A share on the machine of the master is found to overlap with the source whatever it is called.
#[test]
fn a_share_of_this_machine_that_overlaps_with_src_is_refused() {
    let scratch = Scratch::new();
    let outer = scratch.dir("outer");
    let src = outer.join("src");
    write(src.join("in/file"), b"file");
    let elsewhere = scratch.dir("elsewhere");
    if scratch.mounts {
        bind(&src.join("in"), &elsewhere);
    }
    let mut apart = vec![];
    for (i, (share, how)) in [
        (src.join("in"), Some("lies inside the source")),
        (outer.clone(), Some("contains the source")),
        (src.clone(), Some("is the same as the source")),
        (elsewhere, Some("lies inside the source").filter(|_| scratch.mounts)),
        (scratch.path("beside"), None),
    ]
    .into_iter()
    .enumerate()
    {
        let daemon = Daemon::start(&scratch, &format!("replica{i}"), &[("it", &share)]);
        daemon.pair(&scratch.state());
        let before = snapshot(&outer);
        match how {
            Some(how) => {
                for options in [&["-n"][..], &[]] {
                    push_with(&scratch.state(), &src, &[daemon.dest("it")]).args(options).code(1).says(how);
                }
                assert_untouched(&before, &snapshot(&outer));
            }
            None => {
                push_with(&scratch.state(), &src, &[daemon.dest("it")]).ok();
                apart.push(share);
            }
        }
    }
    apart.iter().for_each(|share| assert_exact(&src, share));
}

#[test]
fn a_token_of_another_state_directory_is_told_from_a_machine_that_changed() {
    let scratch = small();
    let daemon = Daemon::start(&scratch, "r", &[("www", &scratch.dst())]);
    let token = syncd(&scratch.path("elsewhere")).arg("invite").ok().out();
    let ran = pair(&scratch.path("m"), daemon.port, token.trim()).code(1);
    ran.names("the token is of the identity").names("--state-dir");
}
