//! What people who know rsync type, and what to type here instead.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Answers an option of rsync with what does the same, in place of clap's guess that it might be a value.
pub fn advise(mut refusal: clap::Error) -> clap::Error {
    if refusal.kind() != ErrorKind::UnknownArgument {
        return refusal;
    }
    let typed = match refusal.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(typed)) => typed.as_str(),
        _ => return refusal,
    };
    if let Some(advice) = instead(typed) {
        refusal.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![advice.into()]));
    }
    refusal
}

fn instead(option: &str) -> Option<&'static str> {
    Some(match option {
        "-a" | "--archive" | "-r" | "--recursive" | "-l" | "--links" | "-p" | "--perms" | "-t" | "--times" | "-g"
        | "--group" | "-o" | "--owner" | "-D" | "-H" | "--hard-links" | "-A" | "--acls" | "-X" | "--xattrs" | "-S"
        | "--sparse" => "a push always makes DEST identical, with all that this option keeps: leave it out",
        "-z" => "--compress=zstd compresses; beyond this machine that is done anyway where it pays",
        "-P" | "--partial" => "--progress shows it; what an interrupted push sent is always kept for the next",
        "-u" | "--update" => "DEST becomes what SRC is, whichever is newer: leave it out, and see --dry-run first",
        "-e" | "--rsh" => "no ssh is needed: DEST is HOST[:PORT]/SHARE, which a syncd there serves",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    #[test]
    fn options_of_rsync_are_answered_with_what_does_the_same() {
        for (typed, advice) in [
            ("-a", "leave it out"),
            ("-avz", "leave it out"),
            ("-z", "--compress=zstd"),
            ("-P", "--progress"),
            ("--rsh=ssh", "HOST[:PORT]/SHARE"),
        ] {
            let argv = ["synccli", "push", typed, "src", "./dst"].map(Into::into);
            let refusal = parse(&argv).unwrap_err().to_string();
            assert!(refusal.contains(advice) && !refusal.contains("-- "), "{typed}: {refusal}");
        }
        // Of what is nobody's option nothing is said.
        let refusal = parse(&["synccli", "push", "--nobodys", "src", "./dst"].map(Into::into)).unwrap_err().to_string();
        assert!(!refusal.contains("leave it out"), "{refusal}");
    }
}
