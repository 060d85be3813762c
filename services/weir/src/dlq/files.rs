//! `weir dlq export` and `import`: dead letters as lines of JSON.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use color_eyre::eyre::{WrapErr, bail, ensure};
use serde_json::json;
use weir_runner::{DeadLetter, DeadLetters, Filter, Portable};

use super::act::{self, Carrying};
use super::choose::{self, Choice};
use crate::context::Context;
use crate::dead_letters;
use crate::tail;

/// Arguments of `weir dlq export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  weir dlq export --class undecodable --output bad.jsonl
  weir dlq export 4a6f21c09b3d | jq -r .value.base64 | base64 -d > record.bin")]
pub struct Export {
    #[command(flatten)]
    choice: Choice,
    /// Only those that are parked.
    #[arg(long)]
    parked: bool,
    /// Write into this file instead of standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Arguments of `weir dlq import`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  weir dlq import repaired.jsonl --dry-run
  jq -c '.value = {text: \"the right bytes\"}' bad.jsonl | weir dlq import -")]
pub struct Import {
    /// A file that `weir dlq export` has written; - for standard input.
    file: PathBuf,
    /// Also those that are not outstanding any more: they were replayed or discarded since they were exported.
    #[arg(long)]
    restore: bool,
    #[command(flatten)]
    carrying: Carrying,
}

/// Exports.
///
/// # Errors
/// When Kafka can't be read or the file can't be written.
pub async fn export(export: &Export, context: &Context) -> color_eyre::Result<ExitCode> {
    let choice = &export.choice;
    let filter = Filter { parked: export.parked.then_some(true), ..choice.filter(context) };
    let letters = dead_letters::list(context, &choice.stages()?, &filter).await?;
    choice.each_id_names_one(letters.iter())?;
    let mut out: Box<dyn Write> = match &export.output {
        Some(path) => Box::new(BufWriter::new(
            File::create(path).wrap_err_with(|| format!("{} can't be written", path.display()))?,
        )),
        None => Box::new(BufWriter::new(std::io::stdout())),
    };
    let mut written = 0usize;
    let mut by_stage: BTreeMap<String, Vec<DeadLetter>> = BTreeMap::new();
    for letter in letters {
        by_stage.entry(letter.stage.to_string()).or_default().push(letter);
    }
    for (stage, letters) in by_stage {
        let mut whole = DeadLetters::of(&context.kafka, &stage).read(letters);
        while let Some(letter) = whole.recv().await {
            serde_json::to_writer(&mut out, &Portable::of(&letter?)?)?;
            out.write_all(b"\n")?;
            written += 1;
        }
    }
    out.flush()?;
    match (&export.output, context.json) {
        (Some(path), true) => println!("{}", json!({ "exported": written, "file": path })),
        (Some(path), false) => println!("{written} exported into {}", path.display()),
        // Standard output is the export.
        (None, _) => eprintln!("{written} exported"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Imports.
///
/// # Errors
/// When a line is no dead letter (then nothing is imported), or Kafka does not take them.
pub async fn import(import: &Import, context: &Context) -> color_eyre::Result<ExitCode> {
    let input: Box<dyn BufRead> = match import.file.as_path() {
        path if path == Path::new("-") => Box::new(BufReader::new(std::io::stdin())),
        path => {
            Box::new(BufReader::new(File::open(path).wrap_err_with(|| format!("{} can't be read", path.display()))?))
        }
    };
    let mut plans = Vec::new();
    for (stage, letters) in parse(input)? {
        let all = DeadLetters::of(&context.kafka, &stage);
        plans.push(tail::settled(|| all.plan_import(letters.clone(), import.restore)).await?);
    }
    act::carry_out(plans, &import.carrying, "imported", context).await
}

fn parse(input: impl BufRead) -> color_eyre::Result<BTreeMap<String, Vec<Portable>>> {
    let stages = choose::stages();
    let mut by_stage: BTreeMap<String, Vec<Portable>> = BTreeMap::new();
    for (n, line) in input.lines().enumerate() {
        let line = line.wrap_err_with(|| format!("line {} can't be read", n + 1))?;
        if line.trim().is_empty() {
            continue;
        }
        let portable: Portable = serde_json::from_str(&line)
            .wrap_err_with(|| format!("line {} is no exported dead letter; nothing was imported", n + 1))?;
        ensure!(
            stages.contains(&portable.stage),
            "line {}: there is no stage {}; stages are {}",
            n + 1,
            portable.stage,
            stages.join(", ")
        );
        by_stage.entry(portable.stage.clone()).or_default().push(portable);
    }
    if by_stage.is_empty() {
        bail!("there are no dead letters in it");
    }
    Ok(by_stage)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;

    const LINE: &str = r#"{"stage":"chunk","id":"4a","lane":0,"headers":[],"value":{"base64":"/wA="}}"#;

    #[test]
    fn lines_are_sorted_by_stage_and_a_bad_one_is_named() {
        let text = format!("{LINE}\n\n{}\n{LINE}\n", LINE.replace("chunk", "index"));
        let parsed = parse(text.as_bytes()).unwrap();
        assert_eq!(parsed.values().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        for (bad, said) in [("{}", "line 2"), (&*LINE.replace("chunk", "cook"), "no stage cook")] {
            let Err(error) = parse(format!("{LINE}\n{bad}\n").as_bytes()) else { panic!("{bad} was taken") };
            assert!(error.to_string().contains(said), "{error}");
        }
        assert!(parse("\n".as_bytes()).is_err());
    }
}
