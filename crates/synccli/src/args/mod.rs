//! The command line as data. Everything is checked here, once; what the commands get is proof.

mod compress;
mod filters;
mod habits;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{ArgAction, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use sync_core::options::{Compress, Destination, default_state_dir};
use sync_core::path::escape;

pub use filters::{Filter, rules};
use sync_core::destination;
pub use sync_core::destination::label;
use sync_core::duration;
pub use sync_core::options::HostPort;
use sync_core::size;

use crate::exit::Failure;

/// Makes directory trees identical on other machines, over QUIC.
#[derive(Debug, Parser)]
#[command(name = "synccli", version, args_override_self = true, disable_help_subcommand = true)]
pub struct Cli {
    /// Where the index and the identity live [default: /var/lib/syncd as root, else $XDG_STATE_HOME/syncd].
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// One verb, one file under `command/`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make every DEST identical to SRC.
    Push(PushArgs),
    /// Show what a push would change, how and why, and change nothing; or what changed between versions.
    Diff(DiffArgs),
    /// Become the master of a replica, with the token that `syncd invite` printed there.
    Pair(PairArgs),
    /// Show how the shares of the daemon on this machine are, and who follows them.
    Status(StatusArgs),
    /// Tell whether the replicas of a share are identical, and what differs.
    Verify(VerifyArgs),
    /// Let a version go out that the daemon holds, once.
    Release {
        /// The share's name or path.
        #[arg(value_name = "SHARE|PATH")]
        share: OsString,
        /// Take over, once, the replicas that are held because another master owns them, and release nothing else: they
        /// become identical to the tree here, and the other master is refused there from then on.
        #[arg(long)]
        adopt: bool,
    },
    /// Add or remove a replica of a share, or leave one alone for a while.
    Replica(ReplicaArgs),
    /// Have the daemon read its configuration again, as SIGHUP does.
    Reload,
    /// List the versions of a tree and what each replica acknowledged.
    Log(LogArgs),
    /// Print the identity of this master.
    Id,
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in roff.
    Man {
        /// The page of this verb instead of the overview.
        verb: Option<String>,
    },
}

/// `synccli push`.
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    after_help = "Exit codes: 0 every DEST is identical and durable; 1 some entry or some DEST failed, each named on \
                  standard error; 2 usage, nothing was touched; 130 and 143 on SIGINT and SIGTERM."
)]
pub struct PushArgs {
    /// The directory whose contents are made the contents of each DEST.
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    /// Where it goes: directories here, or shares of daemons.
    #[arg(
        help = "A path that starts with `/`, `./` or `../`, or a share of a daemon: HOST[:PORT]/SHARE. Without any, the \
                  daemon on this machine pushes its share of the name or path SRC to all who follow it"
    )]
    #[arg(value_name = "DEST", value_parser = OsStringValueParser::new().try_map(destination::parse))]
    pub destinations: Vec<Destination>,
    /// Without DEST, who must have it before this ends: all (unless given), quorum (more than half) or none.
    #[arg(long, value_name = "WHO", value_enum)]
    wait: Option<Wait>,
    /// Without DEST, how long to wait: 500ms, 10s, 5m, 1h. Unless given, until nobody is left but who could not be reached
    /// for half a minute.
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub timeout: Option<Duration>,
    /// Say what would change, change nothing at all.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// One line for each changed entry: rsync's eleven letters and the escaped name.
    #[arg(short = 'i', long)]
    pub itemize_changes: bool,
    /// What is compared.
    #[command(flatten)]
    pub compare: CompareArgs,
    /// Refuse the whole plan of a DEST if it would remove more than N entries.
    #[arg(long, value_name = "N", value_parser = entries)]
    pub max_delete: Option<u64>,
    /// Take over each DEST that is a share of a daemon and another master's: that one is refused there from then on.
    #[arg(long)]
    pub adopt: bool,
    /// Bytes per second on the wire for each DEST: 500k, 4m, 1.5g (powers of 1024); 0 is no limit.
    #[arg(long, value_name = "RATE", value_parser = |text: &str| size::rate(text))]
    bwlimit: Option<u64>,
    /// Keep up to so many bytes of previous contents of SRC in the state directory, so that less is sent of changed files:
    /// 500m, 2g (powers of 1024); 0 is none.
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| size::history(text).map(Option::unwrap_or_default))]
    history: Option<u64>,
    /// auto, never, zstd or zstd:LEVEL (1 to 19).
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = compress::parse)]
    pub compress: Compress,
    /// What is said about it.
    #[command(flatten)]
    pub say: SayArgs,
}

/// Who must have a version before a push by the daemon counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Wait {
    /// Every replica.
    All,
    /// More than half of the replicas.
    Quorum,
    /// Nobody: it is enough that it is published.
    None,
}

/// Which entries are compared, and how.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Leave out what this gitignore pattern matches; the last match of all patterns wins.
    #[arg(long, value_name = "PATTERN", action = ArgAction::Append)]
    exclude: Vec<String>,
    /// Take in again what this pattern matches: the same as --exclude '!PATTERN'.
    #[arg(long, value_name = "PATTERN", action = ArgAction::Append)]
    include: Vec<String>,
    /// Read patterns from FILE, one a line; blank lines and lines that start with `#` are skipped.
    #[arg(long, value_name = "FILE", action = ArgAction::Append)]
    exclude_from: Vec<PathBuf>,
    /// The three options above, in the order of the command line.
    #[arg(skip)]
    pub filters: Vec<Filter>,
    /// Remove at DEST what the patterns exclude.
    #[arg(long)]
    pub delete_excluded: bool,
    /// Keep what DEST has and SRC has not.
    #[arg(long, conflicts_with = "delete_excluded")]
    pub no_delete: bool,
    /// Remove at DEST what SRC has not: done in any case, and accepted for who is used to rsync.
    #[arg(long, hide = true, conflicts_with = "no_delete")]
    delete: bool,
    /// Believe no metadata on either side: read and compare everything.
    #[arg(short = 'c', long)]
    pub checksum: bool,
    /// Leave out, and leave alone, what is mounted below SRC and DEST.
    #[arg(short = 'x', long)]
    pub one_file_system: bool,
}

/// `synccli diff`.
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    after_help = "With DEST each line is one entry that a push would change: the eleven letters and the name that \
                  `push -n -i` prints, and in parentheses how it would be made, and how many bytes of content would be \
                  sent for it before compression. Both trees are looked at as for a push, files that are not known are \
                  read, and nothing is made or changed on either side, not even an index. What an interrupted push left \
                  at DEST is not taken into account.\n\n\
                  Without DEST two versions of SRC that were pushed are compared, by the numbers that `synccli log` \
                  lists. The index keeps the version in which an entry changed last, and no older state of it: what \
                  is not listed is the same in both versions, and a path that changed again after the second one is \
                  listed as unknown.\n\n\
                  Exit codes: 0 the trees were compared, whether they differ or not; 3 they differ, if --exit-code asks \
                  for that; 1 some entry or DEST failed, each named on standard error; 2 usage; 130 and 143 on SIGINT \
                  and SIGTERM."
)]
pub struct DiffArgs {
    /// The directory that would be pushed.
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    /// Where it would go.
    #[arg(help = "A path that starts with `/`, `./` or `../`, or a share of a daemon: HOST[:PORT]/SHARE")]
    #[arg(value_name = "DEST", value_parser = OsStringValueParser::new().try_map(destination::parse))]
    #[arg(required_unless_present_any = ["since", "versions"], conflicts_with_all = ["since", "versions"])]
    pub destination: Option<Destination>,
    /// What changed in SRC from version A to the last one that was pushed.
    #[arg(long, value_name = "A", conflicts_with = "versions", value_parser = version)]
    pub since: Option<u64>,
    /// What changed in SRC from version A to version B, as far as the index knows.
    #[arg(long, num_args = 2, value_names = ["A", "B"], value_parser = version)]
    pub versions: Option<Vec<u64>>,
    /// What is compared.
    #[command(flatten)]
    pub compare: CompareArgs,
    /// Find out as well what the content would take compressed: never, zstd or zstd:LEVEL (1 to 19).
    #[arg(long, value_name = "HOW", default_value = "never", value_parser = compress::parse_always)]
    pub compress: Compress,
    /// End with exit code 3 if anything differs.
    #[arg(long)]
    pub exit_code: bool,
    /// What is said about it.
    #[command(flatten)]
    pub say: SayArgs,
}

impl DiffArgs {
    /// The versions to compare, if that is asked for; the second is the last one if it is left out.
    pub fn range(&self) -> Option<(u64, Option<u64>)> {
        let both = self.versions.as_deref().and_then(|both| Some((*both.first()?, both.get(1).copied())));
        both.or(self.since.map(|from| (from, None)))
    }

    /// An option that versions have no use for.
    fn meant_for_trees(&self) -> Option<&'static str> {
        let CompareArgs { filters, delete_excluded, no_delete, checksum, one_file_system, .. } = &self.compare;
        let given = [
            (!filters.is_empty(), "--exclude, --include and --exclude-from"),
            (*delete_excluded, "--delete-excluded"),
            (*no_delete, "--no-delete"),
            (*checksum, "--checksum"),
            (*one_file_system, "--one-file-system"),
            (self.compress != Compress::Never, "--compress"),
            (self.say.stats, "--stats"),
            (self.say.progress, "--progress"),
        ];
        given.iter().find(|(given, _)| *given && self.range().is_some()).map(|(_, option)| *option)
    }

    /// Whether the options belong together.
    ///
    /// # Errors
    /// A usage failure.
    pub fn check(&self) -> Result<(), Failure> {
        match (self.meant_for_trees(), &self.versions.as_deref()) {
            (Some(option), _) => Err(Failure::usage(format!("{option} cannot be used when versions are compared"))),
            (None, Some([from, to])) if from > to => {
                Err(Failure::usage(format!("--versions {from} {to}: the older version comes first")))
            }
            _ => Ok(()),
        }
    }
}

/// How much is said, and how.
#[derive(Debug, Default, Args)]
pub struct SayArgs {
    /// Print counts, bytes and seconds for each DEST.
    #[arg(long)]
    pub stats: bool,
    /// Make all of standard output JSON, one object a line.
    #[arg(long)]
    pub json: bool,
    /// Log what is being done on standard error; twice for more.
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Say only what failed and what other options ask for.
    #[arg(short, long)]
    pub quiet: bool,
    /// Show progress where standard error is no terminal, too (with --json: as objects).
    #[arg(long)]
    pub progress: bool,
}

impl PushArgs {
    /// The rate, if there is a limit.
    pub fn bandwidth(&self) -> Option<u64> {
        self.bwlimit.filter(|&rate| rate > 0)
    }

    /// Whether the options belong together: without DEST the daemon's configuration says what is pushed and how, and with
    /// one nobody else is waited for.
    ///
    /// # Errors
    /// A usage failure.
    pub fn check_for_daemon(&self) -> Result<(), Failure> {
        let CompareArgs { filters, delete_excluded, no_delete, checksum, one_file_system, .. } = &self.compare;
        let given = [
            (self.dry_run, "--dry-run"),
            (self.itemize_changes, "--itemize-changes"),
            (!filters.is_empty(), "--exclude, --include and --exclude-from"),
            (*delete_excluded, "--delete-excluded"),
            (*no_delete, "--no-delete"),
            (*checksum, "--checksum"),
            (*one_file_system, "--one-file-system"),
            (self.max_delete.is_some(), "--max-delete"),
            (self.bwlimit.is_some(), "--bwlimit"),
            (self.history.is_some(), "--history"),
            (self.compress != Compress::Auto, "--compress"),
            (self.say.stats, "--stats"),
            (self.say.progress, "--progress"),
        ];
        match given.iter().find(|(given, _)| *given) {
            _ if self.adopt => Err(Failure::usage(
                "--adopt is for a push to a DEST, and none is given; `synccli release SHARE --adopt` has the daemon take over \
                 replicas of its share",
            )),
            Some((_, option)) => Err(Failure::usage(format!(
                "{option} is for a push to a DEST, and none is given; without one the daemon pushes its share as its \
                 configuration says"
            ))),
            None => Ok(()),
        }
    }

    /// Who must have a version before a push by the daemon is done.
    pub fn wait(&self) -> Wait {
        self.wait.unwrap_or(Wait::All)
    }

    /// Whether the options belong together where there is a DEST: such a push always waits for all, and only who is a share
    /// of a daemon has an owner.
    ///
    /// # Errors
    /// A usage failure.
    pub fn check_for_destinations(&self) -> Result<(), Failure> {
        let given = [(self.wait.is_some(), "--wait"), (self.timeout.is_some(), "--timeout")];
        if let Some((_, option)) = given.iter().find(|(given, _)| *given) {
            return Err(Failure::usage(format!(
                "{option} is for a push by the daemon, without DEST; a push to a DEST ends when each has it or has failed"
            )));
        }
        let is_share = |dest: &Destination| matches!(dest, Destination::Remote { .. });
        match self.adopt && !self.destinations.iter().any(is_share) {
            true => Err(Failure::usage(
                "--adopt is for a DEST that is a share of a daemon: no master owns a directory here",
            )),
            false => Ok(()),
        }
    }

    /// How much to keep of previous contents, if anything.
    pub fn history(&self) -> Option<u64> {
        self.history.filter(|&size| size > 0)
    }
}

/// A number of entries.
fn entries(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is no number of entries, such as 0 or 500"))
}

/// A version by its number.
fn version(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is no number of a version; `synccli log` lists them"))
}

/// `synccli pair`.
#[derive(Debug, Args)]
pub struct PairArgs {
    /// Where the replica's `syncd` listens.
    #[arg(value_name = "HOST[:PORT]")]
    pub peer: HostPort,
    /// What `syncd invite` printed there; it works once.
    #[arg(value_name = "TOKEN")]
    pub token: String,
}

/// `synccli status`.
#[derive(Debug, Args)]
#[command(
    after_help = "BEHIND is what a replica lacks of the newest version: versions, changed entries, the bytes of the \
                        files among them (not what will be sent), and for how long.\n\n\
                        Exit codes: 0 told; 3 some share or replica is not as it should be, if --exit-code asks for that; \
                        1 no daemon answers."
)]
pub struct StatusArgs {
    /// A share's name or path; all of them if left out.
    #[arg(value_name = "SHARE|PATH")]
    pub share: Option<OsString>,
    /// Go on, and show every change.
    #[arg(short, long, conflicts_with = "exit_code")]
    pub watch: bool,
    /// End with exit code 3 unless every replica is in sync.
    #[arg(long)]
    pub exit_code: bool,
    /// One JSON object a line.
    #[arg(long)]
    pub json: bool,
}

/// `synccli verify`.
#[derive(Debug, Args)]
#[command(
    after_help = "Each line is an entry that differs at a replica, with the eleven letters of what would be changed.\n\n\
                        Exit codes: 0 all are identical; 1 some entry differs, or a replica could not be asked."
)]
pub struct VerifyArgs {
    /// The share's name or path.
    #[arg(value_name = "SHARE|PATH")]
    pub share: OsString,
    /// Only this replica, by the name that `synccli status` shows.
    #[arg(long, value_name = "REPLICA")]
    pub replica: Option<String>,
    /// Have each replica read every byte of its files, instead of believing the metadata.
    #[arg(long)]
    pub deep: bool,
    /// One JSON object a line.
    #[arg(long)]
    pub json: bool,
}

/// `synccli replica`.
#[derive(Debug, Args)]
pub struct ReplicaArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: ReplicaVerb,
}

/// What is done with a replica. It is called as in the configuration: `HOST[:PORT]`, or `HOST[:PORT]/SHARE` if the share has
/// another name there.
#[derive(Debug, Subcommand)]
pub enum ReplicaVerb {
    /// Let a paired replica follow: writes it into the daemon's configuration and reloads that.
    Add {
        /// The share's name or path here.
        #[arg(value_name = "SHARE|PATH")]
        share: OsString,
        /// Who.
        #[arg(value_name = "HOST[:PORT][/SHARE]")]
        replica: String,
        /// Further addresses of the same machine, used where the first does not answer.
        #[arg(value_name = "HOST[:PORT]")]
        also: Vec<String>,
    },
    /// Let a replica follow no longer; it keeps what it has.
    Remove {
        /// The share's name or path here.
        #[arg(value_name = "SHARE|PATH")]
        share: OsString,
        /// Who.
        #[arg(value_name = "HOST[:PORT][/SHARE]")]
        replica: String,
    },
    /// Send a replica nothing until `resume`, or until the daemon ends.
    Pause {
        /// The share's name or path here.
        #[arg(value_name = "SHARE|PATH")]
        share: OsString,
        /// Who.
        #[arg(value_name = "HOST[:PORT][/SHARE]")]
        replica: String,
    },
    /// Bring it to the newest version, and go on.
    Resume {
        /// The share's name or path here.
        #[arg(value_name = "SHARE|PATH")]
        share: OsString,
        /// Who.
        #[arg(value_name = "HOST[:PORT][/SHARE]")]
        replica: String,
    },
}

/// A share as the daemon is told which: its name, or its path, which may be given as it is seen from here.
pub fn share_text(share: &OsStr) -> String {
    let looks_like_path = share.as_encoded_bytes().contains(&b'/') || matches!(share.as_encoded_bytes(), b"." | b"..");
    let path = if looks_like_path { std::path::absolute(share).ok() } else { None };
    match path {
        Some(path) => {
            // Without a slash at its end, and without dots.
            let path = std::fs::canonicalize(&path).unwrap_or_else(|_| path.components().collect());
            escape(path.as_os_str().as_encoded_bytes())
        }
        None => escape(share.as_encoded_bytes()),
    }
}

/// `synccli log`.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// A pushed directory or a share; all of them if left out.
    #[arg(value_name = "SHARE|SRC")]
    pub tree: Option<OsString>,
    /// One JSON object a line.
    #[arg(long)]
    pub json: bool,
}

/// Parses a command line whose first element is the program's name.
///
/// # Errors
/// What clap says, safe on a terminal: a refusal, or a request for help or the version.
pub fn parse(argv: &[OsString]) -> Result<Cli, clap::Error> {
    parse_raw(argv).map_err(|refusal| {
        // A shell pattern makes arguments of file names, and clap repeats them as they are. The same words escaped are
        // refused in the same way; should they not be, it was not about them.
        let escaped: Vec<_> = argv.iter().map(|arg| harmless(arg)).collect();
        let harmless = if escaped == argv { None } else { parse_raw(&escaped).err() };
        habits::advise(harmless.unwrap_or(refusal))
    })
}

fn harmless(arg: &OsStr) -> OsString {
    let escaped = escape(arg.as_encoded_bytes());
    let same = arg.as_encoded_bytes() == escaped.replace("\\\\", "\\").as_bytes();
    if same { arg.to_owned() } else { escaped.into() }
}

fn parse_raw(argv: &[OsString]) -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches_from(argv)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    let compare = match &mut cli.command {
        Command::Push(push) => Some(&mut push.compare),
        Command::Diff(diff) => Some(&mut diff.compare),
        _ => None,
    };
    if let (Some(compare), Some((_, matches))) = (compare, matches.subcommand()) {
        compare.filters = filters::in_order(matches);
    }
    Ok(cli)
}

/// Whether `--json` stands among arguments that could not be parsed: even that refusal is then JSON.
pub fn asks_for_json(argv: &[OsString]) -> bool {
    argv.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json")
}

impl Cli {
    /// The state directory that was asked for, or the default.
    ///
    /// # Errors
    /// A usage failure if nothing tells where it is.
    pub fn state_dir(&self) -> Result<PathBuf, Failure> {
        let variable = |name| std::env::var_os(name).map(PathBuf::from);
        self.state_dir
            .clone()
            .or_else(|| {
                let root = rustix::process::geteuid().is_root();
                default_state_dir(root, variable("XDG_STATE_HOME"), variable("HOME"))
            })
            .ok_or_else(|| Failure::usage("neither XDG_STATE_HOME nor HOME is set: name a directory with --state-dir"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &[&str]) -> Result<Cli, clap::Error> {
        let argv: Vec<_> = std::iter::once("synccli").chain(words.iter().copied()).map(OsString::from).collect();
        parse(&argv)
    }

    fn push(words: &[&str]) -> PushArgs {
        match parse_words(&[&["push"], words].concat()).unwrap().command {
            Command::Push(push) => push,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn clap_finds_no_fault_in_the_definition() {
        Cli::command().debug_assert();
    }

    #[test]
    fn filters_keep_the_order_of_the_command_line() {
        let words = "--include a --exclude b src --exclude-from f --exclude=c ./dest --include d --exclude-from=g";
        let push = push(&words.split(' ').collect::<Vec<_>>());
        let text = |word: &str| word.to_owned();
        assert_eq!(
            push.compare.filters,
            [
                Filter::Include(text("a")),
                Filter::Exclude(text("b")),
                Filter::From("f".into()),
                Filter::Exclude(text("c")),
                Filter::Include(text("d")),
                Filter::From("g".into()),
            ]
        );
    }

    #[test]
    fn the_state_directory_stands_before_or_after_the_verb() {
        for words in [["--state-dir", "s", "push", "a", "./b"], ["push", "--state-dir", "s", "a", "./b"]] {
            assert_eq!(parse_words(&words).unwrap().state_dir, Some("s".into()));
        }
    }

    #[test]
    fn flags_and_values_arrive() {
        let all = push(&[
            "-nicx",
            "-vv",
            "--stats",
            "--json",
            "--progress",
            "--max-delete=0",
            "--bwlimit=4m",
            "--history=2g",
            "a",
            "./b",
        ]);
        assert!(all.dry_run && all.itemize_changes && all.compare.checksum && all.compare.one_file_system);
        assert!(all.say.stats && all.say.json && all.say.progress);
        assert_eq!((all.say.verbose, all.max_delete, all.bandwidth()), (2, Some(0), Some(4 << 20)));
        assert_eq!(all.history(), Some(2 << 30));
        let none = push(&["--bwlimit=0", "a", "./b", "h/s"]);
        assert_eq!((none.bandwidth(), none.compress, none.destinations.len()), (None, Compress::Auto, 2));
        assert_eq!((none.history(), push(&["--history=0", "a", "./b"]).history()), (None, None));
        assert!(push(&["-n", "-n", "a", "./b"]).dry_run, "a flag may be repeated");
        assert!(!push(&["--delete", "a", "./b"]).compare.no_delete, "who is used to rsync may say what is so anyway");
    }

    #[test]
    fn what_a_destination_has_no_use_for_is_refused() {
        assert_eq!(push(&["--adopt", "a", "host/share"]).check_for_destinations(), Ok(()));
        assert_eq!(push(&["--adopt", "a", "host/share", "./b"]).check_for_destinations(), Ok(()));
        assert_eq!(push(&["a", "./b"]).check_for_destinations(), Ok(()));
        for (refused, hint) in [
            (push(&["--adopt", "a", "./b"]).check_for_destinations(), "share of a daemon"),
            (push(&["--adopt", "a"]).check_for_daemon(), "synccli release SHARE --adopt"),
            (push(&["--wait=all", "a", "./b"]).check_for_destinations(), "--wait is for a push by the daemon"),
            (push(&["--timeout=1h", "a", "./b"]).check_for_destinations(), "--timeout is for a push by the daemon"),
        ] {
            let failure = refused.unwrap_err();
            assert_eq!(failure.exit, crate::exit::Exit::Usage);
            assert!(failure.message.contains(hint), "{failure:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused: &[&[&str]] = &[
            &[],
            &["push"],
            &["push", "a", "b"],
            &["push", "a", "--wait=some"],
            &["push", "a", "--timeout=soon"],
            &["verify"],
            &["status", "--watch", "--exit-code"],
            &["replica", "add", "www"],
            &["push", "a", "./b", "c"],
            &["push", "-qv", "a", "./b"],
            &["push", "--no-delete", "--delete-excluded", "a", "./b"],
            &["push", "--delete", "--no-delete", "a", "./b"],
            &["push", "--max-delete=-1", "a", "./b"],
            &["push", "--max-delete=50%", "a", "./b"],
            &["diff", "a", "--since=abc"],
            &["push", "--bwlimit=fast", "a", "./b"],
            &["push", "--history=much", "a", "./b"],
            &["push", "--history=1k", "a", "./b"],
            &["push", "--compress=gzip", "a", "./b"],
            &["diff", "a"],
            &["diff", "a", "b"],
            &["diff", "a", "./b", "./c"],
            &["diff", "a", "./b", "--since=1"],
            &["diff", "a", "--versions", "1"],
            &["diff", "a", "--versions", "1", "2", "--since", "1"],
            &["diff", "a", "./b", "--compress=auto"],
            &["pair", "host"],
            &["pair", "host:x", "token"],
            &["frobnicate"],
        ];
        for words in refused {
            let refusal = parse_words(words).unwrap_err();
            assert_eq!(refusal.exit_code(), 2, "{words:?}: {refusal}");
        }
    }

    #[test]
    fn versions_are_compared_without_what_is_meant_for_trees() {
        let diff = |words: &[&str]| match parse_words(&[&["diff", "a"], words].concat()).unwrap().command {
            Command::Diff(diff) => diff,
            other => panic!("{other:?}"),
        };
        assert_eq!(diff(&["./b"]).range(), None);
        assert_eq!(diff(&["--since=3"]).range(), Some((3, None)));
        assert_eq!(diff(&["--versions", "3", "5"]).range(), Some((3, Some(5))));
        for good in [&["./b", "-c", "--exclude=x"][..], &["--since=3", "--json", "-q"], &["--versions", "3", "3"]] {
            assert_eq!(diff(good).check(), Ok(()), "{good:?}");
        }
        for bad in [&["--since=3", "-c"][..], &["--since=3", "--exclude=x"], &["--versions", "5", "3"]] {
            assert_eq!(diff(bad).check().unwrap_err().exit, crate::exit::Exit::Usage, "{bad:?}");
        }
    }

    #[test]
    fn file_names_among_the_arguments_are_shown_harmless() {
        let table: &[(&[&str], &str)] = &[
            (&["push", "--evil\u{1b}[31m\n", "a", "./b"], "--evil\\x1b[31m\\n"),
            (&["push", "a", "evil\u{1b}[31m\n"], "evil\\x1b[31m\\n"),
            (&["evil\u{1b}[31m\n"], "evil\\x1b[31m\\n"),
            (&["push", "--bwlimit=a\\b", "a", "./b"], "'a\\b'"),
        ];
        for (words, shown) in table {
            let text = parse_words(words).unwrap_err().render().to_string();
            assert!(text.contains(shown) && !text.contains('\u{1b}'), "{text:?}");
        }
    }

    #[test]
    fn json_is_seen_in_arguments_that_cannot_be_parsed() {
        let argv = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert!(asks_for_json(&argv(&["synccli", "push", "--json", "--nonsense"])));
        assert!(!asks_for_json(&argv(&["synccli", "push", "--", "--json"])));
    }
}
