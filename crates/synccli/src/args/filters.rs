//! `--exclude`, `--include` and `--exclude-from`: one list of rules, in the order of the command line, because the last
//! match wins across all three.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use sync_core::filter::{FilterError, MAX_PATTERN, Rule};
use sync_core::path::escape;

use crate::exit::Failure;

/// One of the three options, with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// `--exclude`.
    Exclude(String),
    /// `--include`.
    Include(String),
    /// `--exclude-from`.
    From(PathBuf),
}

/// The filters of a parsed command line, by where each stood on it.
pub fn in_order(matches: &ArgMatches) -> Vec<Filter> {
    let mut found = Vec::new();
    gather(matches, "exclude", &mut found, |pattern: &String| Filter::Exclude(pattern.clone()));
    gather(matches, "include", &mut found, |pattern: &String| Filter::Include(pattern.clone()));
    gather(matches, "exclude_from", &mut found, |file: &PathBuf| Filter::From(file.clone()));
    found.sort_by_key(|(place, _)| *place);
    found.into_iter().map(|(_, filter)| filter).collect()
}

fn gather<T: Clone + Send + Sync + 'static>(
    matches: &ArgMatches,
    id: &str,
    found: &mut Vec<(usize, Filter)>,
    filter: impl Fn(&T) -> Filter,
) {
    let places = matches.indices_of(id).into_iter().flatten();
    let values = matches.get_many::<T>(id).into_iter().flatten();
    found.extend(places.zip(values.map(filter)));
}

/// Turns filters into rules, reading the files they name with `read`.
///
/// # Errors
/// A usage failure that names the file, and the line if there is one.
pub fn rules(filters: &[Filter], read: impl Fn(&Path) -> std::io::Result<Vec<u8>>) -> Result<Vec<Rule>, Failure> {
    let mut rules = Vec::new();
    for filter in filters {
        match filter {
            Filter::Exclude(pattern) => rules.push(Rule { pattern: pattern.clone() }),
            Filter::Include(pattern) => rules.push(Rule { pattern: format!("!{pattern}") }),
            Filter::From(file) => {
                let name = escape(file.as_os_str().as_bytes());
                let bytes = read(file)
                    .map_err(|error| Failure::usage(format!("--exclude-from {name}: cannot read: {error}")))?;
                rules.extend(lines(&bytes).map_err(|(line, reason)| {
                    Failure::usage(format!("--exclude-from {name}: line {line}: {reason}"))
                })?);
            }
        }
    }
    Ok(rules)
}

/// The patterns of a file, or the number of the line that is none, and why.
fn lines(bytes: &[u8]) -> Result<Vec<Rule>, (usize, String)> {
    // Editors on other systems leave a byte order mark and carriage returns; git skips them, too.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut rules = Vec::new();
    for (number, line) in bytes.split(|&b| b == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let pattern = std::str::from_utf8(line).map_err(|_| (number + 1, "not UTF-8; a pattern must be".to_owned()))?;
        if !pattern.trim().is_empty() && !pattern.starts_with('#') {
            let rule = Rule { pattern: pattern.to_owned() };
            if let Err(error) = sync_core::filter::Filter::new(std::slice::from_ref(&rule)) {
                let reason = match error {
                    FilterError::Pattern { pattern, reason, .. } => format!("`{pattern}`: {reason}"),
                    FilterError::TooLong(_) => format!("longer than {MAX_PATTERN} bytes"),
                    other => other.to_string(),
                };
                return Err((number + 1, reason));
            }
            rules.push(rule);
        }
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_file_takes_its_place_in_the_list() {
        let filters = [Filter::Exclude("*.o".into()), Filter::From("f".into()), Filter::Include("keep.o".into())];
        let read = |_: &Path| Ok(b"\xef\xbb\xbf# comment\n\n  \t\n/build\r\n!x\n\\#kept\n #kept too".to_vec());
        let rules: Vec<_> = rules(&filters, read).unwrap().into_iter().map(|rule| rule.pattern).collect();
        assert_eq!(rules, ["*.o", "/build", "!x", "\\#kept", " #kept too", "!keep.o"]);
    }

    #[test]
    fn a_bad_file_is_named_with_its_line() {
        let filters = [Filter::From("evil\u{1b}".into())];
        let failure = rules(&filters, |_| Ok(b"fine\nb\xffd\n".to_vec())).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert_eq!(failure.message, "--exclude-from evil\\x1b: line 2: not UTF-8; a pattern must be");
        let failure = rules(&filters, |_| Ok(b"fine\n\n# [\n[bad\n".to_vec())).unwrap_err();
        assert!(failure.message.starts_with("--exclude-from evil\\x1b: line 4: `[bad`: "), "{}", failure.message);
        let failure = rules(&filters, |_| Err(io::Error::from(io::ErrorKind::NotFound))).unwrap_err();
        assert!(failure.message.starts_with("--exclude-from evil\\x1b: cannot read: "), "{}", failure.message);
    }
}
