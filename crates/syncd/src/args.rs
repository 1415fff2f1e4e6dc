//! The command line of `syncd`. What it says replaces what the configuration file says, key by key.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Args, Parser, Subcommand};
use sync_core::path::escape;

use crate::config::{self, LogFormat, LogLevel, Raw, RawShare};

/// Where the configuration is unless `--config` says otherwise; it need not exist.
const DEFAULT_CONFIG: &str = "/etc/syncd/syncd.toml";

/// Keeps directory trees identical over QUIC: watches those that this machine is the master of, and holds replicas of others.
#[derive(Debug, Parser)]
#[command(
    name = "syncd",
    version,
    args_override_self = true,
    disable_help_subcommand = true,
    after_help = "Without a verb it serves until SIGINT or SIGTERM. Exit codes: 0 ended as asked, 1 failed, 2 usage or \
                  configuration."
)]
pub struct Cli {
    #[command(flatten)]
    options: Options,
    /// What to do instead of serving.
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

#[derive(Debug, Args)]
struct Options {
    /// Where indexes and the identity live [default: /var/lib/syncd as root, else $XDG_STATE_HOME/syncd].
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The configuration [default: /etc/syncd/syncd.toml, if there is one].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// An address and UDP port to listen on; may be repeated [default: 0.0.0.0:7373].
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
    /// A share and the absolute path of its directory; may be repeated.
    #[arg(long = "share", value_name = "NAME=PATH", value_parser = OsStringValueParser::new().try_map(share))]
    shares: Vec<(String, PathBuf)>,
    /// Log lines for people or for programs [default: text].
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// How much is logged [default: info].
    #[arg(long, value_enum, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
}

/// What `syncd` does besides serving.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Verb {
    /// Print a token that lets one master pair with this replica within 10 minutes.
    Invite,
    /// Print the identity of this replica.
    Id,
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in roff.
    Man,
}

fn share(text: OsString) -> Result<(String, PathBuf), &'static str> {
    let bytes = text.into_vec();
    let cut = bytes.iter().position(|&b| b == b'=').ok_or("write NAME=PATH")?;
    let name = String::from_utf8(bytes[..cut].to_vec()).map_err(|_| "a name is plain text")?;
    Ok((name, OsString::from_vec(bytes[cut + 1..].to_vec()).into()))
}

/// Parses a command line whose first element is the program's name.
pub fn parse(argv: &[OsString]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(argv)
}

impl Cli {
    /// The configuration file, if there is one.
    pub fn file(&self) -> Option<PathBuf> {
        let default = || Some(PathBuf::from(DEFAULT_CONFIG)).filter(|file| file.exists());
        let file = self.options.config.clone().or_else(default)?;
        // Others have another working directory.
        Some(std::path::absolute(&file).unwrap_or(file))
    }

    /// The configuration file with what the command line puts in its place.
    pub fn raw(&self) -> anyhow::Result<Raw> {
        let options = &self.options;
        let path = options.config.clone().unwrap_or_else(|| DEFAULT_CONFIG.into());
        let name = escape(path.as_os_str().as_encoded_bytes());
        let mut raw = match std::fs::read(&path) {
            Ok(bytes) => config::parse(&name, &bytes)?,
            Err(error) if error.kind() == ErrorKind::NotFound && options.config.is_none() => Raw::default(),
            Err(error) => return Err(error).with_context(|| format!("cannot read the configuration {name}")),
        };
        if let Some(dir) = &options.state_dir {
            raw.state_dir = Some(dir.clone());
        }
        if !options.listen.is_empty() {
            raw.listen = options.listen.clone();
        }
        if !options.shares.is_empty() {
            let shares = options.shares.iter().cloned();
            let share = |(name, path)| RawShare { name, path, place: "--share".to_owned(), ..RawShare::default() };
            raw.shares = shares.map(share).collect();
        }
        raw.log_format = options.log_format.unwrap_or(raw.log_format);
        raw.log_level = options.log_level.unwrap_or(raw.log_level);
        Ok(raw)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn words(words: &[&str]) -> Result<Cli, clap::Error> {
        parse(&std::iter::once("syncd").chain(words.iter().copied()).map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn clap_finds_no_fault_in_the_definition() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_state_directory_stands_before_or_after_the_verb() {
        for line in [["--state-dir", "r", "invite"], ["invite", "--state-dir", "r"]] {
            let cli = words(&line).unwrap();
            assert_eq!(cli.options.state_dir, Some("r".into()));
            assert!(matches!(cli.verb, Some(Verb::Invite)));
        }
    }

    #[test]
    fn the_command_line_replaces_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(
            &file,
            "state_dir = '/f'\nlisten = ['0.0.0.0:1']\nlog_format = 'json'\n[shares.a]\npath = '/a'\n",
        )
        .unwrap();
        let config = file.to_str().unwrap();
        let raw = words(&["--config", config]).unwrap().raw().unwrap();
        assert_eq!((raw.state_dir.as_deref(), raw.shares[0].name.as_str()), (Some("/f".as_ref()), "a"));
        let raw = words(&["--config", config, "--share", "b=/b=c", "--listen", "[::1]:2", "--state-dir=/g"])
            .unwrap()
            .raw()
            .unwrap();
        assert_eq!(raw.state_dir, Some("/g".into()));
        assert_eq!(raw.listen, ["[::1]:2".parse().unwrap()]);
        assert_eq!((raw.shares.len(), raw.shares[0].path.to_str()), (1, Some("/b=c")));
        assert_eq!(raw.log_format, LogFormat::Json);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused: &[&[&str]] = &[&["--listen", "localhost"], &["--share", "www"], &["serve"], &["--log-level=loud"]];
        for line in refused {
            assert_eq!(words(line).unwrap_err().exit_code(), 2, "{line:?}");
        }
        assert!(
            words(&["--config", "/nonexistent/x.toml"]).unwrap().raw().is_err(),
            "a file that was asked for must exist"
        );
    }
}
