//! What commands show while they work: a bar on a terminal, a line now and then elsewhere, nothing for scripts.

use std::fmt::Display;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Colours, on terminals only and not when `NO_COLOR` is set (no-color.org).
#[derive(Debug, Clone, Copy)]
pub struct Ink {
    on: bool,
}

impl Ink {
    /// Colours for what goes to stdout.
    #[must_use]
    pub fn for_stdout() -> Self {
        Self { on: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    fn paint(self, code: &str, text: impl Display) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// For what matters most.
    pub fn bold(self, text: impl Display) -> String {
        self.paint("1", text)
    }

    /// For what matters least.
    pub fn dim(self, text: impl Display) -> String {
        self.paint("2", text)
    }

    /// For what went well.
    pub fn green(self, text: impl Display) -> String {
        self.paint("32", text)
    }

    /// For what needs a look.
    pub fn yellow(self, text: impl Display) -> String {
        self.paint("33", text)
    }

    /// For what went wrong.
    pub fn red(self, text: impl Display) -> String {
        self.paint("31", text)
    }
}

/// Progress of a known amount of work, on stderr.
pub struct Progress {
    bar: ProgressBar,
    what: String,
    lines: bool,
    last_line: Instant,
    last_text: String,
}

impl Progress {
    /// Progress of `total` things called `what`; shows nothing when `quiet`.
    #[must_use]
    pub fn new(total: usize, what: &str, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal && !quiet { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(length(total)), target);
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {elapsed} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        bar.set_prefix(what.to_owned());
        if terminal && !quiet {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self {
            bar,
            what: what.to_owned(),
            lines: !terminal && !quiet,
            last_line: Instant::now(),
            last_text: String::new(),
        }
    }

    /// There is another number of things than was thought.
    pub fn set_total(&mut self, total: usize) {
        self.bar.set_length(length(total));
    }

    /// `done` of the things are done; `detail` says what else there is to know.
    pub fn set(&mut self, done: usize, detail: String) {
        self.bar.set_position(length(done));
        if self.lines && self.last_line.elapsed() >= LINE_EVERY {
            let text = format!("{}: {done}/{} {detail}", self.what, self.bar.length().unwrap_or_default());
            if text != self.last_text {
                eprintln!("{text}");
                self.last_text = text;
            }
            self.last_line = Instant::now();
        }
        self.bar.set_message(detail);
    }

    /// Takes the bar away.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// Something of unknown length goes on: a spinner on a terminal, one line elsewhere.
pub struct Activity {
    bar: ProgressBar,
}

impl Activity {
    /// Says what goes on.
    #[must_use]
    pub fn start(what: &str, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal && !quiet { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_message(what.to_owned());
        if terminal && !quiet {
            bar.enable_steady_tick(Duration::from_millis(120));
        } else if !quiet {
            eprintln!("{what} ...");
        }
        Self { bar }
    }

    /// Changes what is said.
    pub fn say(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A table without rules: columns that line up, on a terminal or in a file.
#[must_use]
pub fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    table
}

fn length(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// A duration for people: `850 ms`, `4.2 s`, `3 min 20 s`, `5 h 2 min`, `3 d 4 h`.
#[must_use]
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..=59 => format!("{:.1} s", duration.as_secs_f64()),
        60..=3_599 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..=86_399 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// Milliseconds since the Unix epoch, now.
#[must_use]
pub fn now_millis() -> i64 {
    weir_contracts::unix_millis(std::time::SystemTime::now())
}

/// How long ago `millis` since the Unix epoch was.
#[must_use]
pub fn age_of(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(now_millis() - millis).unwrap_or(0))
}

/// The beginning of a text on one line, at most `limit` characters.
#[must_use]
pub fn shorten(text: &str, limit: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= limit {
        return line;
    }
    let mut short: String = line.chars().take(limit.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_say_them() {
        for (millis, expected) in
            [(0, "0 ms"), (850, "850 ms"), (4_230, "4.2 s"), (200_000, "3 min 20 s"), (18_120_000, "5 h 2 min")]
        {
            assert_eq!(human(Duration::from_millis(millis)), expected);
        }
        assert_eq!(human(Duration::from_secs(3 * 86_400 + 4 * 3_600)), "3 d 4 h");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(shorten("  zwölf\n\nBoxkämpfer ", 40), "zwölf Boxkämpfer");
        assert_eq!(shorten("zwölf Boxkämpfer", 6), "zwölf…");
    }
}
