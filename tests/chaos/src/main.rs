//! Breaks a running pipeline on purpose and looks whether it kept its word.

mod avro;
mod chaos;
mod check;
mod control;
mod drain;
mod evidence;
mod fault;
mod feed;
mod fleet;
mod inject;
mod kafka;
mod model;
mod options;
mod points;
mod replay;
mod report;
mod stop;
mod store;
mod watch;
mod workload;
mod world;

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use color_eyre::eyre::WrapErr;

use crate::options::Options;
use crate::stop::{Interrupted, Stop};

/// As shells say it of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> color_eyre::Result<ExitCode> {
    color_eyre::install()?;
    // The probe of the registry wants to know one, though nothing here speaks TLS; a second installation is harmless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let options = Options::parse();
    let stop = Stop::on_signals()?;
    match run(&options, &stop).await {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("\n{error}");
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(error),
    }
}

/// Whether everything is as it must be.
async fn run(options: &Options, stop: &Stop) -> color_eyre::Result<bool> {
    if let Some(name) = &options.control {
        return control::run(name, stop).await;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let settings = options.settings(now);
    println!("seed {}", settings.seed);
    let (report, mut world) = chaos::run(settings, stop).await?;
    report.print();
    if let Some(path) = &options.out {
        let text = serde_json::to_string_pretty(&report.json())?;
        std::fs::write(path, text).wrap_err_with(|| path.display().to_string())?;
    }
    if options.keep || !report.is_green() {
        chaos::leave(&world.keep());
    }
    Ok(report.is_green())
}
