//! What the provider is to do next, and what it remembers.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::Received;
use super::answer::Answer;
use super::behaviour::Behaviour;
use super::books::{Books, Entry, Fate};
use super::chance::Turn;
use super::request::Request;

/// The state, for everybody who serves.
#[derive(Debug, Clone)]
pub(super) struct Shared(Arc<Mutex<State>>);

#[derive(Debug)]
pub(super) struct State {
    started: Instant,
    pub(super) down: bool,
    pub(super) idempotency: bool,
    pub(super) script: VecDeque<Behaviour>,
    pub(super) then: Behaviour,
    /// Calls that are forgotten: the first one in the books has this number.
    forgotten: usize,
    pub(super) received: Vec<Received>,
    entries: Vec<Entry>,
    keys: HashMap<String, Known>,
}

/// A key that was seen.
#[derive(Debug)]
enum Known {
    /// The call of this number has not ended yet.
    InProgress(usize),
    Answered(Answer),
}

/// What to do with a request.
pub(super) enum Task {
    Act(Turn),
    /// Give this answer again.
    Repeat(Answer),
    /// The first request with its key still runs.
    InProgress,
}

impl Shared {
    pub(super) fn new(behaviour: Behaviour) -> Self {
        Self(Arc::new(Mutex::new(State {
            started: Instant::now(),
            down: false,
            idempotency: false,
            script: VecDeque::new(),
            then: behaviour,
            forgotten: 0,
            received: Vec::new(),
            entries: Vec::new(),
            keys: HashMap::new(),
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn books(&self) -> Books {
        Books::of(self.entries.clone())
    }

    /// Forgets what came, what it has answered, and what it was to do next; not what it does then.
    pub(super) fn forget(&mut self) {
        self.forgotten += self.entries.len();
        self.entries.clear();
        self.received.clear();
        self.script.clear();
        self.keys.clear();
    }

    /// Enters a request into the books: its number, and what to do with it.
    pub(super) fn admit(&mut self, request: &Request) -> (usize, Task) {
        let number = self.forgotten + self.entries.len();
        let (behaviour, task) = self.task(number, request);
        let at = Instant::now();
        let input_percent = if let Task::Act(turn) = &task { turn.input_percent } else { 100 };
        self.entries.push(Entry {
            since_start_ms: millis(at.duration_since(self.started)),
            unix_ms: unix_ms(),
            idempotency_key: request.idempotency_key.clone(),
            model: request.model.clone(),
            stream: request.stream,
            behaviour,
            status: None,
            input_tokens: request.input_words.saturating_mul(input_percent).div_ceil(100),
            cached_tokens: 0,
            output_tokens: 0,
            fate: Fate::Running,
            ended_unix_ms: None,
            charged: false,
        });
        self.received.push(Received {
            at,
            body: request.body.clone(),
            authorization: request.authorization.clone(),
            idempotency_key: request.idempotency_key.clone(),
        });
        (number, task)
    }

    fn task(&mut self, number: usize, request: &Request) -> (String, Task) {
        let in_books = u64::try_from(self.entries.len()).unwrap_or(u64::MAX);
        if self.down {
            return ("down".into(), Task::Act(Turn::of(Behaviour::status(503), in_books)));
        }
        if let (true, Some(key)) = (self.idempotency, &request.idempotency_key) {
            match self.keys.get(key) {
                Some(Known::InProgress(_)) => return ("in-progress".into(), Task::InProgress),
                Some(Known::Answered(answer)) => return ("repeat".into(), Task::Repeat(answer.clone())),
                None => self.keys.insert(key.clone(), Known::InProgress(number)),
            };
        }
        let behaviour = self.script.pop_front().unwrap_or_else(|| self.then.clone());
        let turn = Turn::of(behaviour, in_books);
        (turn.act.kind(), Task::Act(turn))
    }

    /// The entry of a call, while the books have it.
    pub(super) fn entry(&mut self, number: usize) -> Option<&mut Entry> {
        self.entries.get_mut(number.checked_sub(self.forgotten)?)
    }

    /// A call is over. Its key is known from now on when it gave a whole answer, and may be used anew else.
    pub(super) fn end(&mut self, number: usize, fate: Fate, answer: Option<Answer>) {
        let Some(entry) = self.entry(number) else { return };
        (entry.fate, entry.ended_unix_ms) = (fate, Some(unix_ms()));
        let Some(key) = entry.idempotency_key.clone() else { return };
        if !matches!(self.keys.get(&key), Some(Known::InProgress(running)) if *running == number) {
            return;
        }
        match answer {
            Some(answer) => self.keys.insert(key, Known::Answered(answer)),
            None => self.keys.remove(&key),
        };
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn unix_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}
