//! What somebody else changes in a share that a master follows: told until the master has heard it, whatever it does meanwhile.

use super::*;
use crate::guard::MaxDelete;
use crate::heal::Heal;
use crate::roles::guarding::Guard;
use crate::roles::replica::lookout::Lookout;
use crate::roles::replica::shares::Held;
use crate::roles::replica::standing::Standing;
use crate::wire::{FOLLOW, RELEASED, Stand};

/// Longer than anything here takes.
const PROMPT: Duration = Duration::from_secs(60);

impl Played {
    /// A master that follows the share `www` at `top`, which is watched.
    async fn follow(top: &Path, state: &Path) -> Self {
        let ends = Loopback::open(Settings::default()).await.unwrap();
        let share = Share { path: top.to_owned(), state_dir: state.to_owned(), name: "www".to_owned() };
        let standing = Standing::new(Heal::Heal, None, watch::channel(()).0);
        let lookout = Lookout::new(share.clone(), Heal::Heal, PROMPT * 60, Arc::clone(&standing));
        let (guard, left) = (Guard::new(MaxDelete::Unlimited), watch::channel(None).1);
        let held = Held { share, lookout: lookout.clone(), guard, ownership: None, standing, left };
        let (stop, shutdown) = watch::channel(false);
        tokio::spawn(lookout.unwrap().run(shutdown.clone()));
        tokio::spawn(async move {
            serve(ends.accepted, Arc::new(Shares::new([held])), shutdown).await;
            drop(stop);
        });
        let control = Control::open(&ends.dialed).await.unwrap();
        let played = Self { connection: ends.dialed, control };
        played.says_hello(FOLLOW);
        played
    }

    fn says_hello(&self, features: u64) {
        self.say(ToReplica::Hello(Hello { features, share: "www".to_owned(), policy: Policy::default() }));
    }

    /// Passes over the session that waits, as a master does that has something else to say in its hello.
    async fn passes_over(&mut self, features: u64) -> Stand {
        let next = Control::open(&self.connection).await.unwrap();
        tokio::spawn(std::mem::replace(&mut self.control, next).read_to_end());
        self.says_hello(features);
        match self.hears().await {
            ToMaster::Stand(stand) => stand,
            other => panic!("{other:?}"),
        }
    }

    /// The next word, but for what is told to a person alone.
    async fn hears(&mut self) -> ToMaster {
        loop {
            match tokio::time::timeout(PROMPT, self.control.next()).await.expect("nothing is said").unwrap() {
                ToMaster::Unhealed(_) => {}
                said => return said,
            }
        }
    }

    async fn hears_of_drift(&mut self) -> Stand {
        match self.hears().await {
            ToMaster::Drifted(stand) => stand,
            other => panic!("{other:?}"),
        }
    }

    /// Tells a version in full, and sends what is wanted of it.
    async fn brings(&mut self, changes: &[Change], announce: &Announce) {
        self.say(ToReplica::Changes(changes.to_vec()));
        self.say(ToReplica::Announce(announce.clone()));
        loop {
            match self.hears().await {
                ToMaster::Want(wants) => self.send(wants[0].seq, Prepared::CONTENT).await,
                ToMaster::Ack(ack) => return assert_eq!(ack.root, announce.version.root),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A replica at a version, and a master that follows and has nothing to say.
struct Bed {
    temp: tempfile::TempDir,
    push: Prepared,
    master: Played,
}

impl Bed {
    async fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().join("top");
        std::fs::create_dir(&top).unwrap();
        let mut push = Prepared::new();
        push.announce.committed = true;
        let mut master = Played::follow(&top, &temp.path().join("state")).await;
        assert!(matches!(master.hears().await, ToMaster::Stand(_)));
        master.brings(&push.changes, &push.announce).await;
        Self { temp, push, master }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.temp.path().join("top").join(name)
    }

    fn tamper(&self, name: &str) {
        std::fs::write(self.path(name), "as nobody meant").unwrap();
    }

    /// Brings it back to the version.
    async fn heals(&mut self) {
        self.master.brings(&self.push.changes, &self.push.announce).await;
        for name in ["d/a", "d/b"] {
            assert_eq!(std::fs::read(self.path(name)).unwrap(), Prepared::CONTENT);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_that_a_master_did_not_hear_of_is_told_in_the_next_session() {
    let mut bed = Bed::new().await;
    let root = bed.push.announce.version.root;
    for (round, features) in [FOLLOW | RELEASED, FOLLOW, FOLLOW | RELEASED].into_iter().enumerate() {
        bed.tamper("d/a");
        // It is said in a session that the master gives up unheard.
        let drifted = bed.master.hears_of_drift().await;
        assert_ne!(drifted.root, root);
        assert_eq!(bed.master.passes_over(features).await, drifted, "round {round}");
        // The stand alone is not enough: a master that has nothing new waits for this.
        assert_eq!(bed.master.hears_of_drift().await, drifted, "round {round}");
        bed.heals().await;
    }
    // Once it is healed there is nothing to tell, also in a session that is opened anew.
    assert_eq!(bed.master.passes_over(FOLLOW).await.root, root);
    bed.heals().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_that_comes_while_sessions_are_passed_over_is_told() {
    for round in 0..6 {
        // Another one each time: who drifts again and again waits ever longer.
        let mut bed = Bed::new().await;
        bed.tamper("d/b");
        // The watch tells of it before the next session is open, while that is being opened, or later.
        tokio::time::sleep(Duration::from_millis(round * 80)).await;
        bed.master.passes_over(if round % 2 == 0 { FOLLOW | RELEASED } else { FOLLOW }).await;
        let drifted = bed.master.hears_of_drift().await;
        assert_ne!(drifted.root, bed.push.announce.version.root, "round {round}");
        bed.heals().await;
    }
}

/// The plan is made of what the session began with: what its watch finds meanwhile waits for the session after it.
#[tokio::test(flavor = "multi_thread")]
async fn drift_that_comes_while_a_version_is_told_is_told_after_it() {
    let mut bed = Bed::new().await;
    let [top, d, a, b] = bed.push.changes.clone();
    let all = [top.clone(), d, a, b, change("e", Kind::Dir)];
    let second = Version { number: 2, parent: Some(bed.push.announce.version.id()), ..version(&all) };
    let announce =
        Announce { holds: Vec::new(), held: 0, version: second.clone(), changes: 2, contents: 0, committed: true };
    let changes = [top, change("e", Kind::Dir)];
    bed.master.say(ToReplica::Changes(changes[..1].to_vec()));
    // It asks for the second, which is not there: so it has heard the first, and looks at nothing any more.
    bed.master.say(ToReplica::List(vec![RelPath::new("e").unwrap()]));
    assert!(matches!(bed.master.hears().await, ToMaster::Listing(_)));
    bed.tamper("d/a");
    // Longer than the watch gathers what it tells.
    tokio::time::sleep(Duration::from_secs(1)).await;
    bed.master.brings(&changes[1..], &announce).await;
    assert!(bed.path("e").is_dir());
    let drifted = bed.master.hears_of_drift().await;
    assert_eq!(drifted.version, Some(second.id()));
    assert_ne!(drifted.root, second.root);
    bed.push = Prepared { changes: bed.push.changes, announce: Announce { version: second, ..bed.push.announce } };
    bed.heals().await;
}
