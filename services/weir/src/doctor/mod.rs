//! `weir doctor`: looks at everything Weir needs and says what to fix.

mod finding;
mod kafka;
mod rights;
mod servers;

use std::process::ExitCode;

use serde_json::json;

use self::finding::{Finding, Level};
use crate::context::Context;
use crate::exit::FOUND;
use crate::progress::{Activity, Ink};

const EXAMPLES: &str = "\
Examples:
  weir doctor
  weir doctor --json | jq '.findings[] | select(.level == \"fail\")'
  weir doctor --kafka broker:9093 -X security.protocol=SASL_SSL -X sasl.mechanism=PLAIN \\
              -X sasl.username=me -X sasl.password=secret -X ssl.ca.location=ca.pem

The rights are tried, not read: it asks whether a topic could be created, reads a group's offsets, and begins and
aborts a transaction in <prefix>answer-tokens. Nothing a reader of committed records sees is left behind.
Exit code 0: nothing fails (warnings may be there). 1: something fails.";

/// Arguments of `weir doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

/// Runs the subcommand.
///
/// # Errors
/// When the configuration is not valid; what is wrong with servers is a finding.
pub async fn run(_: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    let activity = Activity::start("looking at Kafka, registry, Qdrant and model", context.json);
    let runner = context.section("runner")?;
    let (kafka, registry, qdrant, model) = tokio::join!(
        kafka::check(context, &runner),
        servers::registry(context),
        servers::qdrant(context),
        servers::model(context)
    );
    drop(activity);
    let findings: Vec<Finding> = [kafka, registry, qdrant, model].concat();
    let fails = findings.iter().any(|finding| finding.level == Level::Fail);
    if context.json {
        println!("{}", json!({ "ok": !fails, "findings": findings }));
    } else {
        print(&findings);
    }
    Ok(if fails { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
}

fn print(findings: &[Finding]) {
    let ink = Ink::for_stdout();
    for Finding { area, check, level, says, fix } in findings {
        let mark = match level {
            Level::Ok => ink.green("ok  "),
            Level::Warn => ink.yellow("warn"),
            Level::Fail => ink.red("FAIL"),
        };
        println!("{mark} {area:<8} {check:<14} {says}");
        if let Some(fix) = fix {
            println!("{:29}-> {fix}", "");
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    println!("\n{} ok, {} to know, {} to fix", count(Level::Ok), count(Level::Warn), count(Level::Fail));
}
