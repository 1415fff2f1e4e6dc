//! `synccli man`: the manual pages, made from the same definition as `--help`.

use clap::CommandFactory as _;
use clap_mangen::Man;

use crate::args::Cli;
use crate::exit::{Exit, Failure};
use crate::output::Sink;

/// Prints the page of `verb`, or the overview.
pub fn run(verb: Option<&str>, out: &Sink) -> Result<Exit, Failure> {
    let mut overview = Cli::command();
    overview.build();
    let command = match verb {
        None => overview,
        Some(verb) => overview.find_subcommand(verb).cloned().ok_or_else(|| {
            Failure::usage(format!(
                "there is no verb `{}`: see synccli --help",
                sync_core::path::escape(verb.as_bytes())
            ))
        })?,
    };
    let mut page = Vec::new();
    Man::new(command).render(&mut page).map_err(Failure::failed)?;
    out.bytes(&page);
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_push_names_its_options() {
        let out = Sink::memory();
        run(Some("push"), &out).unwrap();
        let page = out.text().replace('\\', "");
        for option in ["--exclude-from", "--max-delete", "--bwlimit", "--state-dir", "Exit codes"] {
            assert!(page.contains(option), "{option} is missing");
        }
        assert_eq!(run(Some("nope"), &out).unwrap_err().exit, Exit::Usage);
    }
}
