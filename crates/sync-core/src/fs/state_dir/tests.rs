use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU8, Ordering};

use super::*;

fn state() -> (tempfile::TempDir, StateDir) {
    let top = tempfile::tempdir().unwrap();
    let state = StateDir::open(&top.path().join("a/b")).unwrap();
    (top, state)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn the_directory_and_the_key_are_the_owners_alone() {
    let (_top, state) = state();
    assert_eq!(mode(state.path()), 0o700);
    assert_eq!(state.identity_key(|| b"secret".to_vec()).unwrap(), b"secret");
    assert_eq!(mode(&state.path().join(IDENTITY)), 0o600);
    assert_eq!(state.identity_key(|| panic!("made twice")).unwrap(), b"secret");
    fs::set_permissions(state.path().join(IDENTITY), fs::Permissions::from_mode(0o640)).unwrap();
    let error = state.identity_key(Vec::new).unwrap_err().to_string();
    assert!(error.contains("identity.key: others may read") && error.contains("0640"), "{error}");
}

#[test]
fn a_directory_that_everybody_may_write_to_keeps_no_secrets() {
    let top = tempfile::tempdir().unwrap();
    fs::set_permissions(top.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let error = StateDir::open(top.path()).unwrap_err().to_string();
    assert!(error.contains("everybody may write") && error.contains("chmod"), "{error}");
    fs::set_permissions(top.path(), fs::Permissions::from_mode(0o755)).unwrap();
    StateDir::open(top.path()).unwrap();
}

#[test]
fn programs_that_start_at_once_agree_on_one_identity() {
    let (_top, state) = state();
    let made = AtomicU8::new(0);
    let keys: Vec<_> = std::thread::scope(|scope| {
        let start = || state.identity_key(|| vec![made.fetch_add(1, Ordering::Relaxed) + 1]).unwrap();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(keys, vec![vec![1]; 8]);
}

#[test]
fn an_invitation_is_redeemed_once_and_in_time() {
    let (_top, state) = state();
    let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
    assert!(!state.invitation_open(0).unwrap());
    assert!(!state.consume_invitation(&one, 0).unwrap());
    state.add_invitation(&one, 100, 50).unwrap();
    state.add_invitation(&two, 200, 60).unwrap();
    assert!(state.invitation_open(199).unwrap() && !state.invitation_open(200).unwrap());
    assert!(!state.consume_invitation(&Digest::of(b"guess"), 70).unwrap());
    assert!(state.consume_invitation(&one, 70).unwrap());
    assert!(!state.consume_invitation(&one, 70).unwrap(), "used twice");
    assert!(!state.consume_invitation(&two, 200).unwrap(), "expired");
    assert!(!state.invitation_open(0).unwrap(), "an expired one is forgotten");
    state.write_invitations(&vec![(one, 100); MAX_INVITATIONS]).unwrap();
    assert!(state.add_invitation(&two, 100, 50).is_err());
    assert!(state.add_invitation(&two, 200, 100).is_ok());
}

#[test]
fn damaged_invitations_are_an_error_with_the_line() {
    let (_top, state) = state();
    let good = format!("{} 5\n", Digest::of(b"x"));
    let long = format!("{good}{good}");
    let bad: [(&[u8], usize); 6] = [
        (b"\xff", 1),
        (b"\n\n", 1),
        (&good.as_bytes()[..60], 1),
        (&good.as_bytes()[..65], 1),
        (&long.as_bytes()[..100], 2),
        (b"0 5\n", 1),
    ];
    for (bytes, line) in bad {
        fs::write(state.path().join(INVITATIONS), bytes).unwrap();
        let error = state.invitation_open(0).unwrap_err().to_string();
        assert!(error.contains(&format!("invitations: line {line} is no invitation")), "{bytes:?}: {error}");
        assert!(state.consume_invitation(&Digest::of(b"x"), 0).is_err());
    }
    fs::write(state.path().join(INVITATIONS), "").unwrap();
    assert!(!state.invitation_open(0).unwrap());
}

#[test]
fn trusted_masters() {
    let (_top, state) = state();
    assert!(!state.is_trusted("abc-2").unwrap());
    state.trust("abc-2").unwrap();
    state.trust("abc-1").unwrap();
    state.trust("abc-2").unwrap();
    assert!(state.is_trusted("abc-2").unwrap());
    for bad in ["", "..", "../identity.key", "A", "a/b", &"x".repeat(201)] {
        assert!(state.trust(bad).is_err() && !state.is_trusted(bad).unwrap(), "{bad:?}");
    }
    assert!(state.is_trusted("abc-1").unwrap() && !state.is_trusted("abc-3").unwrap());
    fs::write(state.path().join("trusted/abc-1"), "").unwrap();
    let error = state.is_trusted("abc-1").unwrap_err().to_string();
    assert!(error.contains("trusted/abc-1: line 1"), "{error}");
}

#[test]
fn known_replicas() {
    let (_top, state) = state();
    let long = format!("{}:7373", "h".repeat(253));
    for address in ["127.0.0.1:7373", "[::1]:7373", "::1", "../x", "hoß:1", &long] {
        assert_eq!(state.known(address).unwrap(), None);
        state.remember(address, "old").unwrap();
        state.remember(address, "id-of-it").unwrap();
        assert_eq!(state.known(address).unwrap().as_deref(), Some("id-of-it"), "{address}");
    }
    assert!(state.remember("a b", "id").is_err() && state.remember("a", "no id").is_err());
    fs::write(state.path().join("known/127.0.0.1:7373"), "other:1 id\n").unwrap();
    let error = state.known("127.0.0.1:7373").unwrap_err().to_string();
    assert!(error.contains("known/127.0.0.1:7373: line 1"), "{error}");
}

#[test]
fn a_crash_in_a_write_leaves_nothing_in_the_way() {
    let (_top, state) = state();
    fs::write(state.path().join("replacing"), "half").unwrap();
    assert_eq!(state.identity_key(|| b"k".to_vec()).unwrap(), b"k");
    assert!(!state.path().join("replacing").exists());
}

#[test]
fn indexes_have_places_of_their_own() {
    let (_top, state) = state();
    let here = Path::new("/srv/www");
    let places = [state.source_index_dir(here), state.replica_index_dir(here), state.share_index_dir("www")];
    assert!(places.iter().all(|place| place.starts_with(state.path().join("index"))));
    assert!(places[0] != places[1] && places[1] != places[2]);
    assert_ne!(state.source_index_dir(Path::new("/srv/www2")), places[0]);
    assert!(state.share_index_dir("../..").starts_with(state.path().join("index")));
}

#[test]
fn what_a_share_had_is_kept_until_it_is_forgotten() {
    let (_top, state) = state();
    let path = "/srv/a copy";
    state.set_before_stretches("www", None).unwrap();
    assert_eq!(state.before_stretches("www").unwrap(), None);
    state.set_before_stretches("www", Some(0)).unwrap();
    state.set_before_stretches(path, Some(1024)).unwrap();
    let again = StateDir::open(state.path()).unwrap();
    assert_eq!((again.before_stretches("www").unwrap(), again.before_stretches(path).unwrap()), (Some(0), Some(1024)));
    state.set_before_stretches("www", None).unwrap();
    assert_eq!((state.before_stretches("www").unwrap(), state.before_stretches(path).unwrap()), (None, Some(1024)));
    // Nobody guesses what may be deleted.
    for bad in ["", "www", "www \n", "www -1\n", "www 1 2\n", "other 1\n", "www 1"] {
        fs::write(state.path().join("before-stretches/www"), bad).unwrap();
        let error = state.before_stretches("www").unwrap_err().to_string();
        assert!(error.contains("before-stretches/www") && error.contains("www N"), "{bad:?}: {error}");
    }
}

#[test]
fn a_share_has_one_owner() {
    let (_top, state) = state();
    let (one, two) = ("abcd-efgh", "ijkl-mnop");
    assert_eq!(state.owner("www").unwrap(), None);
    state.set_owner("www", one).unwrap();
    state.set_owner("...", two).unwrap();
    assert_eq!(
        (state.owner("www").unwrap().as_deref(), state.owner("...").unwrap().as_deref()),
        (Some(one), Some(two))
    );
    state.set_owner("www", two).unwrap();
    let again = StateDir::open(state.path()).unwrap();
    assert_eq!(again.owner("www").unwrap().as_deref(), Some(two));
    let file = state.path().join("owners/www");
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
    for bad in ["", "www", "www \n", "www a b\n", "other abcd\n", "www ABCD\n", "www abcd"] {
        fs::write(&file, bad).unwrap();
        let error = state.owner("www").unwrap_err().to_string();
        assert!(error.contains("owners/www: line 1 is not `www ID`"), "{bad:?}: {error}");
    }
    fs::remove_file(&file).unwrap();
    assert_eq!(state.owner("www").unwrap(), None);
    assert!(state.set_owner("www", "no id").is_err() && state.set_owner("w w", one).is_err());
}
