//! Child processes that can't outlive the process that started them.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// A process that is told apart from a later one with the same number by when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Number of the process.
    pub pid: i32,
    /// When it began, in clock ticks since the machine booted (field 22 of /proc/PID/stat); 0 where that is unknown.
    pub started: u64,
}

impl ProcessId {
    /// The process that has this number now.
    #[must_use]
    pub fn of(pid: i32) -> Self {
        Self { pid, started: start_time(pid).unwrap_or(0) }
    }

    /// This process.
    #[must_use]
    pub fn own() -> Self {
        Self::of(i32::try_from(std::process::id()).unwrap_or(0))
    }

    /// Whether that very process still runs. A zombie does not.
    #[must_use]
    pub fn alive(self) -> bool {
        match start_time(self.pid) {
            Some(started) => started == self.started,
            // Without /proc a signal is the only question that can be asked.
            None => !Path::new("/proc/self/stat").exists() && self.send_unchecked(None).is_ok(),
        }
    }

    /// Sends a signal, if that very process still runs.
    pub fn signal(self, signal: Signal) {
        if self.alive()
            && let Err(error) = self.send_unchecked(Some(signal))
        {
            tracing::debug!(pid = self.pid, ?signal, %error, "signal was not delivered");
        }
    }

    fn send_unchecked(self, signal: Option<Signal>) -> io::Result<()> {
        let pid = Pid::from_raw(self.pid).ok_or_else(|| io::Error::other("not a process number"))?;
        Ok(signal.map_or_else(|| rustix::process::test_kill_process(pid), |signal| kill_process(pid, signal))?)
    }

    /// Asks to end, waits at most `grace`, then ends it by force. Returns when it is gone or one more second passed.
    pub fn end(self, grace: Duration) {
        self.signal(Signal::TERM);
        if !wait_until(grace, || !self.alive()) {
            self.signal(Signal::KILL);
            wait_until(Duration::from_secs(1), || !self.alive());
        }
    }
}

/// Start time of a process that is not a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in parentheses, may contain anything; what follows the last one is regular.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Polls `condition` until it holds or `limit` passed; says which.
pub(crate) fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A running child. Dropping it kills it and waits.
///
/// **Invariant:** a child ends when the process that started it ends, however that happens. On Linux the kernel
/// sees to it (`setpriv --pdeathsig KILL`); elsewhere a small shell waits at the other end of a pipe.
#[derive(Debug)]
pub struct Supervised {
    child: Child,
    id: ProcessId,
    watchdog: Option<Child>,
}

impl Supervised {
    /// Starts `program`, with output and errors appended to `log`.
    ///
    /// # Errors
    /// When the program can't be started or the log not opened.
    pub fn start(program: &Path, args: &[String], environment: &[(String, String)], log: &Path) -> io::Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let errors = out.try_clone()?;
        let setpriv = setpriv();
        let mut command = match setpriv {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.arg("--pdeathsig").arg("KILL").arg("--").arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args(args).envs(environment.iter().map(|(k, v)| (k, v)));
        // A process group of its own: Ctrl-C in the terminal reaches the supervisor, which ends children in order.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.stdin(Stdio::null()).stdout(out).stderr(errors);
        let child = spawn(command)?;
        let id = ProcessId::of(i32::try_from(child.id()).unwrap_or(0));
        let watchdog = if setpriv.is_none() { Some(watch(id)?) } else { None };
        Ok(Self { child, id, watchdog })
    }

    /// Which process it is.
    #[must_use]
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Asks it to end, waits at most `grace`, then kills it.
    pub fn stop(mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.terminate();
        while self.ended().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks it to end.
    pub fn terminate(&mut self) {
        if self.ended().is_none() {
            self.id.signal(Signal::TERM);
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // The watchdog first: it must not find another process under the number of this one.
        for child in self.watchdog.iter_mut().chain([&mut self.child]) {
            // Both fail only when the child is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `setpriv` of util-linux, where it is.
fn setpriv() -> Option<&'static Path> {
    ["/usr/bin/setpriv", "/bin/setpriv"].into_iter().map(Path::new).find(|path| path.exists())
}

/// Without `setpriv`: a shell that kills the process once the pipe from this one closes, which the kernel does
/// whenever this one ends.
fn watch(id: ProcessId) -> io::Result<Child> {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg("cat >/dev/null; kill -KILL \"$1\"").arg("weir-watchdog").arg(id.pid.to_string());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn()
}

type Request = (Command, mpsc::Sender<io::Result<Child>>);

/// The kernel's "parent died" means the *thread* that forked, so children are started by a thread that lives as long
/// as the process does.
static SPAWNER: LazyLock<mpsc::Sender<Request>> = LazyLock::new(|| {
    let (sender, requests) = mpsc::channel::<Request>();
    let thread = std::thread::Builder::new().name("weir-stack-spawner".into());
    let run = move || {
        for (mut command, reply) in requests {
            // The one who asked may have gone; then the child is dropped, and reaped by nobody but the kernel.
            let _ = reply.send(command.spawn());
        }
    };
    if let Err(error) = thread.spawn(run) {
        tracing::error!(%error, "can't start the thread that starts child processes");
    }
    sender
});

fn spawn(command: Command) -> io::Result<Child> {
    let gone = || io::Error::other("the thread that starts child processes is not there");
    let (reply, answer) = mpsc::channel();
    SPAWNER.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}
