//! How the program ends: what is printed for an error, and which code scripts see.
//!
//! 0: done. 1: not done, or a check found something. 2: the command line is wrong (clap).

use std::io::IsTerminal;
use std::process::ExitCode;

use color_eyre::config::HookBuilder;
use tracing_subscriber::EnvFilter;

/// A check ran and found something (`topics diff`, `schemas check`, `doctor`).
pub const FOUND: u8 = 1;

/// Sets up how errors look and where logs go: errors for a person, without backtraces; logs to stderr, from
/// warnings up, unless `RUST_LOG` says otherwise.
///
/// # Errors
/// When called twice.
pub fn install() -> color_eyre::Result<()> {
    HookBuilder::default().display_env_section(false).install()?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}

/// Prints the error, if there is one, and picks the exit code. With `--json` an error is an object on stderr.
pub fn report(json: bool, result: color_eyre::Result<ExitCode>) -> ExitCode {
    let error = match result {
        Ok(code) => return code,
        Err(error) => error,
    };
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    if json {
        eprintln!("{}", serde_json::json!({ "error": causes.first(), "causes": causes.get(1..).unwrap_or_default() }));
    } else {
        for (depth, cause) in causes.iter().enumerate() {
            let lead = if depth == 0 { "error: " } else { "  because: " };
            eprintln!("{lead}{cause}");
        }
    }
    ExitCode::from(FOUND)
}
