//! The configuration: [`Raw`] is what the file and the command line say, [`Checked`] is the proof that it makes sense.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use sync_core::destination::{self, label};
use sync_core::duration;
use sync_core::filter::{Filter, Rule};
use sync_core::guard::MaxDelete;
use sync_core::heal::Heal;
use sync_core::options::{DEFAULT_PORT, Destination, MAX_SHARE_NAME, default_state_dir, is_share_name};
use sync_core::path::escape;
use sync_core::roles::replica::ShareConfig;
use sync_core::size;
use toml::Spanned;

/// What is wrong with a configuration, and where.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct ConfigError {
    /// `FILE: line N`, or the option.
    place: String,
    reason: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// And what may become one.
    Warn,
    /// And each session.
    #[default]
    Info,
    /// And its steps.
    Debug,
}

/// The file, as TOML has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    state_dir: Option<Spanned<PathBuf>>,
    #[serde(default)]
    listen: Vec<SocketAddr>,
    #[serde(default)]
    log_format: LogFormat,
    #[serde(default)]
    log_level: LogLevel,
    #[serde(default, alias = "share")]
    shares: BTreeMap<String, Share>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Share {
    path: Spanned<PathBuf>,
    /// With replicas this machine is the share's master, without it is a replica.
    replicas: Option<Vec<Spanned<Addresses>>>,
    #[serde(default)]
    exclude: Vec<String>,
    settle_max: Option<Spanned<String>>,
    history: Option<Spanned<String>>,
    bwlimit: Option<Spanned<String>>,
    max_delete: Option<Spanned<Amount>>,
    rescan: Option<Spanned<String>>,
    /// For a replica.
    heal: Option<Spanned<Word>>,
}

/// Where one replica is: an address, or several of one machine.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected \"HOST[:PORT]\", or a list of such addresses of one machine")]
enum Addresses {
    One(String),
    Several(Vec<String>),
}

/// A word, or one of the two that TOML has for itself.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected \"heal\", \"report\", \"off\", true or false")]
enum Word {
    Flag(bool),
    Text(String),
}

/// A number or a word.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a number of entries, a percentage such as \"50%\", or \"off\"")]
enum Amount {
    Number(u64),
    Text(String),
}

/// What was asked for, unchecked.
#[derive(Debug, Default)]
pub struct Raw {
    /// Where indexes and the identity live.
    pub state_dir: Option<PathBuf>,
    /// Where to listen.
    pub listen: Vec<SocketAddr>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// How much is logged.
    pub log_level: LogLevel,
    /// The shares.
    pub shares: Vec<RawShare>,
}

/// One share, and where it was asked for.
#[derive(Debug, Default)]
pub struct RawShare {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub path: PathBuf,
    /// `FILE: line N`, or the option.
    pub place: String,
    /// What is said of a share that this machine is the master of.
    pub master: Option<RawMaster>,
    /// See [`ShareConfig::heal`] and [`Master::rescan`]; as text, each with its place.
    pub heal: Option<(String, String)>,
    /// The same.
    pub rescan: Option<(String, String)>,
    /// See [`Master::max_delete`].
    pub max_delete: Option<(String, String)>,
}

/// What only a master has to be told of a share.
#[derive(Debug, Default)]
pub struct RawMaster {
    /// Who follows, if that is said: the addresses of each as text, with their place.
    pub replicas: Option<Vec<(Vec<String>, String)>>,
    /// gitignore patterns.
    pub exclude: Vec<String>,
    /// See [`Master::settle_max`], [`Master::history`] and [`Master::bandwidth`]; each with its place.
    pub settle_max: Option<(String, String)>,
    /// The same.
    pub history: Option<(String, String)>,
    /// The same.
    pub bwlimit: Option<(String, String)>,
}

/// A share that this machine is the master of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// Its name.
    pub name: String,
    /// Its directory as it was written: a link at its end is followed anew whenever it leads elsewhere.
    pub path: PathBuf,
    /// Who follows; at least one.
    pub replicas: Vec<Destination>,
    /// What does not belong to it.
    pub exclude: Vec<Rule>,
    /// The longest that a file which is written all the time waits.
    pub settle_max: Duration,
    /// How many bytes are kept of previous contents, if any.
    pub history: Option<u64>,
    /// Bytes per second that content takes on the way to each replica, if there is a limit.
    pub bandwidth: Option<u64>,
    /// How often all of it is looked at.
    pub rescan: Duration,
    /// How much of it may be deleted unless a person says so.
    pub max_delete: MaxDelete,
}

/// [`Master::settle_max`] unless it is said.
const SETTLE_MAX: Duration = Duration::from_secs(10);

/// [`Master::history`] unless it is said.
const HISTORY: u64 = 512 << 20;

/// How often a share is looked at as a whole, unless it is said: [`Master::rescan`], [`ShareConfig::rescan`].
const RESCAN: Duration = Duration::from_secs(3600);

/// A configuration that makes sense: names are valid; paths are absolute, no link is left in them, none is `/`, none
/// holds another, and none holds the state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Where indexes and the identity live.
    pub state_dir: PathBuf,
    /// Where to listen; at least one.
    pub listen: Vec<SocketAddr>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// How much is logged.
    pub log_level: LogLevel,
    /// The replicas here. A directory may still have to be made.
    pub shares: Vec<ShareConfig>,
    /// What this machine is the master of. There is at least one of these or those.
    pub masters: Vec<Master>,
}

/// What the parser says, for people.
fn in_words(message: &str) -> String {
    let text = message.lines().map(|line| escape(line.as_bytes())).collect::<Vec<_>>().join("; ");
    let text = text.replace("expected a sequence", "expected a list, as in [\"one\", \"other\"]");
    let text =
        text.replace("invalid socket address syntax", "no address to listen on: ADDRESS:PORT, as in \"0.0.0.0:7373\"");
    match text.strip_suffix("expected a string") {
        Some(text) => format!("{text}expected text in quotes, as in \"10s\" or \"4m\""),
        None => text,
    }
}

/// Parses the text of the file called `name` (escaped already).
///
/// # Errors
/// [`ConfigError`] with the line.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Raw, ConfigError> {
    let at = |offset: usize| format!("{name}: line {}", line_of(bytes, offset));
    let text = std::str::from_utf8(bytes)
        .map_err(|error| ConfigError { place: at(error.valid_up_to()), reason: "not UTF-8".to_owned() })?;
    let file: File = toml::from_str(text).map_err(|error| ConfigError {
        place: error.span().map_or_else(|| name.to_owned(), |span| at(span.start)),
        reason: in_words(error.message()),
    })?;
    let place = |text: Spanned<String>| {
        let place = at(text.span().start);
        (text.into_inner(), place)
    };
    let addresses = |addresses: Spanned<Addresses>| {
        let place = at(addresses.span().start);
        match addresses.into_inner() {
            Addresses::One(address) => (vec![address], place),
            Addresses::Several(several) => (several, place),
        }
    };
    let share = |(name, share): (String, Share)| {
        let Share { path, replicas, exclude, settle_max, history, bwlimit, rescan, heal, max_delete } = share;
        let only_masters = !exclude.is_empty() || [&settle_max, &history, &bwlimit].iter().any(|key| key.is_some());
        let master = (replicas.is_some() || only_masters).then(|| RawMaster {
            replicas: replicas.map(|replicas| replicas.into_iter().map(addresses).collect()),
            exclude,
            settle_max: settle_max.map(place),
            history: history.map(place),
            bwlimit: bwlimit.map(place),
        });
        let heal = heal.map(|heal| {
            let place = at(heal.span().start);
            let text = match heal.into_inner() {
                Word::Flag(true) => "heal".to_owned(),
                Word::Flag(false) => "off".to_owned(),
                Word::Text(text) => text,
            };
            (text, place)
        });
        let (share_place, rescan) = (at(path.span().start), rescan.map(place));
        let max_delete = max_delete.map(|amount| {
            let place = at(amount.span().start);
            let text = match amount.into_inner() {
                Amount::Number(number) => number.to_string(),
                Amount::Text(text) => text,
            };
            (text, place)
        });
        RawShare { name, place: share_place, path: path.into_inner(), master, heal, max_delete, rescan }
    };
    // What a relative path means would depend on where the daemon was started.
    if let Some(dir) = file.state_dir.as_ref().filter(|dir| dir.as_ref().is_relative()) {
        let reason = format!("state_dir: {} is not absolute", shown(dir.as_ref()));
        return Err(ConfigError { place: at(dir.span().start), reason });
    }
    Ok(Raw {
        state_dir: file.state_dir.map(Spanned::into_inner),
        listen: file.listen,
        log_format: file.log_format,
        log_level: file.log_level,
        shares: file.shares.into_iter().map(share).collect(),
    })
}

impl Checked {
    /// Whether a running daemon can turn to this without a restart. What it only cannot take over is none of this.
    ///
    /// # Errors
    /// Why not, with the share.
    pub fn may_become(&self, new: &Self) -> Result<(), String> {
        let overlap = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let state_dir = real(&self.state_dir);
        let places = |of: &Self| -> Vec<(String, PathBuf)> {
            of.masters.iter().map(|master| (master.name.clone(), real(&master.path))).collect()
        };
        let received = |of: &Self| -> Vec<(String, PathBuf)> {
            of.shares.iter().map(|share| (share.name.clone(), share.path.clone())).collect()
        };
        // Nobody writes to a tree that is being read, nor the other way round: the one would have to have ended.
        for (before, after, what) in [
            (
                received(self),
                places(new),
                "is a replica here, or lies in one: only a restart makes this machine its master",
            ),
            (
                places(self),
                received(new),
                "is mirrored from here, or lies in what is: only a restart makes it a replica",
            ),
        ] {
            let meets = |(name, path): &&(String, PathBuf)| {
                before.iter().any(|(known, place)| known == name || overlap(place, path))
            };
            if let Some((name, _)) = after.iter().find(meets) {
                return Err(format!("share {name} {what}"));
            }
        }
        // Where the running daemon keeps its state, which may be another place than the new one.
        let mut all = places(new).into_iter().chain(received(new));
        match all.find(|(_, path)| overlap(path, &state_dir)) {
            Some((name, _)) => {
                Err(format!("share {name} overlaps the state directory {} until a restart", shown(&state_dir)))
            }
            None => Ok(()),
        }
    }
}

fn line_of(bytes: &[u8], offset: usize) -> usize {
    1 + bytes.iter().take(offset).filter(|&&b| b == b'\n').count()
}

impl Raw {
    /// The state directory that was asked for, or the default.
    ///
    /// # Errors
    /// [`ConfigError`] if nothing tells where it is.
    pub fn state_dir(&self) -> Result<PathBuf, ConfigError> {
        let variable = |name| std::env::var_os(name).map(PathBuf::from);
        self.state_dir
            .clone()
            .or_else(|| {
                let root = rustix::process::geteuid().is_root();
                default_state_dir(root, variable("XDG_STATE_HOME"), variable("HOME"))
            })
            .ok_or_else(|| refusal("state_dir", "neither XDG_STATE_HOME nor HOME is set: use --state-dir"))
    }

    /// Checks everything that can be checked without changing anything.
    ///
    /// # Errors
    /// [`ConfigError`] for the first thing that makes no sense.
    pub fn check(&self) -> Result<Checked, ConfigError> {
        if self.shares.is_empty() {
            return Err(refusal(
                "shares",
                "there is none: use --share NAME=PATH, or [shares.NAME] in the configuration",
            ));
        }
        let state_dir = self.state_dir()?;
        let real_state_dir = resolve(&std::path::absolute(&state_dir).unwrap_or_else(|_| state_dir.clone()))
            .map_err(|error| refusal("state_dir", format!("{}: {error}", shown(&state_dir))))?;
        let mut places: Vec<(&str, PathBuf)> = Vec::new();
        let (mut shares, mut masters) = (Vec::new(), Vec::new());
        for share in &self.shares {
            let path = share.check(&real_state_dir)?;
            for (name, other) in &places {
                share.keeps_apart_from(name, other, &path)?;
            }
            match &share.master {
                Some(master) => masters.push(share.check_master(master)?),
                None => shares.push(share.check_replica(path.clone())?),
            }
            places.push((&share.name, path));
        }
        let listen = match &self.listen[..] {
            [] => vec![SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT))],
            some => some.to_vec(),
        };
        Ok(Checked { state_dir, listen, log_format: self.log_format, log_level: self.log_level, shares, masters })
    }
}

impl RawShare {
    /// The share's directory with every link resolved.
    fn check(&self, state_dir: &Path) -> Result<PathBuf, ConfigError> {
        if !is_share_name(&self.name) {
            let name = escape(self.name.as_bytes());
            return Err(self.refusal(format!("`{name}` is no share name (1 to {MAX_SHARE_NAME} of A-Z a-z 0-9 . _ -)")));
        }
        if !self.path.is_absolute() {
            return Err(self.refusal(format!("{} is not absolute", shown(&self.path))));
        }
        let path = resolve(&self.path).map_err(|error| self.refusal(format!("{}: {error}", shown(&self.path))))?;
        match std::fs::metadata(&path) {
            Ok(found) if !found.is_dir() => return Err(self.refusal(format!("{} is no directory", shown(&path)))),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(self.refusal(format!("{}: {error}", shown(&path))));
            }
            Err(_) if !path.parent().is_some_and(Path::is_dir) => {
                return Err(self.refusal(format!("{} does not exist, and neither does its parent", shown(&path))));
            }
            _ => {}
        }
        if path.parent().is_none() {
            return Err(self.refusal("/ cannot be a share: it holds the system and the state directory".to_owned()));
        }
        if state_dir.starts_with(&path) {
            return Err(self.refusal(format!("{} holds the state directory {}", shown(&path), shown(state_dir))));
        }
        if path.starts_with(state_dir) {
            return Err(self.refusal(format!("{} lies in the state directory {}", shown(&path), shown(state_dir))));
        }
        Ok(path)
    }

    fn check_master(&self, master: &RawMaster) -> Result<Master, ConfigError> {
        let Some(named) = &master.replicas else {
            let what = "a share with replicas, exclude, settle_max, history or bwlimit is one that this machine is the master of: \
                        name who follows with replicas = [...], or leave all of them out to hold a replica";
            return Err(self.refusal(what.to_owned()));
        };
        if let Some((_, place)) = &self.heal {
            return Err(refusal(place, "heal is for a share without replicas: the tree of a master is always right"));
        }
        let mut replicas = Vec::new();
        let mut known = Vec::new();
        for (addresses, place) in named {
            let replica = destination::replica(addresses, &self.name).map_err(|reason| refusal(place, reason))?;
            for address in destination::addresses(&replica) {
                if known.contains(&address) {
                    return Err(refusal(place, format!("{} is there twice", label(&address))));
                }
                known.push(address);
            }
            replicas.push(replica);
        }
        let exclude: Vec<Rule> = master.exclude.iter().map(|pattern| Rule { pattern: pattern.clone() }).collect();
        Filter::new(&exclude).map_err(|error| self.refusal(error.to_string()))?;
        Ok(Master {
            name: self.name.clone(),
            path: self.path.clone(),
            replicas,
            exclude,
            settle_max: time(&master.settle_max, SETTLE_MAX)?,
            history: match &master.history {
                None => Some(HISTORY),
                Some((text, place)) => size::history(text).map_err(|reason| refusal(place, reason))?,
            },
            bandwidth: match &master.bwlimit {
                None => None,
                Some((text, place)) => {
                    let rate = size::rate(text).map_err(|reason| refusal(place, reason))?;
                    Some(rate).filter(|rate| *rate > 0)
                }
            },
            rescan: time(&self.rescan, RESCAN)?,
            max_delete: self.max_delete()?,
        })
    }

    fn check_replica(&self, path: PathBuf) -> Result<ShareConfig, ConfigError> {
        let heal = match &self.heal {
            None => Heal::default(),
            Some((text, place)) => match text.as_str() {
                "heal" => Heal::Heal,
                "report" => Heal::Report,
                "off" => Heal::Off,
                other => {
                    let other = escape(other.as_bytes());
                    return Err(refusal(place, format!("`{other}` is none of \"heal\", \"report\" and \"off\"")));
                }
            },
        };
        let (rescan, max_delete) = (time(&self.rescan, RESCAN)?, self.max_delete()?);
        Ok(ShareConfig { name: self.name.clone(), path, heal, max_delete, rescan })
    }

    fn max_delete(&self) -> Result<MaxDelete, ConfigError> {
        match &self.max_delete {
            None => Ok(MaxDelete::default()),
            Some((text, place)) => text.parse().map_err(|reason: String| refusal(place, reason)),
        }
    }

    fn keeps_apart_from(&self, name: &str, other: &Path, path: &Path) -> Result<(), ConfigError> {
        if name == self.name {
            return Err(self.refusal(format!("share {name} is there twice")));
        }
        if path.starts_with(other) || other.starts_with(path) {
            return Err(self.refusal(format!("{} and {} (share {name}) overlap", shown(path), shown(other))));
        }
        Ok(())
    }

    fn refusal(&self, reason: String) -> ConfigError {
        refusal(&format!("{}: share {}", self.place, escape(self.name.as_bytes())), reason)
    }
}

fn time(given: &Option<(String, String)>, default: Duration) -> Result<Duration, ConfigError> {
    match given {
        None => Ok(default),
        Some((text, place)) => duration::parse(text).map_err(|reason| refusal(place, reason)),
    }
}

fn refusal(place: &str, reason: impl fmt::Display) -> ConfigError {
    ConfigError { place: place.to_owned(), reason: reason.to_string() }
}

/// A path, safe on a terminal.
pub(crate) fn shown(path: &Path) -> String {
    escape(path.as_os_str().as_encoded_bytes())
}

/// Resolves every link in an absolute path; what does not exist yet is kept as it is written.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut missing = Vec::new();
    let mut at = path;
    loop {
        match std::fs::canonicalize(at) {
            Ok(real) => return Ok(missing.iter().rev().fold(real, |path, name| path.join(name))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if std::fs::symlink_metadata(at).is_ok() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "a link that leads nowhere"));
        }
        match (at.components().next_back(), at.parent()) {
            (Some(Component::Normal(name)), Some(parent)) => {
                missing.push(name.to_owned());
                at = parent;
            }
            // `missing/..` means nothing that could be checked.
            _ => return Err(io::Error::new(io::ErrorKind::NotFound, "`..` in a part that does not exist")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> String {
        parse("c.toml", text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn mistakes_are_refused_with_their_line() {
        let table = [
            ("state_dir = '/s'\nlisen = ['0.0.0.0:1']\n", "c.toml: line 2: unknown field `lisen`"),
            ("[shares.www]\npath = '/w'\nowner = 1\n", "c.toml: line 3: unknown field `owner`"),
            ("[shares.www]\n", "c.toml: line 1: missing field `path`"),
            ("\nlisten = ['localhost']\n", "c.toml: line 2: no address to listen on: ADDRESS:PORT, as in"),
            ("\nstate_dir = 's'\n", "c.toml: line 2: state_dir: s is not absolute"),
            ("log_level = 'loud'\n", "c.toml: line 1: unknown variant `loud`"),
            ("# x\n\nstate_dir = \n", "c.toml: line 3: "),
            ("[shares.a]\npath='/a'\n[shares.a]\npath='/b'\n", "c.toml: line 3: duplicate key"),
            ("\"evil\\u001b[31m\" = 1\n", "c.toml: line 1: unknown field `evil\\x1b[31m`"),
        ];
        for (text, expected) in table {
            assert!(reason(text).starts_with(expected), "{text:?}: {}", reason(text));
        }
        let error = parse("c.toml", b"# ok\nstate_dir = '\xff'\n").unwrap_err();
        assert_eq!(error.to_string(), "c.toml: line 2: not UTF-8");
    }

    #[test]
    fn no_input_panics() {
        for text in
            ["", "[", "=", "[[shares]]", "shares = 1", "listen = 'x'", "\0", "a.b.c.d = {", "[shares.\"\"]\npath=''"]
        {
            let _ = parse("c.toml", text.as_bytes()).map(|raw| raw.check());
        }
    }

    #[test]
    fn a_share_with_replicas_is_mastered_here() {
        let (_dir, top) = tree();
        let text = |share: &str| {
            let (dir, state) = (top.display(), top.join("state"));
            format!("state_dir = '{}'\n[share.www]\npath = '{dir}/link'\n{share}\n", state.display())
        };
        let checked = |share: &str| parse("c.toml", text(share).as_bytes()).and_then(|raw| raw.check());
        let good =
            "replicas = ['web1', 'web2:99', '[::1]:7/other']\nexclude = ['*.swp']\nsettle_max = '2s'\nrescan = '5m'";
        let checked_good = checked(good).unwrap();
        assert_eq!(checked_good.shares, []);
        let [master] = &checked_good.masters[..] else { panic!("one master") };
        let replica = |host: &str, port, share: &str| Destination::Remote {
            host: host.into(),
            port,
            share: share.into(),
            also: Vec::new(),
        };
        let replicas = [replica("web1", DEFAULT_PORT, "www"), replica("web2", 99, "www"), replica("::1", 7, "other")];
        assert_eq!(master.replicas, replicas);
        // The link stays: it may lead elsewhere one day.
        assert_eq!(master.path, top.join("link"));
        assert_eq!((master.settle_max, master.rescan), (Duration::from_secs(2), Duration::from_secs(300)));
        // Who follows may be added later.
        assert!(checked("replicas = []").unwrap().masters.remove(0).replicas.is_empty());
        let plain = checked("replicas = ['web1']").unwrap().masters.remove(0);
        assert_eq!((plain.rescan, plain.history), (RESCAN, Some(HISTORY)));
        for (text, history) in [("'0'", None), ("'3m'", Some(3 << 20))] {
            let master = checked(&format!("replicas = ['web1']\nhistory = {text}")).unwrap().masters.remove(0);
            assert_eq!(master.history, history);
        }
        for (text, rate) in [("'0'", None), ("'4m'", Some(4 << 20))] {
            let master = checked(&format!("replicas = ['web1']\nbwlimit = {text}")).unwrap().masters.remove(0);
            assert_eq!(master.bandwidth, rate);
        }
        for (text, most) in [
            ("", MaxDelete::Percent(50)),
            ("max_delete = 7", MaxDelete::Count(7)),
            ("max_delete = '8%'", MaxDelete::Percent(8)),
            ("max_delete = 'off'", MaxDelete::Unlimited),
        ] {
            assert_eq!(checked(text).unwrap().shares[0].max_delete, most);
            let master = checked(&format!("replicas = ['web1']\n{text}")).unwrap().masters.remove(0);
            assert_eq!(master.max_delete, most);
        }
        let replica = |share: &str| {
            let shares = checked(share).unwrap().shares;
            (shares[0].heal, shares[0].rescan)
        };
        assert_eq!(replica(""), (Heal::Heal, RESCAN));
        for (text, heal) in
            [("'heal'", Heal::Heal), ("true", Heal::Heal), ("'report'", Heal::Report), ("'off'", Heal::Off)]
        {
            assert_eq!(replica(&format!("heal = {text}")).0, heal);
        }
        assert_eq!(replica("heal = false\nrescan = '5m'"), (Heal::Off, Duration::from_secs(300)));
        for (bad, expected) in [
            (
                "exclude = ['x']",
                "share www: a share with replicas, exclude, settle_max, history or bwlimit is one that",
            ),
            (
                "replicas = 'a'",
                "c.toml: line 4: invalid type: string \"a\", expected a list, as in [\"one\", \"other\"]",
            ),
            ("rescan = '1 day'", "c.toml: line 4: `1 day` is no time"),
            ("max_delete = '101%'", "c.toml: line 4: `101%` is no limit"),
            ("max_delete = -1", "c.toml: line 4: expected a number of entries, a percentage"),
            ("heal = 'on'", "c.toml: line 4: `on` is none of \"heal\", \"report\" and \"off\""),
            ("\nheal = 1", "c.toml: line 5: expected \"heal\", \"report\""),
            ("replicas = ['a']\nheal = true", "c.toml: line 5: heal is for a share without replicas"),
            ("replicas = ['a', 'a:7373']", "c.toml: line 4: a/www is there twice"),
            ("replicas = ['a', ['b', 'a']]", "c.toml: line 4: a/www is there twice"),
            ("replicas = [['a', 'b c']]", "c.toml: line 4: `b c` is no host"),
            ("replicas = [[]]", "c.toml: line 4: a replica without an address"),
            ("replicas = [1]", "c.toml: line 4: expected \"HOST[:PORT]\", or a list"),
            ("replicas = ['/srv']", "c.toml: line 4: /srv is no replica"),
            ("replicas = ['a b']", "c.toml: line 4: `a b` is no host; write HOST[:PORT] or HOST[:PORT]/SHARE"),
            (
                "replicas = ['a']\nbwlimit = 5",
                "c.toml: line 5: invalid type: integer `5`, expected text in quotes, as in \"10s\"",
            ),
            ("replicas = ['a']\nrescan = '1 day'", "c.toml: line 5: `1 day` is no time"),
            ("replicas = ['a']\nsettle_max = '0s'", "c.toml: line 5: `0s` is no time"),
            ("replicas = ['a']\nhistory = '5k'", "c.toml: line 5: too small to be of use: the least is 1m (0 is none)"),
            ("replicas = ['a']\nbwlimit = '5'", "c.toml: line 5: too slow for a handshake"),
            ("bwlimit = '5m'", "share www: a share with replicas, exclude, settle_max, history or bwlimit is one that"),
            ("history = '5m'", "share www: a share with replicas, exclude, settle_max, history or bwlimit is one that"),
            ("replicas = ['a']\nexclude = ['[']", "filter rule 1"),
        ] {
            let error = checked(bad).unwrap_err().to_string();
            assert!(error.contains(expected), "{bad}: {error}");
        }
    }

    /// A directory with `a/in`, `b`, `file`, and `link` to `a`.
    fn tree() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        for name in ["a/in", "b", "state"] {
            std::fs::create_dir_all(top.join(name)).unwrap();
        }
        std::fs::write(top.join("file"), "").unwrap();
        std::os::unix::fs::symlink(top.join("a"), top.join("link")).unwrap();
        (dir, top)
    }

    fn check(top: &Path, state_dir: &str, shares: &[(&str, &str)]) -> Result<Checked, String> {
        let share = |(name, path): &(&str, &str)| RawShare {
            name: (*name).to_owned(),
            path: if path.starts_with('/') || path.starts_with("rel") { path.into() } else { top.join(path) },
            place: "--share".to_owned(),
            ..RawShare::default()
        };
        let raw =
            Raw { state_dir: Some(top.join(state_dir)), shares: shares.iter().map(share).collect(), ..Raw::default() };
        raw.check().map_err(|error| error.to_string())
    }

    #[test]
    fn shares_that_make_sense_are_resolved() {
        let (_dir, top) = tree();
        let checked = check(&top, "state", &[("x", "link"), ("y", "b"), ("z", "new")]).unwrap();
        let paths: Vec<_> =
            checked.shares.iter().map(|share| share.path.strip_prefix(&top).unwrap().to_str().unwrap()).collect();
        assert_eq!(paths, ["a", "b", "new"]);
        assert_eq!(checked.listen, ["0.0.0.0:7373".parse().unwrap()]);
        assert!(!top.join("new").exists(), "checking changes nothing");
    }

    #[test]
    fn shares_that_make_no_sense_are_refused() {
        let (_dir, top) = tree();
        let table: &[(&str, &[(&str, &str)], &str)] = &[
            ("state", &[], "there is none"),
            ("state", &[("x", "/")], "/ cannot be a share"),
            ("state", &[("x", "rel")], "not absolute"),
            ("state", &[("x", "file")], "no directory"),
            ("state", &[("x", "no/such")], "neither does its parent"),
            ("state", &[("a/b", "a")], "no share name"),
            ("state", &[("..", "a")], "no share name"),
            ("state", &[("\u{1b}", "a")], "`\\x1b` is no share name"),
            ("state", &[("x", "a"), ("x", "b")], "twice"),
            ("state", &[("x", "a"), ("y", "a/in")], "overlap"),
            ("state", &[("x", "a/in"), ("y", "link")], "overlap"),
            ("state", &[("x", "a"), ("y", "link/new")], "overlap"),
            ("a", &[("x", "a")], "holds the state directory"),
            ("link/deep/state", &[("x", "a")], "holds the state directory"),
            ("state", &[("x", "state/sub")], "lies in the state directory"),
        ];
        for (state_dir, shares, expected) in table {
            let error = check(&top, state_dir, shares).unwrap_err();
            assert!(error.contains(expected), "{shares:?}: {error}");
        }
        assert!(check(&top, "state", &[("x", "a"), ("y", "a-b")]).is_ok(), "a common prefix of names is no overlap");
    }
}
