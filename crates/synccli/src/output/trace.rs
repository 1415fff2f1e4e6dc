//! `-v`: what the library logs, on standard error.

use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;

/// Starts logging. Without `-v` only errors show: what a user must know comes through the monitor.
pub fn start(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::ERROR,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // A closed standard error must not end the process.
        .log_internal_errors(false)
        .finish();
    // Only a second start could fail, and there is none.
    let _ = tracing::subscriber::set_global_default(subscriber);
}
