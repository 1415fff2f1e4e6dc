//! `syncd`: the daemon that holds replicas. This file only joins: arguments and configuration in, one verb, an exit
//! code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    sync_core::roles::memory::return_what_is_freed();
    let argv: Vec<_> = std::env::args_os().collect();
    syncd::main(&argv).into()
}
