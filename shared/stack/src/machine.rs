//! Whether this machine can run the stack: Java, memory, disk.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{StackConfig, StackError};

const OLDEST_JAVA: u32 = 17;
/// Beside its heap a broker takes metaspace, threads and buffers.
const BROKER_OVERHEAD_MIB: u64 = 150;
const REGISTRY_MIB: u64 = 350;
const QDRANT_MIB: u64 = 100;
/// An empty broker preallocates indexes; the rest is room for a few documents.
const DISK_MIB: u64 = 1_024;
/// What the first start downloads and unpacks.
pub(crate) const DOWNLOAD_MIB: u64 = 400;

/// Finds Java and checks its version.
pub(crate) fn java() -> Result<PathBuf, StackError> {
    let home = std::env::var_os("JAVA_HOME").filter(|home| !home.is_empty());
    let program = home.map_or_else(|| PathBuf::from("java"), |home| Path::new(&home).join("bin/java"));
    let shown = program.display().to_string();
    let looked = if program.is_absolute() { format!("JAVA_HOME says {shown}") } else { "PATH has no java".to_owned() };
    let output = Command::new(&program).arg("-version").output().map_err(|_| StackError::JavaMissing { looked })?;
    let banner = String::from_utf8_lossy(&output.stderr).into_owned();
    match major_version(&banner) {
        // A version that can't be read is not worth refusing: Kafka will say what it misses.
        Some(found) if found < OLDEST_JAVA => Err(StackError::JavaTooOld { program: shown, found }),
        _ => Ok(program),
    }
}

/// 17 of `openjdk version "17.0.15"`, 8 of `java version "1.8.0_202"`.
fn major_version(banner: &str) -> Option<u32> {
    let (_, quoted) = banner.split_once("version \"")?;
    let mut numbers = quoted.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match numbers.next()?.ok()? {
        1 => numbers.next()?.ok(),
        major => Some(major),
    }
}

/// Refuses when the machine has too little memory for the stack.
pub(crate) fn check_memory(config: &StackConfig) -> Result<(), StackError> {
    let needed_mib = needed_memory_mib(config);
    match available_memory_mib() {
        Some(available_mib) if available_mib < needed_mib => {
            Err(StackError::TooLittleMemory { available_mib, needed_mib })
        }
        _ => Ok(()),
    }
}

fn needed_memory_mib(config: &StackConfig) -> u64 {
    let broker = u64::from(config.broker_heap_mib) + BROKER_OVERHEAD_MIB;
    [(config.kafka, broker * u64::from(config.brokers)), (config.registry, REGISTRY_MIB), (config.qdrant, QDRANT_MIB)]
        .into_iter()
        .filter_map(|(wanted, mib)| wanted.then_some(mib))
        .sum()
}

/// What the kernel would give to new programs without swapping, and the container's limit if that is nearer.
fn available_memory_mib() -> Option<u64> {
    let machine = available_in(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    let file = |name: &str| std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(name)).ok();
    let container = || available_in_container(&file("memory.max")?, &file("memory.current")?, &file("memory.stat")?);
    Some(container().map_or(machine, |container| container.min(machine)))
}

/// What a container may still take: the files it has read count as used, and the kernel gives them up at once.
fn available_in_container(limit: &str, used: &str, stat: &str) -> Option<u64> {
    let (limit, used): (u64, u64) = (limit.trim().parse().ok()?, used.trim().parse().ok()?);
    let of = |key: &str| stat.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok()).unwrap_or(0);
    let files = of("inactive_file ").saturating_add(of("active_file "));
    Some(limit.saturating_sub(used.saturating_sub(files)) >> 20)
}

fn available_in(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib >> 10)
}

/// Refuses when the disk under `path` has less room than the stack needs.
pub(crate) fn check_disk(path: &Path) -> Result<(), StackError> {
    check_room(path, DISK_MIB)
}

/// Refuses when the disk under `path` has less than `needed_mib`.
pub(crate) fn check_room(path: &Path, needed_mib: u64) -> Result<(), StackError> {
    let stat = rustix::fs::statvfs(path)
        .map_err(|error| StackError::io(format!("see how full {} is", path.display()))(error.into()))?;
    let available_mib = stat.f_bavail.saturating_mul(stat.f_frsize) >> 20;
    if available_mib < needed_mib {
        return Err(StackError::TooLittleDisk { path: path.to_path_buf(), available_mib, needed_mib });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_every_age_are_read() {
        assert_eq!(major_version("openjdk version \"17.0.15\" 2025-04-15"), Some(17));
        assert_eq!(major_version("java version \"1.8.0_202\""), Some(8));
        assert_eq!(major_version("openjdk version \"21\" 2023-09-19"), Some(21));
        assert_eq!(major_version("no such thing"), None);
    }

    #[test]
    fn a_stack_larger_than_the_machine_is_refused_with_both_numbers() {
        let config = StackConfig { broker_heap_mib: 1 << 30, ..StackConfig::local(".") };
        let needed = ((1 << 30) + BROKER_OVERHEAD_MIB + REGISTRY_MIB + QDRANT_MIB).to_string();
        let error = check_memory(&config).map_err(|error| error.to_string());
        assert!(matches!(&error, Err(text) if text.contains(&needed) && text.contains("fewer brokers")), "{error:?}");
        assert!(check_memory(&StackConfig { broker_heap_mib: 1, ..StackConfig::for_test(".") }).is_ok());
    }

    #[test]
    fn a_full_disk_is_refused() {
        assert!(matches!(check_room(Path::new("/"), u64::MAX), Err(StackError::TooLittleDisk { .. })));
        assert!(check_room(Path::new("/"), 0).is_ok());
    }

    #[test]
    fn available_memory_is_read() {
        assert_eq!(available_in("MemTotal: 8 kB\nMemAvailable:   2048000 kB\n"), Some(2_000));
    }

    #[test]
    fn files_that_a_container_has_read_leave_room() {
        let (limit, used) = ("1048576000\n", "943718400\n");
        let stat = "anon 1\ninactive_file 524288000\nactive_file 104857600\n";
        assert_eq!(available_in_container(limit, used, stat), Some(700));
        assert_eq!(available_in_container(limit, used, ""), Some(100));
        assert_eq!(available_in_container("max\n", used, stat), None, "there is no limit");
    }
}
