//! A TCP proxy before a broker that loses the end of transactions.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// Numbers of requests in Kafka's protocol.
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

/// Forwards everything between clients and a broker, until it is told to lose ends of transactions. It stops losing
/// them when a producer starts over.
pub struct TransactionProxy {
    port: u16,
    state: Arc<State>,
}

struct State {
    broker: Mutex<String>,
    swallow: Mutex<Option<Swallow>>,
    swallowed: AtomicU32,
    started_over: AtomicBool,
}

impl TransactionProxy {
    /// Listens on a free port.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(State {
            broker: Mutex::default(),
            swallow: Mutex::new(None),
            swallowed: AtomicU32::new(0),
            started_over: AtomicBool::new(false),
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

    /// How many were lost.
    pub fn swallowed(&self) -> u32 {
        self.state.swallowed.load(Ordering::SeqCst)
    }

    /// Whether a producer has started over since.
    pub fn started_over(&self) -> bool {
        self.state.started_over.load(Ordering::SeqCst)
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
