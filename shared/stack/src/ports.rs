//! Free ports, and who has those that are not.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};

use crate::StackError;

/// Below what Linux hands out to outgoing connections (32768 and up), so that a port stays free while its service
/// is restarted.
const FREE_FROM: u16 = 20_000;
const FREE_TO: u16 = 32_000;

/// `count` ports nobody listens on.
///
/// # Errors
/// When there are not that many.
pub fn free_ports(count: usize) -> Result<Vec<u16>, StackError> {
    // Held together until all are found, so that they differ.
    let mut held: Vec<(u16, TcpListener)> = Vec::with_capacity(count);
    for _ in 0..2_000 {
        if held.len() == count {
            break;
        }
        let port = rand::random_range(FREE_FROM..=FREE_TO);
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            held.push((port, listener));
        }
    }
    if held.len() < count {
        return Err(StackError::NoFreePort { from: FREE_FROM, to: FREE_TO });
    }
    Ok(held.into_iter().map(|(port, _)| port).collect())
}

/// Refuses a port that somebody listens on.
pub(crate) fn check_free(service: &str, port: u16) -> Result<(), StackError> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(()),
        Err(_) => Err(StackError::PortTaken { service: service.to_owned(), port, holder: holder(port) }),
    }
}

/// The process that listens on a port: its name and number. Nothing when the kernel does not tell this user.
fn holder(port: u16) -> Option<String> {
    let inodes: Vec<String> =
        ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().flat_map(|table| listening_inodes(table, port)).collect();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        if !process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        let has_it = descriptors.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| {
            let target = target.to_string_lossy();
            target
                .strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']'))
                .is_some_and(|inode| inodes.iter().any(|known| known == inode))
        });
        if has_it {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {})", name.trim(), process.file_name().to_string_lossy()));
        }
    }
    None
}

/// Inodes of the sockets that listen on `port`, from one of the kernel's tables.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    let text = fs::read_to_string(table).unwrap_or_default();
    let sockets = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    sockets
        .filter_map(|fields| match fields.as_slice() {
            [_, local, _, state, _, _, _, _, _, inode, ..] if *state == LISTEN && local.ends_with(&suffix) => {
                Some((*inode).to_owned())
            }
            _ => None,
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_refused_and_its_holder_named() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = check_free("Kafka", port).unwrap_err().to_string();
        assert!(error.contains(&port.to_string()) && error.contains("Kafka"), "{error}");
        if cfg!(target_os = "linux") {
            assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        }
        drop(listener);
        assert!(check_free("Kafka", port).is_ok());
    }

    #[test]
    fn free_ports_differ() {
        let mut ports = free_ports(20).unwrap();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }
}
