//! Calls of one question that run side by side: only one of them is heard.

use std::future::{Future, poll_fn};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use futures::future::BoxFuture;

use crate::client::{Completion, Deltas, Failed};

/// Where the pieces of the winner go.
///
/// **Invariant:** no piece of any other call is passed on. The winner is whose first piece came first.
pub(crate) struct Race<'d>(Mutex<Course<'d>>);

struct Course<'d> {
    deltas: &'d mut dyn Deltas,
    /// Its attempt.
    winner: Option<i32>,
}

/// A call's way to where the pieces go.
pub(crate) struct Entrant<'r, 'd> {
    race: &'r Race<'d>,
    attempt: i32,
    heard: Arc<AtomicUsize>,
}

impl<'d> Race<'d> {
    pub(crate) fn new(deltas: &'d mut dyn Deltas) -> Self {
        Self(Mutex::new(Course { deltas, winner: None }))
    }

    fn lock(&self) -> MutexGuard<'_, Course<'d>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a call take part. The bytes that it says are added up in `heard`.
    pub(crate) fn entrant(&self, attempt: i32, heard: Arc<AtomicUsize>) -> Entrant<'_, 'd> {
        Entrant { race: self, attempt, heard }
    }

    /// The attempt that has won.
    pub(crate) fn winner(&self) -> Option<i32> {
        self.lock().winner
    }

    /// Ends when somebody has won. Wakes nobody: it has to be awaited together with the calls, and after them, which is
    /// when a piece can have come.
    pub(crate) async fn decided(&self) {
        poll_fn(|_| if self.winner().is_some() { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

impl Entrant<'_, '_> {
    fn pass(&self, bytes: usize, pass: impl FnOnce(&mut dyn Deltas)) {
        self.heard.fetch_add(bytes, Ordering::Relaxed);
        let mut course = self.race.lock();
        if *course.winner.get_or_insert(self.attempt) == self.attempt {
            pass(course.deltas);
        }
    }
}

impl Deltas for Entrant<'_, '_> {
    fn delta(&mut self, attempt: i32, text: &str) {
        self.pass(text.len(), |deltas| deltas.delta(attempt, text));
    }

    fn tool_call_piece(&mut self, attempt: i32, bytes: usize) {
        self.pass(bytes, |deltas| deltas.tool_call_piece(attempt, bytes));
    }
}

/// What came of a call.
pub(crate) type Answer = Result<Completion, Failed>;

/// A call under way that can be left in between and taken up again. Dropped, it is cancelled.
pub(crate) struct Exchange<'f> {
    call: BoxFuture<'f, Answer>,
    answer: Option<Answer>,
}

impl<'f> Exchange<'f> {
    pub(crate) fn new(call: BoxFuture<'f, Answer>) -> Self {
        Self { call, answer: None }
    }

    /// Goes on until the call has ended.
    pub(crate) async fn end(&mut self) {
        if self.answer.is_none() {
            self.answer = Some((&mut self.call).await);
        }
    }

    /// What came of it, if it has ended.
    pub(crate) fn ended(&self) -> Option<&Answer> {
        self.answer.as_ref()
    }

    /// Goes on until something else is done.
    pub(crate) async fn until<T>(&mut self, other: impl Future<Output = T>) -> T {
        let mut other = std::pin::pin!(other);
        while self.answer.is_none() {
            tokio::select! {
                biased;
                () = self.end() => {}
                value = &mut other => return value,
            }
        }
        other.await
    }

    /// What comes of it.
    pub(crate) async fn answer(self) -> Answer {
        match self.answer {
            Some(answer) => answer,
            None => self.call.await,
        }
    }
}
