//! Section 2 of the contract: what the command line accepts and refuses, and what its exit codes mean.

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

use support::*;

/// A scratch with a small tree in SRC.
fn small() -> Scratch {
    let scratch = Scratch::new();
    write(scratch.src().join("a/file"), b"content");
    link_to("a", scratch.src().join("link"));
    scratch
}

#[test]
fn the_first_push_creates_an_absent_destination_exactly() {
    let scratch = small();
    scratch.push().ok();
    assert_exact(&scratch.src(), &scratch.dst());
}

#[test]
fn the_contents_of_src_become_the_contents_of_dest() {
    let scratch = small();
    let mut with_slash = scratch.src().into_os_string();
    with_slash.push("/");
    write(scratch.dst().join("old"), b"old");
    push_with(&scratch.state(), Path::new(&with_slash), &[scratch.dst()]).ok();
    assert_exact(&scratch.src(), &scratch.dst());
}

#[test]
fn relative_paths_are_destinations_when_they_start_with_a_dot() {
    let scratch = small();
    for (i, dest) in ["./here", "../there", ".", "..", "./deep.dir/"].iter().enumerate() {
        let cwd = scratch.dir(&format!("cwd{i}/sub/sub"));
        push_with(&scratch.path(format!("state{i}")), &scratch.src(), &[dest]).current_dir(&cwd).ok();
        // A push to the parent has removed the working directory, so the path is put together without it.
        let parent = scratch.path(format!("cwd{i}/sub"));
        let at = match dest.strip_prefix("..") {
            Some(rest) => parent.join(rest.trim_start_matches('/')),
            None => cwd.join(dest),
        };
        assert_exact(&scratch.src(), &at);
    }
}

#[test]
fn a_relative_src_is_taken_from_the_working_directory() {
    let scratch = small();
    push_with(&scratch.state(), Path::new("src"), &["./dst"]).current_dir(&scratch.path("")).ok();
    assert_exact(&scratch.src(), &scratch.dst());
    push_with(&scratch.state(), Path::new("."), &["../dst2"]).current_dir(&scratch.src()).ok();
    assert_exact(&scratch.src(), &scratch.path("dst2"));
}

#[test]
fn src_and_dest_may_be_links_to_directories() {
    let scratch = small();
    mkdir(scratch.path("real"));
    link_to("src", scratch.path("src link"));
    link_to("real", scratch.path("dst link"));
    push_with(&scratch.state(), &scratch.path("src link"), &[scratch.path("dst link")]).ok();
    assert_exact(&scratch.src(), &scratch.path("real"));
    assert!(std::fs::symlink_metadata(scratch.path("dst link")).unwrap().is_symlink(), "the link itself stays");
    // And again: the second push knows the place it was at.
    push_with(&scratch.state(), &scratch.path("src link"), &[scratch.path("dst link")]).ok().says("nothing");
}

#[test]
fn a_destination_that_is_neither_path_nor_share_is_usage_with_a_hint() {
    let scratch = small();
    for dest in [
        "backup",
        "host",
        "host:99999/share",
        "host:0x1/share",
        "host/",
        "/share:",
        "host:/share",
        "host/a/b",
        "",
        ".hidden",
        "...",
    ] {
        if dest.starts_with('/') {
            continue;
        }
        let cwd = scratch.dir("cwd");
        let ran = push_with(&scratch.state(), &scratch.src(), &[dest]).current_dir(&cwd).code(2);
        // The one is how rsync names a place on a host; whatever else may have been meant as a path.
        let hint = if dest == "host:/share" { "here it is HOST[:PORT]/SHARE" } else { "./" };
        assert!(dest.is_empty() || ran.err().contains(hint), "no hint at {hint} for {dest:?}\n{ran}");
        assert_eq!(std::fs::read_dir(&cwd).unwrap().count(), 0, "something was made for {dest:?}");
    }
}

#[test]
fn bad_arguments_are_usage_and_touch_nothing() {
    let scratch = small();
    write(scratch.dst().join("keep"), b"keep");
    let before = snapshot(&scratch.dst());
    let bad: [&[&str]; 16] = [
        &["--max-delete=-1"],
        &["--max-delete=many"],
        &["--max-delete=99999999999999999999999"],
        &["--bwlimit=fast"],
        &["--bwlimit=4q"],
        &["--bwlimit=-4m"],
        &["--bwlimit="],
        &["--bwlimit=99999999999999999999g"],
        &["--compress=gzip"],
        &["--compress=zstd:99"],
        &["--compress=zstd:x"],
        &["--compress=zstd:"],
        &["--exclude-from=/no/such/file"],
        &["--no-such-option"],
        &["--checksum=yes"],
        &["--exclude"],
    ];
    for args in bad {
        // The option goes last so that one without its value has none.
        scratch.push().args(args).code(2);
        assert_untouched(&before, &snapshot(&scratch.dst()));
    }
    synccli(&scratch.state()).args(&["push"]).code(2);
    // That is for a daemon, and there is none.
    let ran = synccli(&scratch.state()).args(&["push", "only-src"]).code(1);
    assert!(ran.err().contains("DEST"), "{ran}");
    synccli(&scratch.state()).args(&["no-such-verb"]).code(2);
    synccli(&scratch.state()).code(2);
    assert_untouched(&before, &snapshot(&scratch.dst()));
}

#[test]
fn good_arguments_are_accepted() {
    let scratch = small();
    let good: [&[&str]; 14] = [
        &["-n"],
        &["-v"],
        &["-q"],
        &["-i", "--stats"],
        &["--progress"],
        &["-c"],
        &["-x"],
        &["--no-delete"],
        &["--max-delete=0"],
        &["--bwlimit=4m"],
        &["--bwlimit=500k"],
        &["--compress=never"],
        &["--compress=zstd"],
        &["--compress=zstd:19"],
    ];
    for args in good {
        scratch.push().args(args).ok();
    }
    scratch.push().args(&["--dry-run", "--itemize-changes", "--checksum", "--one-file-system", "--compress=auto"]).ok();
    assert_exact(&scratch.src(), &scratch.dst());
}

#[test]
fn the_state_dir_is_global_before_or_after_the_verb() {
    let scratch = small();
    let mut before = Run::new(&bin("synccli"));
    before.arg("--state-dir").arg(scratch.state()).arg("push").arg(scratch.src()).arg(scratch.dst()).ok();
    let mut after = Run::new(&bin("synccli"));
    after.arg("push").arg("--state-dir").arg(scratch.state()).arg(scratch.src()).arg(scratch.dst());
    // The same index was found: nothing to do.
    after.ok().says("nothing");
    let (mut one, mut two) = (Run::new(&bin("syncd")), Run::new(&bin("syncd")));
    let first = one.arg("--state-dir").arg(scratch.path("r")).arg("id").ok().out();
    let second = two.arg("id").arg("--state-dir").arg(scratch.path("r")).ok().out();
    assert_eq!(first, second);
}

#[test]
fn the_default_state_dir_is_below_xdg_state_home_for_an_ordinary_user() {
    let name = "the_default_state_dir_is_below_xdg_state_home_for_an_ordinary_user";
    need!(name, is_root() && has("setpriv"), "needs root and setpriv to become somebody else");
    let scratch = small();
    let user = scratch.dir("user");
    set_owner(&user, 12345, 12345);
    copied_synccli(&scratch);
    let mut run = Run::new(&scratch.path("synccli"));
    run.arg("push").arg(scratch.src()).arg(user.join("dst"));
    let state = format!("XDG_STATE_HOME={}", user.join("xdg").display());
    run.behind(&["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "--", "env", &state]).ok();
    assert!(user.join("xdg/syncd").is_dir());
    let mut run = Run::new(&scratch.path("synccli"));
    run.arg("push").arg(scratch.src()).arg(user.join("dst2"));
    let home = format!("HOME={}", user.display());
    run.behind(&[
        "setpriv",
        "--reuid=12345",
        "--regid=12345",
        "--clear-groups",
        "--",
        "env",
        "-u",
        "XDG_STATE_HOME",
        &home,
    ])
    .ok();
    assert!(user.join(".local/state/syncd").is_dir());
}

#[test]
fn a_missing_src_is_refused_and_nothing_is_touched() {
    let scratch = Scratch::new();
    write(scratch.dst().join("keep"), b"keep");
    let before = snapshot(&scratch.dst());
    scratch.push().run().one_of(&[1, 2]).names("src");
    assert_untouched(&before, &snapshot(&scratch.dst()));
    assert!(!scratch.path("src").exists());
    scratch.push_to(&[scratch.path("absent")]).run().one_of(&[1, 2]);
    assert!(!scratch.path("absent").exists(), "a refused push made its destination");
}

#[test]
fn a_src_that_is_no_directory_is_refused_and_nothing_is_touched() {
    let scratch = Scratch::new();
    write(scratch.dst().join("keep"), b"keep");
    let before = snapshot(&scratch.dst());
    write(scratch.path("file"), b"file");
    link_to("file", scratch.path("link to file"));
    link_to("nowhere", scratch.path("dangling"));
    fifo(scratch.path("fifo"));
    for src in ["file", "link to file", "dangling", "fifo"] {
        push_with(&scratch.state(), &scratch.path(src), &[scratch.dst()]).timeout(20).run().one_of(&[1, 2]).names(src);
        assert_untouched(&before, &snapshot(&scratch.dst()));
    }
}

#[test]
fn a_dest_that_is_no_directory_fails_and_stays() {
    let scratch = small();
    write(scratch.path("file"), b"file");
    fifo(scratch.path("fifo"));
    link_to("nowhere", scratch.path("dangling"));
    for dest in ["file", "fifo", "dangling", "file/below"] {
        scratch.push_to(&[scratch.path(dest)]).timeout(20).run().one_of(&[1, 2]).names(dest);
    }
    assert_eq!(std::fs::read(scratch.path("file")).unwrap(), b"file");
    assert!(!scratch.path("nowhere").exists());
}

#[test]
fn nested_and_equal_trees_are_refused_and_nothing_is_touched() {
    let scratch = small();
    write(scratch.src().join("in/side/file"), b"x");
    link_to("src", scratch.path("alias"));
    link_to("src/in", scratch.path("alias in"));
    let before = snapshot(&scratch.src());
    let pairs = [
        ("src", "src"),
        ("src", "src/"),
        ("src", "alias"),
        ("alias", "src"),
        ("src", "src/in"),
        ("src", "src/in/side/new"),
        ("src", "src/new"),
        ("src", "alias/new"),
        ("src", "alias in"),
        ("src/in", "src"),
        ("src/in/side", "src"),
        ("alias in", "src"),
        ("src/in", "alias"),
        ("src", "src/in/../../src"),
    ];
    for (src, dst) in pairs {
        push_with(&scratch.state(), &scratch.path(src), &[scratch.path(dst)]).run().one_of(&[1, 2]);
        assert_untouched(&before, &snapshot(&scratch.src()));
    }
    // A good destination beside a bad one is not touched either: the command as a whole is refused.
    push_with(&scratch.state(), &scratch.src(), &[scratch.path("good"), scratch.path("src/in")]).run().one_of(&[1, 2]);
    assert_untouched(&before, &snapshot(&scratch.src()));
}

#[test]
fn a_bind_mount_does_not_hide_that_the_trees_are_one() {
    let scratch = small();
    need!("a_bind_mount_does_not_hide_that_the_trees_are_one", scratch.mounts, "needs root and a mount namespace");
    let same = scratch.dir("same");
    bind(&scratch.src(), &same);
    let before = snapshot(&scratch.src());
    push_with(&scratch.state(), &scratch.src(), &[&same]).run().one_of(&[1, 2]);
    assert_untouched(&before, &snapshot(&scratch.src()));
}

/// However two trees are mounted, one that lies in the other is found before anything is touched.
#[test]
fn a_bind_mount_does_not_hide_that_one_tree_lies_in_the_other() {
    let name = "a_bind_mount_does_not_hide_that_one_tree_lies_in_the_other";
    let scratch = small();
    need!(name, scratch.mounts, "needs root and a mount namespace");
    let src = scratch.src();
    write(src.join("data/sub/file"), b"x");
    let (t, other, jail) = (scratch.dir("t"), scratch.dir("other"), scratch.dir("jail"));
    for dir in [t.join("data"), t.join("with blank"), jail.join("all"), jail.join("part"), src.join("hole")] {
        mkdir(dir);
    }
    bind(&src.join("data"), &t.join("data"));
    bind(&src.join("data"), &t.join("with blank"));
    bind(&other, &src.join("hole"));
    write(other.join("kept/file"), b"kept");
    bind(&src, &jail.join("all"));
    let before = snapshot(&src);
    let refused = |from: &Path, to: &Path| {
        for options in [&["-n"][..], &[]] {
            push_with(&scratch.state(), from, &[to]).args(options).code(2).says("the source");
        }
        synccli(&scratch.state()).arg("diff").args(&[from, to]).code(2).says("the source");
        assert_untouched(&before, &snapshot(&src));
    };
    // DEST is a part of SRC by another name, or would be.
    refused(&src, &t.join("data"));
    refused(&src, &t.join("data/sub"));
    refused(&src, &t.join("data/new"));
    refused(&src, &t.join("with blank"));
    // What is mounted in SRC is DEST, or holds it.
    refused(&src, &other);
    refused(&src, &other.join("kept"));
    // SRC, or a part of it, is mounted in DEST.
    refused(&src, &jail);
    unmount(&jail.join("all"));
    bind(&src.join("data"), &jail.join("part"));
    refused(&src, &jail);
    // SRC is a part of DEST by another name.
    refused(&t.join("data"), &src);
    // Without what is mounted there, the trees are apart.
    push_with(&scratch.state(), &src, &[&other]).arg("-x").ok();
    assert!(other.join("a/file").exists());
    unmount(&src.join("hole"));
    unmount(&jail.join("part"));
    push_with(&scratch.state(), &src, &[&jail]).ok();
    assert_exact(&src, &jail);
}

#[test]
fn a_sibling_whose_name_starts_the_same_is_not_nested() {
    let scratch = small();
    push_with(&scratch.state(), &scratch.src(), &[scratch.path("src2")]).ok();
    assert_exact(&scratch.src(), &scratch.path("src2"));
}

#[test]
fn the_same_destination_twice_is_no_mix() {
    let scratch = small();
    scratch.push_to(&[scratch.dst(), scratch.dst()]).timeout(30).run().one_of(&[0, 1, 2]);
    scratch.push().ok();
    assert_exact(&scratch.src(), &scratch.dst());
}

#[test]
fn help_documents_the_options_and_the_exit_codes() {
    let mut run = Run::new(&bin("synccli"));
    let help = run.args(&["push", "--help"]).ok().out();
    let options = "--dry-run --itemize-changes --exclude --include --exclude-from --delete-excluded --no-delete \
        --max-delete --checksum --bwlimit --compress --stats --json --progress --state-dir --one-file-system";
    for option in options.split_whitespace() {
        assert!(help.contains(option), "push --help does not tell {option}");
    }
    let mut top = Run::new(&bin("synccli"));
    let both = top.arg("--help").ok().out() + &help;
    assert!(["130", "143"].iter().all(|code| both.contains(code)), "the exit codes are not documented:\n{both}");
}

#[test]
fn an_empty_src_empties_the_destination() {
    let scratch = Scratch::new();
    scratch.src();
    write(scratch.dst().join("a/b/c"), b"c");
    scratch.push().ok();
    assert_exact(&scratch.src(), &scratch.dst());
}

#[test]
fn a_state_dir_inside_src_is_left_out_with_a_notice() {
    let scratch = small();
    let state = scratch.src().join("var/state");
    mkdir(scratch.src().join("var"));
    for round in 0..2 {
        let ran = push_with(&state, &scratch.src(), &[scratch.dst()]).ok();
        if round == 0 {
            ran.says("state");
        }
        assert!(scratch.dst().join("a/file").exists() && scratch.dst().join("var").is_dir());
        assert!(!scratch.dst().join("var/state").exists(), "the state directory was pushed");
    }
    assert_exact_but(&scratch.src(), &scratch.dst(), |tree| {
        tree.retain(|path, _| !path.starts_with(b"var"));
    });
}

#[test]
fn a_state_dir_inside_dest_is_refused_or_left_alone() {
    let scratch = small();
    mkdir(scratch.dst());
    let state = scratch.dst().join("state");
    for _ in 0..2 {
        let ran = push_with(&state, &scratch.src(), &[scratch.dst()]).run().one_of(&[0, 1, 2]);
        if ran.status.success() {
            assert!(state.is_dir(), "the push removed its own state\n{ran}");
            assert!(scratch.dst().join("a/file").exists());
        } else {
            ran.says("state");
        }
    }
}

#[test]
fn a_dest_in_the_state_dir_is_refused_and_no_pairing_is_lost() {
    let scratch = small();
    let state = scratch.dir("mm");
    write(state.join("known/replica.example.org:7373"), "an id");
    link_to("mm/known", scratch.path("alias"));
    for dest in ["mm/known", "mm/new", "mm", "alias"] {
        push_with(&state, &scratch.src(), &[scratch.path(dest)]).code(2).says("the state directory");
        assert_eq!(std::fs::read(state.join("known/replica.example.org:7373")).unwrap(), b"an id");
        assert!(!state.join("new").exists());
    }
}

#[test]
fn a_dest_on_what_is_not_mounted_any_more_is_not_even_made() {
    let name = "a_dest_on_what_is_not_mounted_any_more_is_not_even_made";
    let scratch = small();
    need!(name, scratch.mounts, "needs root and a mount namespace");
    let mounted = scratch.dir("u");
    mount_tmpfs(&mounted, "size=10m");
    let dest = mounted.join("c");
    push_with(&scratch.state(), &scratch.src(), &[&dest]).ok();
    unmount(&mounted);
    push_with(&scratch.state(), &scratch.src(), &[&dest]).code(1).says("nothing was changed");
    assert!(!dest.exists(), "something was");
    push_with(&scratch.state(), &scratch.src(), &[&dest]).arg("--checksum").ok();
    assert_exact(&scratch.src(), &dest);
}

#[test]
fn the_reserved_staging_name_in_src_is_reported_and_the_rest_is_done() {
    let scratch = small();
    write(scratch.src().join("sub").join(STAGING).join("file"), b"x");
    scratch.push().code(1).names(STAGING);
    assert!(scratch.dst().join("a/file").exists());
    assert!(!scratch.dst().join("sub").join(STAGING).exists());
    std::fs::remove_dir_all(scratch.src().join("sub").join(STAGING)).unwrap();
    scratch.push().ok();
    assert_exact(&scratch.src(), &scratch.dst());
}
