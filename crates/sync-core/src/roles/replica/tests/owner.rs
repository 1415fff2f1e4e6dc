//! Whose a share of a daemon is: who is let in, who owns it from when on, and how it passes to another master.

use std::net::{Ipv4Addr, SocketAddr};

use super::*;
use crate::guard::MaxDelete;
use crate::heal::Heal;
use crate::roles::guarding::Guard;
use crate::roles::replica::Ownership;
use crate::roles::replica::shares::Held;
use crate::roles::replica::standing::Standing;
use crate::transport::{Address, Closed, Identity, Listener, PeerId, Purpose, Trust, connect};
use crate::wire::{ADOPT, FOLLOW, Stand};

/// Longer than anything here takes, but for a wait for the lock of a share.
const PROMPT: Duration = Duration::from_secs(10);

struct Everybody;

impl Trust for Everybody {
    fn accepts(&self, _: &PeerId) -> bool {
        true
    }

    fn invitation_open(&self) -> bool {
        false
    }
}

/// A daemon with the share `www`, and two masters.
struct Bed {
    temp: tempfile::TempDir,
    replica: Identity,
    address: Address,
    one: Identity,
    two: Identity,
}

impl Bed {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("top")).unwrap();
        let [replica, one, two] = [(); 3].map(|()| Identity::generate().unwrap().0);
        let mut bed = Self { temp, replica, address: Address::new("nobody", 1), one, two };
        bed.start();
        bed
    }

    /// Another daemon begins with what the one before has left on disk.
    fn start(&mut self) {
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = Listener::bind(here, &self.replica, Arc::new(Everybody), Settings::default()).unwrap();
        self.address = Address::from(listener.address());
        let share = Share { path: self.top(), state_dir: self.state().path().to_owned(), name: "www".to_owned() };
        let ownership = Some(Ownership::new(self.state(), "www".to_owned()));
        let standing = Standing::new(Heal::Off, None, watch::channel(()).0);
        let (guard, left) = (Guard::new(MaxDelete::Unlimited), watch::channel(None).1);
        let shares = Arc::new(Shares::new([Held { share, lookout: None, guard, ownership, standing, left }]));
        tokio::spawn(async move {
            let (_stop, shutdown) = watch::channel(false);
            while let Some(arrival) = listener.accept().await {
                let connection = arrival.establish().await.unwrap();
                tokio::spawn(serve(connection, Arc::clone(&shares), shutdown.clone()));
            }
        });
    }

    fn top(&self) -> std::path::PathBuf {
        self.temp.path().join("top")
    }

    fn state(&self) -> StateDir {
        StateDir::open(&self.temp.path().join("state")).unwrap()
    }

    fn owner(&self) -> Option<PeerId> {
        self.state().owner("www").unwrap().map(|id| id.parse().unwrap())
    }

    async fn greet(&self, master: &Identity, features: u64, dry_run: bool) -> Played {
        let connecting = connect(&self.address, master, self.replica.id(), Purpose::Session, Settings::default());
        let connection = connecting.await.unwrap();
        let control = Control::open(&connection).await.unwrap();
        let played = Played { connection, control };
        played.hello(features, dry_run);
        played
    }

    /// A session that is let in.
    async fn is_let_in(&self, master: &Identity, features: u64, dry_run: bool) -> Played {
        let mut played = self.greet(master, features, dry_run).await;
        played.stand().await;
        played
    }

    /// A session in which a tree was published.
    async fn publish(&self, master: &Identity, features: u64) -> Played {
        let tree = Prepared::new();
        let mut played = self.is_let_in(master, features, false).await;
        let mut said = played.announce(&tree.changes, &tree.announce).await;
        if matches!(said, ToMaster::Prepared(_)) {
            played.say(ToReplica::Publish(tree.announce.version.id()));
            said = played.control.next().await.unwrap();
        }
        assert!(matches!(said, ToMaster::Ack(_)), "{said:?}");
        played
    }

    /// Waits until what another master has begun is over, and a master is let in.
    async fn becomes_free(&self, master: &Identity) {
        let begun = Instant::now();
        loop {
            let mut played = self.greet(master, 0, false).await;
            match played.control.next().await {
                Ok(ToMaster::Stand(_)) => return played.leave().await,
                said => assert!(begun.elapsed() < PROMPT, "{said:?}"),
            }
        }
    }

    fn top_level(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.top()).unwrap();
        let mut names: Vec<_> = names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != crate::fs::STAGING_NAME);
        names.sort();
        names
    }

    /// The reason that a master hears that is not.
    async fn is_refused(&self, master: &Identity, features: u64, dry_run: bool) -> String {
        self.greet(master, features, dry_run).await.is_sent_away().await
    }
}

impl Played {
    fn hello(&self, features: u64, dry_run: bool) {
        let policy = Policy { dry_run, ..Policy::default() };
        self.say(ToReplica::Hello(Hello { features, share: "www".to_owned(), policy }));
    }

    async fn stand(&mut self) -> Stand {
        loop {
            match self.control.next().await.unwrap() {
                ToMaster::Stand(stand) => return stand,
                // That its index was rebuilt.
                ToMaster::Notice(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn is_sent_away(&self) -> String {
        match tokio::time::timeout(PROMPT, self.connection.closed()).await.unwrap() {
            Closed::ByPeer { code: Code::NotOwner, reason } => reason,
            other => panic!("{other:?}"),
        }
    }

    /// Announces a version, and sends what is wanted. What is heard then.
    async fn announce(&mut self, changes: &[Change], announce: &Announce) -> ToMaster {
        if !changes.is_empty() {
            self.say(ToReplica::Changes(changes.to_vec()));
        }
        self.say(ToReplica::Announce(announce.clone()));
        loop {
            match self.control.next().await.unwrap() {
                ToMaster::Want(_) => self.send(0, Prepared::CONTENT).await,
                said => return said,
            }
        }
    }

    async fn leave(self) {
        self.connection.close(Code::Cancelled, "gone").await;
    }
}

/// A tree without what [`Prepared`] has.
fn other_tree() -> (Vec<Change>, Announce) {
    let tree = [change("", Kind::Dir), change("e", Kind::Dir)];
    let version = Version { lineage: Lineage([2; 16]), ..version(&tree) };
    let [top, e] = tree;
    let gone = Change { path: RelPath::new("d").unwrap(), entry: None };
    let announce = Announce { holds: Vec::new(), held: 0, version, changes: 3, contents: 0, committed: true };
    (vec![top, gone, e], announce)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_master_that_publishes_owns_the_share() {
    let mut bed = Bed::new();
    let tree = Prepared::new();
    let mut played = bed.is_let_in(&bed.one, 0, false).await;
    assert_eq!(bed.owner(), None, "it has published nothing");
    let prepared = played.announce(&tree.changes, &tree.announce).await;
    assert_eq!(prepared, ToMaster::Prepared(tree.announce.version.root));
    assert_eq!(bed.owner(), Some(bed.one.id()), "the intent is recorded, and the owner is not");
    played.say(ToReplica::Publish(tree.announce.version.id()));
    assert!(matches!(played.control.next().await.unwrap(), ToMaster::Ack(_)));
    played.connection.close(Code::Done, "").await;
    let committed = Announce { committed: true, ..tree.announce };
    // While the daemon runs, after its restart, and without an index.
    for round in 0..3 {
        if round == 2 {
            std::fs::remove_dir_all(bed.state().path().join("index")).unwrap();
        }
        if round > 0 {
            bed.start();
        }
        for (dry_run, features) in [(false, 0), (false, FOLLOW), (true, 0)] {
            let reason = bed.is_refused(&bed.two, features, dry_run).await;
            let owner = bed.one.id();
            assert!(reason.starts_with(&format!("the share www belongs to another master, {owner}; ")), "{reason}");
            assert!(reason.contains("--adopt") && !reason.contains("top"), "{reason}");
        }
        assert_eq!(bed.top_level(), ["d"]);
        let mut played = bed.is_let_in(&bed.one, 0, false).await;
        assert!(matches!(played.announce(&tree.changes, &committed).await, ToMaster::Ack(_)), "round {round}");
        played.connection.close(Code::Done, "").await;
    }
}

/// With nothing to do there is no intent, and the version is the master's all the same.
#[tokio::test(flavor = "multi_thread")]
async fn who_finds_its_tree_there_owns_it_too() {
    let bed = Bed::new();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    std::os::unix::fs::chown(bed.top(), Some(uid), Some(gid)).unwrap();
    std::fs::set_permissions(bed.top(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let time = std::time::UNIX_EPOCH + Duration::new(1_000_000, 1);
    std::fs::File::open(bed.top()).unwrap().set_modified(time).unwrap();
    let tree = [change("", Kind::Dir)];
    let version = version(&tree);
    let announce = Announce { holds: Vec::new(), held: 0, version, changes: 0, contents: 0, committed: true };
    let mut played = bed.is_let_in(&bed.one, 0, false).await;
    assert!(matches!(played.announce(&[], &announce).await, ToMaster::Ack(_)));
    assert_eq!(bed.owner(), Some(bed.one.id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_looks_or_leaves_owns_nothing() {
    let bed = Bed::new();
    let tree = Prepared::new();
    for features in [0, ADOPT] {
        let mut played = bed.is_let_in(&bed.two, features, true).await;
        assert!(matches!(played.announce(&tree.changes, &tree.announce).await, ToMaster::Ack(_)));
        played.leave().await;
        bed.is_let_in(&bed.two, features, false).await.leave().await;
    }
    assert_eq!(bed.owner(), None);
    bed.publish(&bed.one, 0).await.leave().await;
    assert_eq!(bed.owner(), Some(bed.one.id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_share_that_gets_an_owner_does_not_get_it() {
    let bed = Bed::new();
    let tree = Prepared::new();
    let mut first = bed.is_let_in(&bed.one, 0, false).await;
    let second = bed.greet(&bed.two, 0, false).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(second.connection.close_reason(), None, "nobody owns it yet");
    first.announce(&tree.changes, &tree.announce).await;
    // Before the lock is free, or its patience at an end.
    assert!(second.is_sent_away().await.contains("belongs to"));
    first.say(ToReplica::Publish(tree.announce.version.id()));
    assert!(matches!(first.control.next().await.unwrap(), ToMaster::Ack(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_is_adopted_once_its_new_master_publishes() {
    let bed = Bed::new();
    let (one, two) = (bed.one.id().to_string(), bed.two.id().to_string());
    // The owner follows: it would keep the share for as long as it lives.
    let mut owner = bed.publish(&bed.one, FOLLOW).await;
    owner.control = Control::open(&owner.connection).await.unwrap();
    owner.hello(FOLLOW, false);
    owner.stand().await;
    let adopter = bed.is_let_in(&bed.two, ADOPT, false).await;
    let reason = owner.is_sent_away().await;
    assert!(reason.starts_with(&format!("the share www is being taken over by another master, {two}; ")), "{reason}");
    // As long as that is so it is not let in, not even to adopt what is its own.
    for (features, dry_run) in [(0, false), (ADOPT, false), (0, true)] {
        assert!(bed.is_refused(&bed.one, features, dry_run).await.contains("is being taken over by"));
    }
    assert_eq!(bed.owner(), Some(bed.one.id()), "nothing was published yet");
    adopter.leave().await;
    // Nothing came of it.
    bed.becomes_free(&bed.one).await;
    assert!(bed.is_refused(&bed.two, 0, false).await.contains(&one));

    // A look leaves all as it is, also the owner's session.
    let mut owner = bed.is_let_in(&bed.one, FOLLOW, false).await;
    let look = bed.greet(&bed.two, ADOPT, true).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!((owner.connection.close_reason(), look.connection.close_reason()), (None, None));
    owner.leave().await;
    let mut look = look;
    look.stand().await;
    let (changes, announce) = other_tree();
    assert!(matches!(look.announce(&changes, &announce).await, ToMaster::Ack(_)));
    look.leave().await;
    assert_eq!((bed.owner(), bed.top_level()), (Some(bed.one.id()), vec!["d".to_owned()]));

    // Taken over while the owner is connected, and for good.
    owner = bed.is_let_in(&bed.one, FOLLOW, false).await;
    let mut adopter = bed.is_let_in(&bed.two, FOLLOW | ADOPT, false).await;
    owner.is_sent_away().await;
    assert!(matches!(adopter.announce(&changes, &announce).await, ToMaster::Ack(_)));
    assert_eq!((bed.owner(), bed.top_level()), (Some(bed.two.id()), vec!["e".to_owned()]));
    for (features, dry_run) in [(0, false), (FOLLOW, false), (0, true)] {
        let reason = bed.is_refused(&bed.one, features, dry_run).await;
        assert!(reason.starts_with(&format!("the share www belongs to another master, {two}; ")), "{reason}");
    }
    adopter.leave().await;
    bed.is_let_in(&bed.two, 0, false).await.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_let_in_while_it_cannot_be_read_whose_the_share_is() {
    let bed = Bed::new();
    bed.publish(&bed.one, 0).await.leave().await;
    std::fs::write(bed.state().path().join("owners/www"), "nonsense\n").unwrap();
    for features in [0, ADOPT] {
        let mut played = bed.greet(&bed.one, features, false).await;
        let ToMaster::Refuse(refusal) = played.control.next().await.unwrap() else { panic!("no refusal") };
        assert!(refusal.reason.contains("whose the share www is"), "{}", refusal.reason);
        assert!(!refusal.reason.contains("state"), "{}", refusal.reason);
    }
    assert_eq!(bed.top_level(), ["d"]);
}
