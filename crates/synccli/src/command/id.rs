//! `synccli id`: who this master is.

use std::path::Path;

use sync_core::roles::pairing;

use crate::exit::{Exit, Failure};
use crate::output::Sink;

/// Prints the identity; it is made if there is none yet.
pub fn run(state_dir: &Path, out: &Sink) -> Result<Exit, Failure> {
    let id = pairing::id(state_dir).map_err(Failure::failed)?;
    out.line(&id.to_string());
    Ok(Exit::Done)
}
