//! The process that reads one document after the other for the service, so that a hostile one costs no more than
//! itself. It is the service's own program, started with [`ARGUMENT`]; tasks come on its standard input, results go
//! to its standard output, each preceded by its length.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::formats::{self, Extracted, Hint, Limits, Refusal};

/// Makes the service's program a worker.
pub const ARGUMENT: &str = "--extract-worker";

/// What a worker says first: that it runs and speaks this version of the protocol.
pub const GREETING: &[u8] = b"weir-extract-worker 1";

/// Parsers recurse; what they may recurse through is limited, and this is enough for it.
const STACK: usize = 64 << 20;

/// What comes before the bytes of a document.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub hint: Hint,
    pub limits: Limits,
}

/// What comes back.
pub(crate) type Answer = Result<Extracted, Refusal>;

/// Whether this process was started as a worker.
#[must_use]
pub fn is_wanted() -> bool {
    std::env::args_os().nth(1).is_some_and(|argument| argument == ARGUMENT)
}

/// Works until the input ends: the service closes it, or is gone.
#[must_use]
pub fn run() -> ExitCode {
    // Parsers panic on damage; what they say about it would end up in the service's log.
    std::panic::set_hook(Box::new(|_| {}));
    let worker = std::thread::Builder::new().stack_size(STACK).spawn(work);
    match worker.map(std::thread::JoinHandle::join) {
        Ok(Ok(Ok(()))) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn work() -> io::Result<()> {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    limit(Resource::Core, 0);
    write_frame(&mut output, GREETING)?;
    while let Some(header) = read_frame(&mut input)? {
        let Some(bytes) = read_frame(&mut input)? else { return Ok(()) };
        let task: Task = serde_json::from_slice(&header)?;
        limit(Resource::As, task.limits.max_memory);
        limit(Resource::Cpu, processor_seconds().saturating_add(task.limits.max_seconds).saturating_add(1));
        let answer = read(&bytes, &task);
        write_frame(&mut output, &serde_json::to_vec(&answer)?)?;
    }
    Ok(())
}

fn read(bytes: &[u8], task: &Task) -> Answer {
    let looked = formats::look(bytes, &task.hint, &task.limits)?;
    formats::extract(looked, &task.limits)
}

/// Lowers a limit of this process; one that can't be set leaves the others in force.
fn limit(resource: Resource, value: u64) {
    let maximum = getrlimit(resource).maximum;
    let current = maximum.map_or(value, |maximum| value.min(maximum));
    let _ = setrlimit(resource, Rlimit { current: Some(current), maximum });
}

/// Processor time of this process so far, rounded down. On systems without /proc it is unknown, and the limit on
/// elapsed time remains.
fn processor_seconds() -> u64 {
    const TICKS_PER_SECOND: u64 = 100; // fixed for what Linux shows to programs
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is a name in brackets, which may contain anything; user and system time are 12 and 13 after it.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks / TICKS_PER_SECOND
}

/// Writes bytes with their length before them.
pub(crate) fn write_frame(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(bytes)?;
    out.flush()
}

/// Reads bytes with their length before them; none where the input ends.
fn read_frame(input: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match input.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let length = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes)?;
    Ok(Some(bytes))
}
