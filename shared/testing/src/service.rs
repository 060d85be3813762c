//! Programs under test as processes that can be killed and frozen.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use weir_stack::Supervised;

/// A program under test. It ends with the test.
pub struct Process {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    running: Option<Supervised>,
}

impl Process {
    /// Starts a program; its output goes to `log`, which is kept when a test fails.
    pub fn start(program: &Path, arguments: &[String], environment: &[(String, String)], log: &Path) -> Self {
        let mut process = Self {
            program: program.to_path_buf(),
            arguments: arguments.to_vec(),
            environment: environment.to_vec(),
            log: log.to_path_buf(),
            running: None,
        };
        process.restart();
        process
    }

    /// Starts it again, after killing it if it runs.
    pub fn restart(&mut self) {
        self.kill();
        let started = Supervised::start(&self.program, &self.arguments, &self.environment, &self.log);
        self.running = Some(started.unwrap_or_else(|error| panic!("{}: {error}", self.program.display())));
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        drop(self.running.take());
    }

    /// SIGSTOP: it holds its connections and does nothing.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// SIGTERM, and how it ended, if within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Option<std::process::ExitStatus> {
        let mut running = self.running.take()?;
        running.terminate();
        let deadline = std::time::Instant::now() + limit;
        while std::time::Instant::now() < deadline {
            if let Some(status) = running.ended() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.running.as_mut()?.ended()
    }

    /// The most memory it ever held, bytes (VmHWM of /proc/PID/status); nothing where that is unknown.
    pub fn peak_memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.running.as_ref()?.id().pid)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
    }

    /// What it wrote.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        if let Some(running) = &self.running {
            running.id().signal(signal);
        }
    }
}
