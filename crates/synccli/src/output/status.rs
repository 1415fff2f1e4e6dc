//! The daemon's status for people. Pure: what it said in, lines out.

use std::time::{Duration, SystemTime};

use sync_core::control::{
    CopyState, CopyStatus, DriftStatus, Lag, ReplicaState, ReplicaStatus, Role, ShareState, ShareStatus, Status,
    UnreadStatus, VersionStatus,
};
use sync_core::heal::Heal;

use super::text::{self, escape_text, plural};

/// Characters of a version's id that tell it from others.
const ID: usize = 12;

/// All of it.
pub fn lines(status: &Status, now: SystemTime) -> Vec<String> {
    let mut lines = Vec::new();
    for share in &status.shares {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        lines.extend(share_lines(share, now));
    }
    lines
}

fn share_lines(share: &ShareStatus, now: SystemTime) -> Vec<String> {
    let fares = share.copy.as_ref().map_or("", |copy| copy_state(copy.state));
    let what = match (share.role, share.state) {
        (Role::Replica, _) => fares,
        (Role::Master, ShareState::Ready) => "master",
        (Role::Master, ShareState::Starting) => "master, looking at the tree",
        (Role::Master, ShareState::Held) => "master, HELD",
        (Role::Master, ShareState::Failed) => "master, FAILED",
    };
    let version = match (&share.version, share.role) {
        (Some(version), role) => format!("  {}", version_text(version, role, now)),
        (None, Role::Replica) => "  version none".to_owned(),
        (None, Role::Master) => String::new(),
    };
    let mut lines = vec![format!("{}  {}  {what}{version}", share.name, share.path)];
    lines.extend(share.owner.iter().map(|owner| format!("  owned by the master {}", escape_text(owner))));
    lines.extend(share.copy.iter().flat_map(copy_lines).map(|line| format!("  {line}")));
    lines.extend(share.reason.iter().map(|reason| format!("  {}", escape_text(reason))));
    lines.extend(share.unwatched.iter().map(|why| format!("  {}", escape_text(why))));
    lines.extend(share.unread.iter().map(|unread| format!("  {}", unread_text(unread))));
    if share.missed > 0 {
        let missed = plural(share.missed, "change was", "changes were");
        lines.push(format!("  {missed} found only by looking, although the tree is watched"));
    }
    if !share.replicas.is_empty() {
        lines.extend(table(share.replicas.iter().map(|replica| row(replica).to_vec()).collect()));
    }
    let is_held = |replica: &ReplicaStatus| replica.state == ReplicaState::Held;
    if share.state == ShareState::Held && share.replicas.iter().any(is_held) {
        lines.push("  a release lets out this tree as it is now, and with it what its replicas hold".to_owned());
    }
    lines
}

fn version_text(version: &VersionStatus, role: Role, now: SystemTime) -> String {
    let mut text = format!("version {}", version.number);
    if role == Role::Replica {
        // Numbers compare within one history only, and a replica may have come from another.
        text = format!("{text} ({})", version.id.get(..ID).unwrap_or(&version.id));
    }
    if let Some(entries) = version.entries {
        text = format!("{text}, {}", plural(entries, "entry", "entries"));
    }
    if let Some(time) = version.time {
        let published = Duration::from_secs(u64::try_from(time.sec).unwrap_or(0));
        let age = now.duration_since(SystemTime::UNIX_EPOCH + published).unwrap_or_default();
        text = format!("{text}, {} ({} ago)", text::time(time), seconds(age.as_secs_f64()));
    }
    text
}

fn copy_state(state: CopyState) -> &'static str {
    match state {
        CopyState::InSync => "replica, in sync",
        CopyState::Receiving => "replica, receiving",
        CopyState::Away => "replica, no master connected",
        CopyState::Held => "replica, HELD",
        CopyState::Drifted => "replica, drifted",
    }
}

/// What is said of a share that is held for a master.
fn copy_lines(copy: &CopyStatus) -> Vec<String> {
    let master = match &copy.master {
        None => "no master was heard since the daemon began".to_owned(),
        Some(master) => {
            // Two groups of the thirteen.
            let id = master.id.get(..9).unwrap_or(&master.id);
            let heard = match master.connected {
                true => "connected".to_owned(),
                false => format!("heard {} ago", seconds(master.heard_seconds)),
            };
            let once = if master.follows { "" } else { ", a single push" };
            format!("master {id} at {}, {heard}{once}", master.address)
        }
    };
    let heal = match copy.heal {
        Heal::Heal => "it is undone when a master is connected",
        Heal::Report => "heal = \"report\"",
        Heal::Off => "heal = \"off\"",
    };
    let drift = copy.drift.as_ref().map(|drift| format!("{}; {heal}", drift_text(drift)));
    let problem = copy.problem.as_ref().map(|problem| escape_text(problem));
    std::iter::once(master).chain(drift).chain(problem).collect()
}

fn drift_text(drift: &DriftStatus) -> String {
    let first = drift.first.as_ref().map(|first| format!(", the first {}", escape_text(first))).unwrap_or_default();
    format!("{} drifted{first}", plural(drift.entries, "name", "names"))
}

/// What a master cannot read, and what that means.
pub fn unread_text(unread: &UnreadStatus) -> String {
    let UnreadStatus { entries, first, reason } = unread;
    let (first, reason) = (escape_text(first), escape_text(reason));
    match entries {
        1 => format!("{first} is not published: {reason}; the replicas keep what they have of it"),
        _ => format!(
            "{entries} entries are not published, the first {first}: {reason}; the replicas keep what they have of them"
        ),
    }
}

/// What is said of a replica, cell by cell.
fn row(replica: &ReplicaStatus) -> [String; 5] {
    let version = replica.version.map_or_else(|| "-".to_owned(), |version| version.to_string());
    let lag = replica.lag.as_ref().filter(|lag| lag.versions > 0).map_or_else(|| "-".to_owned(), lag_text);
    let mut rest = Vec::new();
    if let Some(link) = &replica.link {
        rest.push(format!("rtt {:.1} ms", link.rtt_ms));
        if let Some(delivery) = &replica.delivery {
            rest.push(format!("{}/s", bytes(delivery.rate() as u64)));
        }
    }
    rest.extend(replica.drift.as_ref().map(drift_text));
    rest.extend(replica.problem.as_ref().map(|problem| escape_text(problem)));
    rest.extend(replica.retry_seconds.map(|wait| match wait < 0.1 {
        true => "is being tried again".to_owned(),
        false => format!("next attempt in {}", seconds(wait)),
    }));
    [replica.name.clone(), state(replica.state).to_owned(), version, lag, rest.join("; ")]
}

fn lag_text(lag: &Lag) -> String {
    let mut parts = vec![plural(lag.versions, "version", "versions")];
    if lag.entries > 0 {
        parts.push(plural(lag.entries, "entry", "entries"));
    }
    parts.extend(lag.bytes.filter(|bytes| *bytes > 0).map(bytes));
    parts.push(seconds(lag.seconds));
    parts.join(", ")
}

fn state(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::InSync => "in sync",
        ReplicaState::CatchingUp => "catching up",
        ReplicaState::Offline => "offline",
        ReplicaState::Held => "HELD",
        ReplicaState::Paused => "paused",
        ReplicaState::Drifted => "drifted",
    }
}

/// Rows beneath their titles.
fn table(rows: Vec<Vec<String>>) -> Vec<String> {
    let titles = ["REPLICA", "STATE", "VERSION", "BEHIND", ""].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = std::iter::once(titles).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("  {}", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// A replica that does not have a version, and why, in one line.
pub fn behind(replica: &ReplicaStatus) -> String {
    let at = replica.version.map(|version| format!(" at version {version}")).unwrap_or_default();
    let why = replica.problem.as_ref().map(|problem| format!(": {}", escape_text(problem))).unwrap_or_default();
    format!("{} is {}{at}{why}", replica.name, state(replica.state))
}

/// `1.2 MB`: powers of 1000, as link rates are told.
pub fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value < 999.5 || unit == "TB" {
            return if unit == "B" || value >= 99.5 {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{bytes} B")
}

/// `12 ms`, `3.4 s`, `5 min`, `2 h`, `9 days`.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.9995 => format!("{:.0} ms", s * 1e3),
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use sync_core::control::{LinkStatus, MasterStatus};
    use sync_core::manifest::Time;

    use super::*;

    fn replica(name: &str, state: ReplicaState) -> ReplicaStatus {
        ReplicaStatus {
            name: name.to_owned(),
            state,
            version: Some(7),
            lag: None,
            drift: None,
            problem: None,
            retry_seconds: None,
            link: None,
            delivery: None,
        }
    }

    #[test]
    fn a_share_and_its_replicas_are_a_table() {
        let link = LinkStatus { address: "192.0.2.1:7373".to_owned(), rtt_ms: 0.42, sent: 1, received: 2 };
        let well = ReplicaStatus { link: Some(link), ..replica("web1/www", ReplicaState::InSync) };
        let lag = Lag { versions: 2, entries: 1, bytes: Some(1_234_567), seconds: 90.0 };
        let away = ReplicaStatus {
            lag: Some(lag),
            problem: Some("no answer\u{1b}".to_owned()),
            retry_seconds: Some(4.0),
            ..replica("web2.example:99/www", ReplicaState::Offline)
        };
        let drift = DriftStatus { entries: 3, first: Some("a/b".to_owned()) };
        let drifted = ReplicaStatus { drift: Some(drift), ..replica("web3/www", ReplicaState::Drifted) };
        let version = VersionStatus {
            number: 9,
            id: "ab".into(),
            time: Some(Time { sec: 1_000_000_000, nsec: 0 }),
            entries: Some(1),
        };
        let share = ShareStatus {
            name: "www".into(),
            path: "/var/www".into(),
            role: Role::Master,
            state: ShareState::Ready,
            reason: None,
            version: Some(version),
            unwatched: None,
            unread: None,
            missed: 0,
            owner: None,
            replicas: vec![well, away, drifted],
            copy: None,
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_300);
        let status = Status { daemon: "1".into(), config: None, shares: vec![share] };
        assert_eq!(
            lines(&status, now),
            [
                "www  /var/www  master  version 9, 1 entry, 2001-09-09T01:46:40Z (5 min ago)",
                "  REPLICA              STATE    VERSION  BEHIND",
                "  web1/www             in sync  7        -                                  rtt 0.4 ms",
                "  web2.example:99/www  offline  7        2 versions, 1 entry, 1.2 MB, 90 s  no answer\\x1b; next attempt in 4.0 s",
                "  web3/www             drifted  7        -                                  3 names drifted, the first a/b",
            ]
        );
        let both = |share: ShareStatus| {
            let status = Status { daemon: "1".into(), config: None, shares: vec![share] };
            lines(&status, now).iter().any(|line| line.contains("a release lets out this tree as it is now"))
        };
        let held = ShareStatus { state: ShareState::Held, ..status.shares[0].clone() };
        assert!(!both(held.clone()));
        let replicas = vec![replica("web1/www", ReplicaState::Held)];
        assert!(!both(ShareStatus { replicas: replicas.clone(), ..status.shares[0].clone() }));
        assert!(both(ShareStatus { replicas, ..held }));
    }

    #[test]
    fn a_replica_tells_where_it_stands_and_whom_it_hears() {
        let copy = CopyStatus { state: CopyState::Away, master: None, drift: None, heal: Heal::Report, problem: None };
        let share = ShareStatus {
            name: "www".into(),
            path: "/var/www".into(),
            role: Role::Replica,
            state: ShareState::Ready,
            reason: None,
            version: None,
            unwatched: None,
            unread: None,
            missed: 0,
            owner: None,
            replicas: Vec::new(),
            copy: Some(copy.clone()),
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_300);
        let said = |share: &ShareStatus| share_lines(share, now);
        let none = [
            "www  /var/www  replica, no master connected  version none",
            "  no master was heard since the daemon began",
        ];
        assert_eq!(said(&share), none);

        let master = |connected| MasterStatus {
            id: "abcd-efgh-ijkl".into(),
            address: "192.0.2.1:5".into(),
            connected,
            heard_seconds: 61.0,
            follows: true,
        };
        let id = "0123456789abcdef".to_owned();
        let version = Some(VersionStatus { number: 9, id, time: None, entries: Some(12) });
        let drift = Some(DriftStatus { entries: 1, first: Some("a/b".into()) });
        let drifted = CopyStatus { state: CopyState::Drifted, master: Some(master(true)), drift, ..copy.clone() };
        let problem = Some("a\u{1b}b".to_owned());
        let away = CopyStatus { master: Some(master(false)), problem, ..copy };
        assert_eq!(
            said(&ShareStatus { version: version.clone(), copy: Some(drifted), ..share.clone() }),
            [
                "www  /var/www  replica, drifted  version 9 (0123456789ab), 12 entries",
                "  master abcd-efgh at 192.0.2.1:5, connected",
                "  1 name drifted, the first a/b; heal = \"report\"",
            ]
        );
        assert_eq!(
            said(&ShareStatus { version, copy: Some(away), ..share }),
            [
                "www  /var/www  replica, no master connected  version 9 (0123456789ab), 12 entries",
                "  master abcd-efgh at 192.0.2.1:5, heard 61 s ago",
                "  a\\x1bb",
            ]
        );
    }

    #[test]
    fn a_replica_tells_whose_it_is() {
        let copy = CopyStatus { state: CopyState::Away, master: None, drift: None, heal: Heal::Heal, problem: None };
        let share = ShareStatus {
            name: "www".into(),
            path: "/srv/www".into(),
            role: Role::Replica,
            state: ShareState::Ready,
            reason: Some("refused lately".into()),
            version: None,
            unwatched: None,
            unread: None,
            missed: 0,
            owner: Some("abcd-efgh".into()),
            replicas: Vec::new(),
            copy: Some(copy),
        };
        let status = Status { daemon: "1".into(), config: None, shares: vec![share] };
        assert_eq!(
            lines(&status, SystemTime::UNIX_EPOCH),
            [
                "www  /srv/www  replica, no master connected  version none",
                "  owned by the master abcd-efgh",
                "  no master was heard since the daemon began",
                "  refused lately"
            ]
        );
    }

    #[test]
    fn sizes_and_times_are_short() {
        let sizes = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (99_499, "99.5 kB"),
            (999_499, "999 kB"),
            (1 << 40, "1.1 TB"),
        ];
        for (number, text) in sizes {
            assert_eq!(bytes(number), text);
        }
        let times =
            [(0.0, "0 ms"), (0.0124, "12 ms"), (1.0, "1.0 s"), (61.0, "61 s"), (600.0, "10 min"), (1e6, "12 days")];
        for (number, text) in times {
            assert_eq!(seconds(number), text);
        }
    }
}
