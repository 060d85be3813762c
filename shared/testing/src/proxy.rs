//! A TCP proxy before a broker that loses the end of transactions, refuses records, and does not know coordinators.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Numbers of requests in Kafka's protocol.
const PRODUCE: i16 = 0;
const FIND_COORDINATOR: i16 = 10;
const INIT_PRODUCER_ID: i16 = 22;
const END_TXN: i16 = 26;

/// What gets lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swallow {
    /// The request to end the transaction: the broker never hears of it.
    Request,
    /// The answer: the broker has committed, the client never hears of it.
    Response,
}

/// Kafka's error code of a broker that is asked for a partition it does not lead (yet).
const NOT_LEADER: i16 = 6;
/// Kafka's error code of a broker that is asked for a coordinator while there is none.
const COORDINATOR_NOT_AVAILABLE: i16 = 15;
/// How long the client gets to send another request before its refused one is answered.
const PIPELINED: Duration = Duration::from_secs(1);

/// Forwards everything between clients and a broker, until it is told to lose ends of transactions (it stops when a
/// producer starts over), to refuse a record, or not to know a coordinator.
pub struct BrokerProxy {
    port: u16,
    state: Arc<State>,
}

struct State {
    broker: Mutex<String>,
    swallow: Mutex<Option<Swallow>>,
    swallowed: AtomicU32,
    started_over: AtomicBool,
    refuse: Mutex<Option<(String, i32)>>,
    lookups: AtomicU32,
}

impl BrokerProxy {
    /// Listens on a free port.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(State {
            broker: Mutex::default(),
            swallow: Mutex::new(None),
            swallowed: AtomicU32::new(0),
            started_over: AtomicBool::new(false),
            refuse: Mutex::default(),
            lookups: AtomicU32::new(0),
        });
        let accepting = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = Arc::clone(&accepting);
                std::thread::spawn(move || connect(client, &state));
            }
        });
        Self { port, state }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The broker's own address.
    pub fn forward_to(&self, broker: &str) {
        *self.state.broker.lock().expect("no panic") = broker.to_owned();
    }

    /// Loses every end of a transaction from now on, until a producer starts over.
    pub fn swallow(&self, what: Swallow) {
        self.state.started_over.store(false, Ordering::SeqCst);
        *self.state.swallow.lock().expect("no panic") = Some(what);
    }

    /// Answers the next request to produce to a partition as a broker does that does not lead it yet; but only once the
    /// client has sent its next request too, if it does.
    pub fn refuse(&self, topic: &str, partition: i32) {
        *self.state.refuse.lock().expect("no panic") = Some((topic.to_owned(), partition));
    }

    /// Whether a request is still to be refused.
    pub fn will_refuse(&self) -> bool {
        self.state.refuse.lock().expect("no panic").is_some()
    }

    /// Answers the next lookups of a group's coordinator as a broker does while there is none.
    pub fn hide_coordinator(&self, lookups: u32) {
        self.state.lookups.store(lookups, Ordering::SeqCst);
    }

    /// Whether a lookup is still to be answered so.
    pub fn hides_coordinator(&self) -> bool {
        self.state.lookups.load(Ordering::SeqCst) > 0
    }

    /// How many were lost.
    pub fn swallowed(&self) -> u32 {
        self.state.swallowed.load(Ordering::SeqCst)
    }

    /// Whether a producer has started over since.
    pub fn started_over(&self) -> bool {
        self.state.started_over.load(Ordering::SeqCst)
    }
}

impl State {
    /// Whether the coordinator is hidden from one more lookup.
    fn hide_coordinator(&self) -> bool {
        self.lookups.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }
}

fn connect(client: TcpStream, state: &Arc<State>) {
    let address = state.broker.lock().expect("no panic").clone();
    let Ok(broker) = TcpStream::connect(address) else { return };
    let lost: Arc<Mutex<HashSet<i32>>> = Arc::default();
    let (Ok(client_out), Ok(broker_out)) = (client.try_clone(), broker.try_clone()) else { return };
    let answers = {
        let (state, lost) = (Arc::clone(state), Arc::clone(&lost));
        std::thread::spawn(move || forward_answers(broker_out, client_out, &state, &lost))
    };
    forward_requests(client, broker, state, &lost);
    let _ = answers.join();
}

fn frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).ok()?];
    stream.read_exact(&mut frame).ok()?;
    Some(frame)
}

fn pass_on(stream: &mut TcpStream, frame: &[u8]) -> Option<()> {
    stream.write_all(&u32::try_from(frame.len()).ok()?.to_be_bytes()).ok()?;
    stream.write_all(frame).ok()
}

fn forward_requests(mut client: TcpStream, mut broker: TcpStream, state: &State, lost: &Mutex<HashSet<i32>>) {
    while let Some(request) = frame(&mut client) {
        let (Some(key), Some(correlation)) = (request.first_chunk::<2>(), request.get(4..8)) else { break };
        let key = i16::from_be_bytes(*key);
        let correlation = i32::from_be_bytes(correlation.try_into().expect("four bytes"));
        if key == INIT_PRODUCER_ID && state.swallow.lock().expect("no panic").take().is_some() {
            state.started_over.store(true, Ordering::SeqCst);
        }
        if key == PRODUCE
            && state.refuse.lock().expect("no panic").take_if(|wanted| target(&request) == *wanted).is_some()
        {
            wait_for_another(&client);
            if pass_on(&mut client, &refusal(&request)).is_none() {
                break;
            }
            continue;
        }
        if key == FIND_COORDINATOR && is_of_group(&request) && state.hide_coordinator() {
            if pass_on(&mut client, &no_coordinator(&request)).is_none() {
                break;
            }
            continue;
        }
        if key == END_TXN {
            match *state.swallow.lock().expect("no panic") {
                Some(Swallow::Request) => {
                    state.swallowed.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                Some(Swallow::Response) => {
                    lost.lock().expect("no panic").insert(correlation);
                }
                None => {}
            }
        }
        if pass_on(&mut broker, &request).is_none() {
            break;
        }
    }
    let _ = broker.shutdown(Shutdown::Both);
    let _ = client.shutdown(Shutdown::Both);
}

fn wait_for_another(client: &TcpStream) {
    client.set_read_timeout(Some(PIPELINED)).expect("a timeout");
    let _ = client.peek(&mut [0]);
    client.set_read_timeout(None).expect("no timeout");
}

/// Version 10 of requests to produce, with lengths that are sent increased by one.
const NO_TAGS: u8 = 0;
const ONE: u8 = 2;
const NONE: u8 = 1;
const NULL: u8 = 0;

/// Topic and partition of a request to produce; librdkafka sends one for each partition.
fn target(request: &[u8]) -> (String, i32) {
    assert_eq!(&request[..4], [0, 0, 0, 10], "a request to produce, version 10");
    let rest = &request[8..];
    let client_id = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
    let rest = &rest[2 + client_id + 1..];
    let transactional_id = usize::from(rest[0]).max(1);
    let acks_and_timeout = 2 + 4;
    let rest = &rest[transactional_id + acks_and_timeout..];
    let name = usize::from(rest[1]);
    let (topic, rest) = (&rest[2..1 + name], &rest[1 + name..]);
    let partition = rest[1..5].try_into().expect("four bytes");
    (String::from_utf8_lossy(topic).into_owned(), i32::from_be_bytes(partition))
}

/// The answer to a request to produce that the broker refuses.
fn refusal(request: &[u8]) -> Vec<u8> {
    let (topic, partition) = target(request);
    let correlation = &request[4..8];
    let mut answer = [correlation, &[NO_TAGS, ONE]].concat();
    answer.push(u8::try_from(topic.len() + 1).expect("a short name"));
    answer.extend(topic.bytes());
    answer.push(ONE);
    answer.extend(partition.to_be_bytes());
    answer.extend(NOT_LEADER.to_be_bytes());
    // Offset, time and first offset of the log: unknown.
    answer.extend([-1_i64; 3].iter().flat_map(|unknown| unknown.to_be_bytes()));
    answer.extend([NONE, NULL, NO_TAGS, NO_TAGS]);
    let throttled_ms = 0_i32;
    answer.extend(throttled_ms.to_be_bytes());
    answer.push(NO_TAGS);
    answer
}

/// Whether a lookup, version 2, asks for a group's coordinator and not for a transaction's: its last byte.
fn is_of_group(request: &[u8]) -> bool {
    assert_eq!(&request[..4], [0, 10, 0, 2], "a lookup of a coordinator, version 2");
    request.last() == Some(&0)
}

/// The answer to a lookup where there is no coordinator.
fn no_coordinator(request: &[u8]) -> Vec<u8> {
    let throttled_ms = 0_i32;
    let (no_message, no_node, no_host, no_port) = (-1_i16, -1_i32, 0_i16, -1_i32);
    let mut answer = request[4..8].to_vec();
    answer.extend(throttled_ms.to_be_bytes());
    answer.extend(COORDINATOR_NOT_AVAILABLE.to_be_bytes());
    answer.extend(no_message.to_be_bytes());
    answer.extend(no_node.to_be_bytes());
    answer.extend(no_host.to_be_bytes());
    answer.extend(no_port.to_be_bytes());
    answer
}

fn forward_answers(mut broker: TcpStream, mut client: TcpStream, state: &State, lost: &Mutex<HashSet<i32>>) {
    while let Some(answer) = frame(&mut broker) {
        let Some(correlation) = answer.first_chunk::<4>() else { break };
        if lost.lock().expect("no panic").remove(&i32::from_be_bytes(*correlation)) {
            state.swallowed.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        if pass_on(&mut client, &answer).is_none() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = broker.shutdown(Shutdown::Both);
}
