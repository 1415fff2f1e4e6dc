//! `synccli replica`: who follows a share. Adding and removing edits the daemon's configuration, which stays the one place
//! where that is written down, and has the daemon read it again.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use sync_core::control::{Order, Reply, Role};
use sync_core::destination::{self, label};
use sync_core::options::Destination;
use sync_core::path::escape;
use toml_edit::{Array, DocumentMut, Value};

use super::share::tell;
use crate::args::{ReplicaArgs, ReplicaVerb, share_text};
use crate::daemon::ask;
use crate::exit::{Exit, Failure};
use crate::output::Sink;

/// Does what the verb says.
pub fn run(args: ReplicaArgs, state_dir: &Path, out: &Sink) -> Result<Exit, Failure> {
    match args.verb {
        ReplicaVerb::Pause { share, replica } => {
            tell(Order::Pause { share: share_text(&share), replica }, state_dir, out)
        }
        ReplicaVerb::Resume { share, replica } => {
            tell(Order::Resume { share: share_text(&share), replica }, state_dir, out)
        }
        ReplicaVerb::Add { share, replica, also } => {
            let addresses = [vec![replica], also].concat();
            edit(&share_text(&share), &addresses, state_dir, out, add)
        }
        ReplicaVerb::Remove { share, replica } => edit(&share_text(&share), &[replica], state_dir, out, remove),
    }
}

/// Changes the replicas of a share in the configuration, and has it read. What the daemon refuses is taken back.
fn edit(
    share: &str,
    addresses: &[String],
    state_dir: &Path,
    out: &Sink,
    change: impl FnOnce(&mut Array, &str, &[String]) -> Result<(), String>,
) -> Result<Exit, Failure> {
    let (share, file) = configuration(share, state_dir)?;
    let name = escape(file.as_os_str().as_encoded_bytes());
    let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("{name}: {error}; nothing was changed"));
    let before = fs::read_to_string(&file).map_err(|error| failed(&error))?;
    let mut document: DocumentMut = before.parse().map_err(|error: toml_edit::TomlError| failed(&error.message()))?;
    let replicas = replicas_of(&mut document, &share)
        .ok_or_else(|| failed(&format!("it has no `replicas` in a table [shares.{share}]")))?;
    change(replicas, &share, addresses).map_err(|reason| Failure::failed(format!("{reason}; nothing was changed")))?;
    replace(&file, &document.to_string()).map_err(|error| failed(&error))?;
    match tell(Order::Reload, state_dir, out) {
        Ok(exit) => Ok(exit),
        Err(refusal) => {
            // Unless somebody has written it meanwhile.
            if fs::read_to_string(&file).is_ok_and(|now| now == document.to_string()) {
                replace(&file, &before).map_err(|error| failed(&error))?;
            }
            Err(refusal)
        }
    }
}

/// The name of a share that the daemon is the master of, and the file that says so.
fn configuration(share: &str, state_dir: &Path) -> Result<(String, PathBuf), Failure> {
    let mut answers = ask(state_dir, Order::Status { share: Some(share.to_owned()), follow: false })?;
    let Reply::Status(status) = answers.reply()? else { return Err(Failure::failed("syncd did not tell its status")) };
    let Some(found) = status.shares.into_iter().find(|share| share.role == Role::Master) else {
        return Err(Failure::failed(format!("this machine is not the master of {share}")));
    };
    // A path is escaped where it is no plain text.
    let file = status.config.filter(|file| !file.contains('\\'));
    let file = file.ok_or_else(|| Failure::failed("the daemon has no configuration file that could be changed"))?;
    // Behind a link, the file itself.
    let file = fs::canonicalize(&file).map_err(|error| Failure::failed(format!("{file}: {error}")))?;
    Ok((found.name, file))
}

fn replicas_of<'a>(document: &'a mut DocumentMut, share: &str) -> Option<&'a mut Array> {
    let table = ["shares", "share"]
        .into_iter()
        .find(|key| document.get(key).is_some_and(|shares| shares.get(share).is_some()))?;
    document.get_mut(table)?.get_mut(share)?.get_mut("replicas")?.as_array_mut()
}

/// As the daemon tells replicas apart: by every address of each.
fn position(replicas: &Array, share: &str, wanted: &Destination) -> Option<usize> {
    let is_wanted = |value: &Value| {
        let texts: Vec<_> = match value {
            Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
            one => one.as_str().into_iter().collect(),
        };
        destination::replica(&texts, share).is_ok_and(|found| destination::addresses(&found).contains(wanted))
    };
    replicas.iter().position(is_wanted)
}

fn add(replicas: &mut Array, share: &str, addresses: &[String]) -> Result<(), String> {
    let wanted = destination::replica(addresses, share)?;
    for address in destination::addresses(&wanted) {
        if position(replicas, share, &address).is_some() {
            return Err(format!("{} follows share {share} already", label(&address)));
        }
    }
    match addresses {
        [one] => replicas.push(one),
        several => replicas.push(several.iter().collect::<Array>()),
    }
    Ok(())
}

fn remove(replicas: &mut Array, share: &str, addresses: &[String]) -> Result<(), String> {
    let wanted = destination::replica(addresses, share)?;
    let at = position(replicas, share, &wanted)
        .ok_or_else(|| format!("{} does not follow share {share}: `synccli status` lists who does", label(&wanted)))?;
    replicas.remove(at);
    Ok(())
}

/// Puts text into the place of a file, whole or not at all.
fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    let meta = fs::metadata(file)?;
    let temporary = file.with_extension(format!("toml.{}", std::process::id()));
    let mut new = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let mut write = || {
        new.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777))?;
        // Only root can give it to somebody else, and then should.
        let _ = fchown(&new, Some(meta.uid()), Some(meta.gid()));
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        fs::rename(&temporary, file)?;
        fs::File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# ours\nlisten = ['0.0.0.0:1']\n\n[share.www] # the site\npath = '/var/www'\nreplicas = [\n    \
                        \"web1\", # first\n    \"web2:7373/www\",\n]\n";

    fn edited(
        change: impl FnOnce(&mut Array, &str, &[String]) -> Result<(), String>,
        addresses: &[&str],
    ) -> Result<String, String> {
        let mut document: DocumentMut = FILE.parse().unwrap();
        let addresses: Vec<_> = addresses.iter().map(|&address| address.to_owned()).collect();
        change(replicas_of(&mut document, "www").unwrap(), "www", &addresses)?;
        Ok(document.to_string())
    }

    #[test]
    fn the_rest_of_the_file_stays_as_it_is_written() {
        let added = edited(add, &["web3:99"]).unwrap();
        assert!(added.starts_with(&FILE[..FILE.find("\n]").unwrap() - 1]), "{added}");
        assert!(added.contains("web3:99") && added.contains("# the site") && added.contains("# first"), "{added}");
        let removed = edited(remove, &["web2"]).unwrap();
        assert!(removed.contains("web1") && !removed.contains("web2"), "{removed}");
        let several = edited(add, &["web3", "10.0.0.3:99"]).unwrap();
        assert!(several.contains(r#"["web3", "10.0.0.3:99"]"#), "{several}");
        let mut document: DocumentMut = several.parse().unwrap();
        let replicas = replicas_of(&mut document, "www").unwrap();
        assert!(add(replicas, "www", &["web4".to_owned(), "10.0.0.3:99".to_owned()]).is_err());
        remove(replicas, "www", &["10.0.0.3:99".to_owned()]).unwrap();
        assert_eq!(replicas.len(), 2);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(edited(add, &["web2"]).unwrap_err().contains("already"), "the same in other words");
        assert!(edited(add, &["/var/www"]).unwrap_err().contains("no replica"));
        assert!(edited(add, &["we b"]).is_err());
        assert!(edited(remove, &["web3"]).unwrap_err().contains("does not follow"));
    }
}
