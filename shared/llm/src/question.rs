//! Which provider a question is put to next, and when.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use tokio::time::Instant;

use crate::breaker::Permit;
use crate::error::{CallError, Recovery};
use crate::link::Link;
use crate::retry::RetryConfig;
use crate::timeouts::End;

/// What to do next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Ask this provider now.
    Call(usize, Permit),
    /// Look again then.
    Wait(Instant),
    /// Nobody is left to be asked in time.
    GiveUp,
}

/// Where a question stands with a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// May be asked, for the first time or because a retry was granted, unless its gate is closed.
    Ready,
    /// Told this question to come back then. To do so takes a retry.
    Limited { until: Instant },
    /// Is not asked again.
    Out,
}

/// A provider as one question sees it.
#[derive(Debug)]
struct Turn {
    standing: Standing,
    /// The latest error, or why it was not asked.
    error: Option<CallError>,
    asked: bool,
}

/// One question on its way through the chain.
///
/// **Invariant:** a question is put again at most `retries.max` times, and nobody is asked, nor waited for, beyond its
/// end.
pub(crate) struct Question<'a> {
    links: &'a [Link],
    config: &'a RetryConfig,
    random: &'a Mutex<StdRng>,
    began: Instant,
    pub(crate) end: End,
    turns: Vec<Turn>,
    retries: u32,
    /// When a retry that was granted is due.
    due: Option<Instant>,
    stopped: bool,
    /// The provider whose call failed last.
    last: Option<usize>,
}

impl<'a> Question<'a> {
    pub(crate) fn new(
        links: &'a [Link],
        config: &'a RetryConfig,
        random: &'a Mutex<StdRng>,
        began: Instant,
        end: End,
    ) -> Self {
        let fresh = || Turn { standing: Standing::Ready, error: None, asked: false };
        let turns = links.iter().map(|_| fresh()).collect();
        Self { links, config, random, began, end, turns, retries: 0, due: None, stopped: false, last: None }
    }

    /// What to do next. The first provider in order that may be asked now is; else the one whose pause ends first is
    /// waited for.
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        if self.stopped || now >= self.end.at {
            return Next::GiveUp;
        }
        if let Some(due) = self.due.filter(|due| *due > now) {
            return Next::Wait(due);
        }
        self.due = None;
        let mut held: Vec<(Instant, usize)> = Vec::new();
        for (at, (turn, link)) in self.turns.iter_mut().zip(self.links).enumerate() {
            let pause = match (turn.standing, link.gate.closed_until(now)) {
                (Standing::Out, _) => continue,
                (Standing::Limited { until }, gate) => Some(until.max(gate.unwrap_or(until))),
                (Standing::Ready, gate) => gate,
            };
            let refused = match pause {
                // There is no use in waiting for a provider that can't be asked then.
                Some(until) => link.check(until, now).map(|()| held.push((until, at))).err(),
                None => match link.acquire(now) {
                    Ok(permit) => {
                        link.note_call(turn.error.as_ref(), now);
                        turn.asked = true;
                        return Next::Call(at, permit);
                    }
                    Err(open) => Some(open),
                },
            };
            if let Some(open) = refused {
                turn.leave(open);
            }
        }
        held.sort_unstable();
        held.into_iter().find_map(|(until, at)| self.wait_for(at, until, now)).map_or(Next::GiveUp, Next::Wait)
    }

    /// Waits for a provider that is to be left alone until then; no longer asks it when that does not fit.
    fn wait_for(&mut self, at: usize, until: Instant, now: Instant) -> Option<Instant> {
        // All who were turned away wait for the same instant; they must not come back at it together.
        let wake = until.max(now) + self.backoff();
        let limited = matches!(self.turns.get(at)?.standing, Standing::Limited { .. });
        let fits = wake < self.end.at && (!limited || self.take_retry(at, now));
        let turn = self.turns.get_mut(at)?;
        if fits {
            turn.standing = Standing::Ready;
            Some(wake)
        } else {
            turn.leave(CallError::Paused { retry_after: until.saturating_duration_since(now) });
            None
        }
    }

    /// What the call of this provider came to.
    pub(crate) fn failed(&mut self, at: usize, error: &CallError, now: Instant) {
        self.last = Some(at);
        let standing = self.standing_after(at, error, now);
        if let Some(turn) = self.turns.get_mut(at) {
            turn.standing = standing;
            turn.error = Some(error.clone());
        }
    }

    fn standing_after(&mut self, at: usize, error: &CallError, now: Instant) -> Standing {
        match (error.recovery(), error) {
            (Recovery::Stop, _) => {
                self.stopped = true;
                Standing::Out
            }
            (Recovery::Failover, _) => Standing::Out,
            (Recovery::Retry, CallError::RateLimited { retry_after: Some(pause) }) => self.limited(at, *pause, now),
            (Recovery::Retry, _) => {
                let due = now + self.backoff();
                let healthy = self.links.get(at).is_some_and(|link| link.breaker.is_closed());
                if healthy && due < self.end.at && self.take_retry(at, now) {
                    self.due = Some(due);
                    Standing::Ready
                } else {
                    Standing::Out
                }
            }
        }
    }

    fn limited(&self, at: usize, pause: Duration, now: Instant) -> Standing {
        if let Some(link) = self.links.get(at) {
            link.gate.close(now, pause);
        }
        // Nothing beyond the question's end is of interest, and an instant centuries away can't be told.
        Standing::Limited { until: now + pause.min(self.end.at.saturating_duration_since(now)) }
    }

    /// Who may be asked now beside a call that is under way: the first in order that was not asked before.
    pub(crate) fn beside(&self, now: Instant) -> Option<(usize, Permit)> {
        if self.stopped || now >= self.end.at {
            return None;
        }
        self.turns.iter().zip(self.links).enumerate().find_map(|(at, (turn, link))| {
            let ready = turn.standing == Standing::Ready && !turn.asked && link.gate.closed_until(now).is_none();
            ready.then(|| link.acquire(now).ok()).flatten().map(|permit| (at, permit))
        })
    }

    /// A call beside another one has left.
    pub(crate) fn asked_beside(&mut self, at: usize, now: Instant) {
        if let (Some(turn), Some(link)) = (self.turns.get_mut(at), self.links.get(at)) {
            link.note_call(None, now);
            turn.asked = true;
        }
    }

    /// The call beside another one that goes on came to this. Whatever it is, it is neither the end of the question nor
    /// of what the other one may do; to ask this provider once more takes a retry.
    pub(crate) fn failed_beside(&mut self, at: usize, error: &CallError, now: Instant) {
        let standing = match (error.recovery(), error) {
            (Recovery::Retry, CallError::RateLimited { retry_after: Some(pause) }) => self.limited(at, *pause, now),
            (Recovery::Retry, _) => Standing::Limited { until: now },
            (Recovery::Failover | Recovery::Stop, _) => Standing::Out,
        };
        if let Some(turn) = self.turns.get_mut(at) {
            turn.standing = standing;
            turn.error = Some(error.clone());
        }
    }

    /// The call was cancelled because another one was quicker. To ask its provider once more takes a retry.
    pub(crate) fn overtaken(&mut self, at: usize, now: Instant) {
        if let Some(turn) = self.turns.get_mut(at) {
            turn.standing = Standing::Limited { until: now };
        }
    }

    /// The wait before the next retry.
    fn backoff(&self) -> Duration {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        self.config.backoff(self.retries.saturating_add(1), &mut *random)
    }

    fn take_retry(&mut self, at: usize, now: Instant) -> bool {
        let granted = self.retries < self.config.max && self.links.get(at).is_some_and(|link| link.take_retry(now));
        self.retries += u32::from(granted);
        granted
    }

    /// The error that ended it and whose it is, then why each provider gave no answer.
    pub(crate) fn into_errors(self) -> ((String, CallError), Vec<(String, CallError)>) {
        let of_last = self.last.and_then(|at| Some((self.links.get(at)?, self.turns.get(at)?.error.clone()?)));
        let errors: Vec<(String, CallError)> = self
            .links
            .iter()
            .zip(self.turns)
            .filter_map(|(link, turn)| Some((link.name.clone(), turn.error?)))
            .collect();
        let last = of_last
            .map(|(link, error)| (link.name.clone(), error))
            .or_else(|| errors.last().cloned())
            // Nobody was tried: there was no time at all.
            .unwrap_or_else(|| {
                let elapsed = Instant::now().saturating_duration_since(self.began);
                (String::new(), CallError::Timeout { step: self.end.step, elapsed })
            });
        (last, errors)
    }
}

impl Turn {
    /// It is not asked again; what it said itself tells more than why it was not asked once more.
    fn leave(&mut self, reason: CallError) {
        self.standing = Standing::Out;
        if !self.asked {
            self.error = Some(reason);
        }
    }
}
