//! How the program ends: what is printed for an error, and which code scripts see.
//!
//! 0: done. 1: not done, or a check found something. 2: the command line is wrong (clap).

use std::io::IsTerminal;
use std::process::ExitCode;

use color_eyre::config::HookBuilder;
use color_eyre::eyre::Report;
use tracing_subscriber::EnvFilter;
use weir_runner::{DeadLetterError, JobsError, LagError, ReadError};
use weir_stack::ClusterError;

use crate::context::Context;

/// A check ran and found something (`topics diff`, `schemas check`, `doctor`).
pub const FOUND: u8 = 1;

/// What is logged unless `RUST_LOG` says otherwise. Kafka's client says of each failed call why; what it says beside
/// that (the end of a partition, a connection that is tried again) is for developers.
const LOGS: &str = "warn,rdkafka=off,librdkafka=off";

/// As a shell reports a program that SIGPIPE ended.
const BROKEN_PIPE: i32 = 141;

/// Sets up how errors look and where logs go: errors for a person, without backtraces; logs to stderr, from
/// warnings up, unless `RUST_LOG` says otherwise.
///
/// # Errors
/// When called twice.
pub fn install() -> color_eyre::Result<()> {
    HookBuilder::default().display_env_section(false).install()?;
    end_quietly_when_nobody_reads();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGS));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}

/// `weir lag | head`: whoever read has seen enough. For `println!` that is a panic.
fn end_quietly_when_nobody_reads() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str().is_some_and(|text| text.starts_with("failed printing to stdout")) {
            std::process::exit(BROKEN_PIPE);
        }
        report(panic);
    }));
}

/// What to do, when it was the servers.
pub fn explain(error: Report, context: &Context) -> Report {
    if !error.chain().any(is_of_servers) || weir_stack::running(&context.data).is_some() {
        return error;
    }
    if context.external.kafka {
        return error.wrap_err("this did not work on the servers that were named; `weir doctor` says what to fix");
    }
    error.wrap_err(format!(
        "nothing runs in {}: `weir up` starts everything there; --kafka, --registry and --qdrant name servers elsewhere",
        context.data.display()
    ))
}

/// Whether a server did not do what it was asked.
fn is_of_servers(cause: &(dyn std::error::Error + 'static)) -> bool {
    let dead_letters = cause.downcast_ref::<DeadLetterError>();
    let jobs = cause.downcast_ref::<JobsError>();
    cause.is::<ReadError>()
        || cause.is::<LagError>()
        || cause.is::<ClusterError>()
        || matches!(dead_letters, Some(DeadLetterError::Read { .. } | DeadLetterError::Kafka { .. }))
        || matches!(jobs, Some(JobsError::Read { .. } | JobsError::Kafka { .. }))
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
