//! A question on its way to the providers: which call leaves, what came of it, and whether another one overtakes it.

use metrics::counter;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::breaker::{Outcome, Permit};
use crate::call::{Call, Running};
use crate::chain::{Chain, Exhausted, Partial, Reply, Run, Unanswered};
use crate::client::{ChatRequest, Completion, Deltas};
use crate::error::{CallError, Recovery};
use crate::ledger::{Ledger, Withheld};
use crate::link::Link;
use crate::metric;
use crate::question::{Next, Question};
use crate::race::{Answer, Exchange, Race};
use crate::timeouts::End;

/// A question and all its calls.
pub(crate) struct Asking<'a> {
    chain: &'a Chain,
    request: &'a ChatRequest,
    ledger: &'a mut dyn Ledger,
    question: Question<'a>,
    began: Instant,
    /// The next one.
    attempt: i32,
    calls: Vec<Call>,
    partial: Option<Partial>,
}

/// A call that has left.
struct Underway<'a> {
    at: usize,
    link: &'a Link,
    permit: Permit,
    attempt: i32,
    began: Instant,
    running: Running<'a>,
}

impl<'a> Underway<'a> {
    fn exchange<'f>(&self, request: &'f ChatRequest, end: End, deltas: &'f mut dyn Deltas) -> Exchange<'f>
    where
        'a: 'f,
    {
        Exchange::new(self.link.provider.ask(request, self.attempt, end, deltas))
    }
}

impl<'a> Asking<'a> {
    pub(crate) fn new(
        chain: &'a Chain,
        request: &'a ChatRequest,
        first_attempt: i32,
        ledger: &'a mut dyn Ledger,
    ) -> Self {
        let began = Instant::now();
        let end = End::of(began, &chain.timeouts, request.deadline);
        let question = Question::new(&chain.links, &chain.retries, &chain.random, began, end);
        Self { chain, request, ledger, question, began, attempt: first_attempt, calls: Vec::new(), partial: None }
    }

    /// Until there is an answer, or nobody is left to be asked in time.
    pub(crate) async fn run(mut self, deltas: &mut dyn Deltas) -> Run {
        let reply = loop {
            let (at, permit) = match self.question.next(Instant::now()) {
                Next::Call(at, permit) => (at, permit),
                Next::Wait(until) => {
                    sleep_until(until).await;
                    continue;
                }
                Next::GiveUp => break None,
            };
            let Some(link) = self.chain.links.get(at) else { break None };
            let Some(call) = self.admit(at, link, permit).await else { continue };
            if let Some(reply) = self.hear(call, deltas).await {
                break Some(reply);
            }
        };
        let mut calls = std::mem::take(&mut self.calls);
        calls.sort_by_key(|call| call.attempt);
        Run { reply: reply.ok_or_else(|| self.exhausted()), calls }
    }

    /// Lets a call leave once the ledger does.
    async fn admit(&mut self, at: usize, link: &'a Link, permit: Permit) -> Option<Underway<'a>> {
        let planned = link.plan(self.request, self.attempt);
        if let Err(Withheld(reason)) = self.ledger.before(&planned).await {
            self.question.failed(at, &CallError::Withheld { reason }, Instant::now());
            return None;
        }
        let now = Instant::now();
        if !permit.is_current() {
            self.ledger.withdrawn(&planned);
            if let Err(open) = link.check(now, now) {
                self.question.failed(at, &open, now);
            }
            return None;
        }
        Some(self.begin(at, link, permit, now))
    }

    fn begin(&mut self, at: usize, link: &'a Link, permit: Permit, now: Instant) -> Underway<'a> {
        let attempt = self.attempt;
        self.attempt = attempt.saturating_add(1);
        let running = Running::start(link, self.request, attempt, self.question.end, now);
        Underway { at, link, permit, attempt, began: now, running }
    }

    /// What a call comes to, or the one that overtakes it because it does not begin to answer.
    async fn hear(&mut self, call: Underway<'a>, deltas: &mut dyn Deltas) -> Option<Reply> {
        let race = Race::new(deltas);
        let mut entrant = race.entrant(call.attempt, call.running.heard());
        let mut exchange = call.exchange(self.request, self.question.end, &mut entrant);
        let first = self.calls.is_empty();
        let Some(delay) = first.then(|| self.chain.hedging.delay(&call.link.first_tokens)).flatten() else {
            let answer = exchange.answer().await;
            return self.ended(call, answer);
        };
        let late = tokio::select! {
            biased;
            () = exchange.end() => false,
            () = race.decided() => false,
            () = sleep_until(call.began + delay) => true,
        };
        let second = if late { self.second(&mut exchange, &race).await } else { None };
        match second {
            Some(second) => self.decide(call, exchange, second, &race).await,
            None => {
                let answer = exchange.answer().await;
                self.ended(call, answer)
            }
        }
    }

    /// Another call beside a late one that goes on meanwhile; none if there is nobody to be asked, or no need any more.
    async fn second(&mut self, late: &mut Exchange<'_>, race: &Race<'_>) -> Option<Underway<'a>> {
        let (at, permit) = self.question.beside(Instant::now())?;
        let link = self.chain.links.get(at)?;
        if !self.chain.hedging.take() {
            return None;
        }
        let planned = link.plan(self.request, self.attempt);
        // Not to be dropped half way: what the ledger has begun to note it has to finish.
        late.until(self.ledger.before(&planned)).await.ok()?;
        let now = Instant::now();
        if late.ended().is_some() || race.winner().is_some() || !permit.is_current() {
            self.ledger.withdrawn(&planned);
            return None;
        }
        self.question.asked_beside(at, now);
        Some(self.begin(at, link, permit, now))
    }

    /// Of two calls, the one that begins to answer first, or else the one that does not fail, goes on alone.
    async fn decide(
        &mut self,
        first: Underway<'a>,
        mut exchange: Exchange<'_>,
        second: Underway<'a>,
        race: &Race<'_>,
    ) -> Option<Reply> {
        let mut entrant = race.entrant(second.attempt, second.running.heard());
        let mut overtaking = second.exchange(self.request, self.question.end, &mut entrant);
        tokio::select! {
            biased;
            () = exchange.end() => {}
            () = overtaking.end() => {}
            () = race.decided() => {}
        }
        let answered = |exchange: &Exchange<'_>| matches!(exchange.ended(), Some(Ok(_)));
        let won_by_second = match race.winner() {
            Some(winner) => Some(winner == second.attempt),
            // An answer without a single piece.
            None if answered(&exchange) => Some(false),
            None if answered(&overtaking) => Some(true),
            None => None,
        };
        let outcome = match (won_by_second, exchange.ended()) {
            (Some(true), _) => "won",
            (Some(false), _) => "lost",
            (None, Some(_)) => "alone",
            (None, None) => "failed",
        };
        second.link.note_hedge(outcome);
        match (won_by_second, exchange.ended()) {
            (Some(true), _) => {
                drop(exchange);
                first.link.first_tokens.saw(first.began.elapsed());
                self.cancelled(first);
                let answer = overtaking.answer().await;
                self.ended(second, answer)
            }
            (Some(false), _) => {
                drop(overtaking);
                self.cancelled(second);
                let answer = exchange.answer().await;
                self.ended(first, answer)
            }
            (None, Some(_)) => {
                let answer = exchange.answer().await;
                let stops = matches!(&answer, Err(failed) if failed.error.recovery() == Recovery::Stop);
                let nothing = self.ended(first, answer);
                if stops {
                    drop(overtaking);
                    self.cancelled(second);
                    return nothing;
                }
                let answer = overtaking.answer().await;
                self.ended(second, answer)
            }
            (None, None) => {
                let answer = overtaking.answer().await;
                self.failed_beside(second, &answer);
                let answer = exchange.answer().await;
                self.ended(first, answer)
            }
        }
    }

    /// A call has ended with this.
    fn ended(&mut self, call: Underway<'a>, answer: Answer) -> Option<Reply> {
        let (at, began) = (call.at, call.began);
        let call = self.settle(call, &answer);
        match answer {
            Ok(Completion { text, finish, tool_calls, first_token, .. }) => {
                let first_token = began.duration_since(self.began) + first_token;
                Some(Reply { text, finish, tool_calls, first_token, call })
            }
            Err(failed) => {
                self.question.failed(at, &failed.error, Instant::now());
                if !failed.partial.is_empty() {
                    let Call { provider, model, attempt, .. } = call;
                    self.partial = Some(Partial { provider, model, attempt, text: failed.partial });
                }
                None
            }
        }
    }

    /// A second call has failed before it said anything, and the first goes on.
    fn failed_beside(&mut self, call: Underway<'a>, answer: &Answer) {
        let at = call.at;
        self.settle(call, answer);
        if let Err(failed) = answer {
            self.question.failed_beside(at, &failed.error, Instant::now());
        }
    }

    fn settle(&mut self, underway: Underway<'a>, answer: &Answer) -> Call {
        let call = underway.running.end(answer);
        underway.permit.report(outcome(answer), call.latency, Instant::now());
        if let Ok(completion) = answer {
            underway.link.first_tokens.saw(completion.first_token);
        }
        self.note(call.clone(), answer.as_ref().ok());
        call
    }

    /// A call was overtaken. It says nothing of its provider's health, and may have to be paid.
    fn cancelled(&mut self, underway: Underway<'a>) {
        self.question.overtaken(underway.at, Instant::now());
        let call = underway.running.cancel();
        self.note(call, None);
    }

    fn note(&mut self, call: Call, said: Option<&Completion>) {
        self.ledger.after(&call, said);
        self.calls.push(call);
    }

    fn exhausted(self) -> Exhausted {
        let ((provider, error), errors) = self.question.into_errors();
        let providers = errors.into_iter().map(|(provider, error)| Unanswered { provider, error }).collect();
        let exhausted = Exhausted { provider, error, providers, partial: self.partial };
        // Nobody was asked, on purpose; who held it back says why.
        if matches!(exhausted.error, CallError::Withheld { .. }) {
            return exhausted;
        }
        counter!(metric::EXHAUSTED, "reason" => exhausted.error.class()).increment(1);
        warn!(
            tenant = self.request.tenant.as_deref(),
            prompt_template = self.request.prompt_template.as_deref(),
            prompt_version = self.request.prompt_version.as_deref(),
            reason = exhausted.error.class(),
            error = %exhausted,
            "question not answered"
        );
        exhausted
    }
}

fn outcome(answer: &Answer) -> Outcome {
    match answer {
        Ok(_) => Outcome::Success,
        Err(failed) if failed.error.blames_provider() => Outcome::Failure,
        Err(_) => Outcome::Ignored,
    }
}

#[cfg(test)]
#[path = "hedging_tests.rs"]
mod tests;
