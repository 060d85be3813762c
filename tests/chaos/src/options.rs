//! What is asked for on the command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::fault::Bounds;

const HELP: &str = "\
The seed decides what is asked of the pipeline, which faults it meets and in what order; when exactly they hit depends on
the machine. The exit status is 1 when something is not as it must be; then the folder with all logs is kept.

Examples:
  weir-chaos --minutes 30 --seed 7 --out chaos.json
  weir-chaos --short
  weir-chaos --control revision-fencing    succeeds when the harness notices that fencing is switched off
  weir-chaos --control all";

/// Breaks a running pipeline on purpose and looks whether it kept its word.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "weir-chaos", after_help = HELP)]
pub struct Options {
    /// What everything is drawn from; a number of the moment when none is given, and printed.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Minutes during which things break. Starting, draining and checking take a few more.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub minutes: u64,
    /// The run of `make test`: two minutes of short faults.
    #[arg(long, conflicts_with = "minutes")]
    pub short: bool,
    /// Requests; as many as are drawn by default: 20,000 or 60 a second, 5,000 in a short run.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub requests: Option<u64>,
    /// Write the results there as JSON, too.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Switch this mechanism off in a small scenario that needs it, and succeed when that is noticed; `all` for one
    /// after another, and the scenarios with everything switched on.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["minutes", "short", "requests"])]
    pub control: Option<String>,
    /// Keep the folder with logs and data in any case.
    #[arg(long)]
    pub keep: bool,
}

/// What a run is made of.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Seed.
    pub seed: u64,
    /// Requests.
    pub requests: usize,
    /// How long requests come and things break.
    pub window: Duration,
    /// Bounds of faults.
    pub bounds: Bounds,
    /// How long everything may take to be done afterwards.
    pub draining: Duration,
}

/// Seconds of a short run during which things break.
const SHORT: u64 = 110;
const SHORT_REQUESTS: u64 = 5_000;
const LEAST_REQUESTS: u64 = 20_000;
/// Requests a second of a long run.
const RATE: u64 = 60;

impl Options {
    /// The run that is asked for; `now` stands in for a seed.
    #[must_use]
    pub fn settings(&self, now: u64) -> Settings {
        let seconds = if self.short { SHORT } else { self.minutes * 60 };
        let usual = if self.short { SHORT_REQUESTS } else { LEAST_REQUESTS.max(seconds * RATE) };
        let bounds = if self.short {
            Bounds { down: (0.5, 4.0), pause: (0.3, 1.5) }
        } else {
            Bounds { down: (1.0, 30.0), pause: (0.5, 4.0) }
        };
        Settings {
            seed: self.seed.unwrap_or(now % 1_000_000),
            requests: usize::try_from(self.requests.unwrap_or(usual)).unwrap_or(usize::MAX),
            window: Duration::from_secs(seconds),
            bounds,
            draining: Duration::from_secs(if self.short { 150 } else { 600 }),
        }
    }
}
