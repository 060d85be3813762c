//! Connections of this process to others, as the kernel lists them: how many each client's pool holds, whoever keeps
//! the pool.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use crate::metric;

/// States of a socket in /proc/net/tcp.
const ESTABLISHED: &str = "01";
const LISTENS: &str = "0A";

/// Addresses with a label of their own.
const MOST_PEERS: usize = 32;
/// The label of the rest.
const OTHER: &str = "other";

/// Addresses seen so far: what is gone shows zero.
static KNOWN: Mutex<BTreeSet<SocketAddr>> = Mutex::new(BTreeSet::new());

/// Sets the metric. What can't be read is not shown.
pub(crate) fn sample() {
    let tables: String =
        ["/proc/self/net/tcp", "/proc/self/net/tcp6"].iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    for (peer, count) in count(&mut known, outgoing(&tables, &own_sockets())) {
        metrics::gauge!(metric::CONNECTIONS, "peer" => peer).set(count);
    }
}

/// Connections by label.
fn count(known: &mut BTreeSet<SocketAddr>, peers: Vec<SocketAddr>) -> BTreeMap<String, u32> {
    let mut counts: BTreeMap<String, u32> = known.iter().map(|peer| (peer.to_string(), 0)).collect();
    if known.len() >= MOST_PEERS {
        counts.insert(OTHER.to_owned(), 0);
    }
    for peer in peers {
        let has_label = known.contains(&peer) || (known.len() < MOST_PEERS && known.insert(peer));
        let label = if has_label { peer.to_string() } else { OTHER.to_owned() };
        *counts.entry(label).or_default() += 1;
    }
    counts
}

/// Inodes of the sockets this process has open: the tables list those of the whole network namespace.
fn own_sockets() -> BTreeSet<String> {
    let files = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    files
        .filter_map(|file| {
            let target = fs::read_link(file.path()).ok()?;
            Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect()
}

struct Socket<'a> {
    local: SocketAddr,
    remote: SocketAddr,
    state: &'a str,
}

/// Where this process connected to; who connected to a port it listens on is left out.
fn outgoing(tables: &str, own: &BTreeSet<String>) -> Vec<SocketAddr> {
    let sockets: Vec<Socket<'_>> = tables.lines().filter_map(|line| socket(line, own)).collect();
    let listening: BTreeSet<u16> =
        sockets.iter().filter(|socket| socket.state == LISTENS).map(|socket| socket.local.port()).collect();
    sockets
        .iter()
        .filter(|socket| socket.state == ESTABLISHED && !listening.contains(&socket.local.port()))
        .map(|socket| socket.remote)
        .collect()
}

fn socket<'a>(line: &'a str, own: &BTreeSet<String>) -> Option<Socket<'a>> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let field = |at: usize| fields.get(at).copied();
    let (local, remote, state, inode) = (field(1)?, field(2)?, field(3)?, field(9)?);
    own.contains(inode).then_some(())?;
    Some(Socket { local: address(local)?, remote: address(remote)?, state })
}

/// `0100007F:1F90`: words of the address in the machine's byte order, the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let address = if address.len() == 8 {
        IpAddr::V4(Ipv4Addr::from(word(0)?))
    } else {
        let words = [word(0)?, word(8)?, word(16)?, word(24)?];
        let mut octets = [0; 16];
        octets.iter_mut().zip(words.iter().flatten()).for_each(|(octet, byte)| *octet = *byte);
        IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a little-endian machine writes it.
    #[cfg(target_endian = "little")]
    #[test]
    fn only_established_connections_that_this_process_opened_count() {
        let tables = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:238D 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0 0 10 0
   1: 0100007F:238D 0100007F:B736 01 00000000:00000000 00:00000000 00000000     0        0 12 1 0 20 4 1 70 146
   2: 0100007F:DB06 0100007F:2384 01 00000000:00000000 00:00000000 00000000     0        0 13 1 0 20 4 1 70 146
   3: 0100007F:DB07 0100007F:2384 01 00000000:00000000 00:00000000 00000000     0        0 99 1 0 20 4 1 70 146
   4: 0100007F:DB08 0100007F:2384 06 00000000:00000000 03:00001376 00000000     0        0 0 3 0
   5: 0000000000000000FFFF00000100007F:DB09 0000000000000000FFFF00000100007F:18BE 01 0:0 00:0 0 0 0 14 1 0 20
";
        let own = BTreeSet::from(["11", "12", "13", "14"].map(str::to_owned));
        let found: Vec<String> = outgoing(tables, &own).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.1:9092", "127.0.0.1:6334"]);
    }

    #[test]
    fn labels_are_bounded_and_what_is_gone_shows_zero() {
        let peer = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let mut known = BTreeSet::new();
        let one = |count| BTreeMap::from([("127.0.0.1:1".to_owned(), count)]);
        assert_eq!(count(&mut known, vec![peer(1), peer(1)]), one(2));
        assert_eq!(count(&mut known, vec![]), one(0));
        let many = count(&mut known, (1..=100).map(peer).collect());
        assert_eq!((many.len(), many.get(OTHER)), (MOST_PEERS + 1, Some(&68)));
        assert_eq!(count(&mut known, vec![]).get(OTHER), Some(&0));
    }
}
