//! Tells the service manager how the daemon is, as `sd_notify(3)` describes it. Without NOTIFY_SOCKET it does nothing.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use sync_core::control::{CopyState, ReplicaState, Role, ShareState, ShareStatus, Status};
use sync_core::path::escape;
use sync_core::roles::Shutdown;
use tokio::sync::watch;

/// The least time between two sentences about the shares.
const REFRESH: Duration = Duration::from_secs(3);

/// How long the manager may keep the daemon waiting for room in its queue.
const PATIENCE: Duration = Duration::from_secs(1);

/// Most bytes of what is said about the shares: the manager ignores messages of more than 4096.
const MAX_SENTENCE: usize = 2048;

/// The way to the service manager, if there is one.
pub struct Notifier(Option<(UnixDatagram, SocketAddr)>);

impl Notifier {
    /// What the environment names. A name that leads nowhere is logged, and the daemon runs without.
    pub fn from_env() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Self(None) };
        let way = address(&name).and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            socket.set_write_timeout(Some(PATIENCE))?;
            Ok((socket, address))
        });
        let failed = |error: &io::Error| tracing::warn!("NOTIFY_SOCKET={}: {error}", escape(name.as_bytes()));
        Self(way.inspect_err(failed).ok())
    }

    /// Whether anybody is told anything.
    pub fn is_heard(&self) -> bool {
        self.0.is_some()
    }

    /// The daemon does its work, and how that goes.
    pub fn ready(&self, status: &Status) {
        self.tell(&format!("READY=1\nSTATUS={}", sentence(status)));
    }

    /// The configuration is read again until the guard is dropped.
    pub fn reloading(&self) -> Reloading<'_> {
        // The manager tells by the time which of two reloads this is.
        let now = clock_gettime(ClockId::Monotonic);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec * 1_000_000 + now.tv_nsec / 1000));
        Reloading(self)
    }

    fn tell(&self, message: &str) {
        let Some((socket, address)) = &self.0 else { return };
        if let Err(error) = socket.send_to_addr(message.as_bytes(), address) {
            tracing::warn!("cannot tell the service manager {}: {error}", escape(message.as_bytes()));
        }
    }
}

/// See [`Notifier::reloading`].
pub struct Reloading<'a>(&'a Notifier);

impl Drop for Reloading<'_> {
    fn drop(&mut self) {
        // Also after a reload that failed: the daemon goes on as it was.
        self.0.tell("READY=1");
    }
}

fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(name),
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "neither a path nor an abstract socket")),
    }
}

/// Says that the daemon lives, twice in the time in which the manager wants to hear it. It runs where the work is done: if
/// no thread there gets to it, the daemon hangs.
pub async fn keep_alive(notifier: &Notifier) {
    let variable = |name| std::env::var(name).ok();
    let Some(within) = watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), std::process::id()) else {
        return;
    };
    let mut beat = tokio::time::interval(within / 2);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        notifier.tell("WATCHDOG=1");
    }
}

/// How often the manager wants to hear of this process.
fn watchdog(within: Option<String>, of: Option<String>, pid: u32) -> Option<Duration> {
    let is_ours = of.is_none_or(|of| of.parse() == Ok(pid));
    // Less than a microsecond for half of it would be no time.
    let within = within?.parse().ok().filter(|&within| within >= 2 && is_ours)?;
    Some(Duration::from_micros(within))
}

/// Says how the shares are whenever `changes` tells, until it says that the daemon ends.
pub async fn follow(
    notifier: &Notifier,
    mut changes: watch::Receiver<()>,
    status: impl Fn() -> Status,
    mut shutdown: Shutdown,
) {
    // What came before this was not heard.
    changes.mark_changed();
    let mut said = String::new();
    loop {
        let changed = async {
            // What is about to be done in a moment belongs to the same sentence.
            tokio::time::sleep(REFRESH).await;
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = changed => {}
            _ = shutdown.wait_for(|stop| *stop) => return notifier.tell("STOPPING=1\nSTATUS=ending"),
        }
        let now = tokio::task::block_in_place(|| sentence(&status()));
        if now != said {
            notifier.tell(&format!("STATUS={now}"));
            said = now;
        }
    }
}

/// How the shares are, in one line.
fn sentence(status: &Status) -> String {
    let count = status.shares.len();
    let mut text = format!("{count} {}", if count == 1 { "share" } else { "shares" });
    for (number, share) in status.shares.iter().enumerate() {
        text.push_str(if number == 0 { ": " } else { "; " });
        if text.len() > MAX_SENTENCE {
            return text + &format!("and {} more", count - number);
        }
        text.push_str(&clause(share));
    }
    text
}

fn clause(share: &ShareStatus) -> String {
    let state = match share.state {
        ShareState::Starting => ", starting",
        ShareState::Ready => "",
        ShareState::Held => ", HELD",
        ShareState::Failed => ", FAILED",
    };
    match share.role {
        Role::Replica => {
            let fares = share.copy.as_ref().map_or("", |copy| match copy.state {
                CopyState::InSync => ", in sync",
                CopyState::Receiving => ", receiving",
                CopyState::Away => ", no master connected",
                CopyState::Drifted => ", drifted",
                // Said already.
                CopyState::Held => "",
            });
            format!("{} replica{state}{fares}", share.name)
        }
        Role::Master => {
            let all = share.replicas.len();
            let in_sync = share.replicas.iter().filter(|replica| replica.state == ReplicaState::InSync).count();
            let noun = if all == 1 { "replica" } else { "replicas" };
            format!("{} master{state}, {in_sync} of {all} {noun} in sync", share.name)
        }
    }
}

#[cfg(test)]
mod tests {
    use sync_core::control::{CopyStatus, ReplicaStatus};
    use sync_core::heal::Heal;

    use super::*;

    fn share(name: &str, role: Role, state: ShareState, replicas: &[ReplicaState]) -> ShareStatus {
        let replica = |state: &ReplicaState| ReplicaStatus {
            name: "web1/www".to_owned(),
            state: *state,
            version: None,
            lag: None,
            drift: None,
            problem: None,
            retry_seconds: None,
            link: None,
            delivery: None,
        };
        ShareStatus {
            name: name.to_owned(),
            path: "/srv".to_owned(),
            role,
            state,
            reason: None,
            version: None,
            unwatched: None,
            unread: None,
            missed: 0,
            owner: None,
            replicas: replicas.iter().map(replica).collect(),
            copy: None,
        }
    }

    fn said(shares: Vec<ShareStatus>) -> String {
        sentence(&Status { shares, ..Status::default() })
    }

    #[test]
    fn a_sentence_tells_of_each_share() {
        use ReplicaState::{CatchingUp, InSync, Offline};
        let copy = |state| CopyStatus { state, master: None, drift: None, heal: Heal::Heal, problem: None };
        let img = share("img", Role::Replica, ShareState::Ready, &[]);
        let img = ShareStatus { copy: Some(copy(CopyState::InSync)), ..img };
        let www = share("www", Role::Master, ShareState::Ready, &[InSync, Offline, InSync, CatchingUp]);
        assert_eq!(said(vec![img.clone(), www]), "2 shares: img replica, in sync; www master, 2 of 4 replicas in sync");
        let held = ShareStatus { state: ShareState::Held, copy: Some(copy(CopyState::Held)), ..img };
        assert_eq!(said(vec![held]), "1 share: img replica, HELD");
        let held = share("www", Role::Master, ShareState::Held, &[InSync]);
        assert_eq!(said(vec![held]), "1 share: www master, HELD, 1 of 1 replica in sync");
        assert_eq!(said(Vec::new()), "0 shares");
    }

    #[test]
    fn many_shares_are_counted_where_the_message_would_be_too_long() {
        let shares = (0..500).map(|i| share(&format!("share-{i}"), Role::Replica, ShareState::Ready, &[])).collect();
        let text = said(shares);
        assert!(text.len() < MAX_SENTENCE + 300 && text.starts_with("500 shares: share-0 replica; "), "{text}");
        let named = text.matches(" replica").count();
        assert!(text.ends_with(&format!("and {} more", 500 - named)), "{text}");
    }

    #[test]
    fn the_watchdog_may_be_of_another_process() {
        let is = |within: &str, of: Option<&str>| watchdog(Some(within.to_owned()), of.map(ToOwned::to_owned), 7);
        assert_eq!(is("3000000", None), Some(Duration::from_secs(3)));
        assert_eq!(is("3000000", Some("7")), Some(Duration::from_secs(3)));
        for (within, of) in
            [("3000000", Some("8")), ("0", None), ("1", None), ("", None), ("-5", None), ("5", Some("x"))]
        {
            assert_eq!(is(within, of), None, "{within} {of:?}");
        }
        assert_eq!(watchdog(None, None, 7), None);
    }

    #[test]
    fn a_path_and_an_abstract_name_are_addresses() {
        let of = |name: &str| address(OsStr::new(name));
        assert_eq!(of("/run/notify").unwrap().as_pathname(), Some("/run/notify".as_ref()));
        assert_eq!(of("@/org/notify").unwrap().as_abstract_name(), Some(&b"/org/notify"[..]));
        assert!(of("vsock:2:1234").unwrap_err().to_string().contains("neither"));
        assert!(of(&format!("/{}", "x".repeat(200))).is_err());
    }
}
