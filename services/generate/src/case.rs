//! One question's hold on the state of its lane: admission, the ledger of its calls, and its end.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use metrics::counter;
use weir_contracts::{Answer, AnswerStatus, Provenance, Usage, unix_millis};
use weir_llm::{Call, Completion, Ledger, NanoUsd, Planned, Withheld};
use weir_runner::{Mechanism, is_switched_off};
use weir_stage::{Change, Failure, LaneState, Outcome, StageError};

use crate::accounts::{LOOK_AGAIN, Refusal, Unsettled, admit, leave, reserve, settle, settle_all};
use crate::ask::Ask;
use crate::cache::Cached;
use crate::clock::Clock;
use crate::draft::{Draft, outputs};
use crate::journal::{Journal, OpenCall, Spent, Step, StoredReply, load, stored};
use crate::metric;
use crate::slot::{Found, Visitor, claim, close, fingerprint, hand_over, key_slot, shared, wait};
use crate::tenants::Policy;
use crate::watch;

/// How long the journal of a question is kept that lies among the dead letters, milliseconds.
const FAILED_KEPT: i64 = 30 * 86_400_000;

/// Why a request that was to wait does not.
const ENDED: &str = "the request it was to wait for has just ended";

/// A question that is worked on.
pub(crate) struct Case<'a> {
    pub(crate) ask: &'a Ask<'a>,
    pub(crate) journal: Journal,
    state: LaneState<'a>,
    clock: &'a Clock,
    policy: Policy,
    /// How long the answer of an idempotency key is kept, milliseconds.
    window: i64,
    /// Why a call was withheld.
    withheld: Option<Cause>,
    /// Calls whose reservations are not settled yet.
    unsettled: Vec<Unsettled>,
    /// What is to be remembered of the answer, and where.
    pub(crate) keep: Option<Keep>,
}

/// What is to be remembered of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Keep {
    pub(crate) key: String,
    pub(crate) basis: crate::cache::Basis,
    /// How long, milliseconds.
    pub(crate) for_millis: i64,
}

/// Why a call was withheld.
#[derive(Debug)]
enum Cause {
    OverLimit(Refusal),
    Lost(StageError),
}

/// What becomes of a question that was looked at.
pub(crate) enum Opened<'a> {
    /// It is worked on, from where its journal says.
    Work(Case<'a>),
    /// It would be, but for a limit.
    OverLimit(Case<'a>, Refusal),
    /// Another request has its answer, or will have.
    Elsewhere(Found),
}

impl<'a> Case<'a> {
    /// Looks at a question: whether it was begun before, shares the answer of another, or may begin.
    pub(crate) async fn open(
        ask: &'a Ask<'a>,
        state: LaneState<'a>,
        policy: Policy,
        clock: &'a Clock,
        window: Duration,
    ) -> Result<Opened<'a>, StageError> {
        let window = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
        let mut case = Self {
            ask,
            journal: Journal::default(),
            state,
            clock,
            policy,
            window,
            withheld: None,
            unsettled: Vec::new(),
            keep: None,
        };
        let now = case.now();
        let opened = state.update(|change| case.take_up(change, now)).await?;
        Ok(match opened {
            None => Opened::Work(case),
            Some(Turned::OverLimit(refusal)) => Opened::OverLimit(case, refusal),
            Some(Turned::Elsewhere(found)) => Opened::Elsewhere(found),
        })
    }

    /// How near an equivalent question must be for its answer to be given again.
    pub(crate) fn semantic_cache(&self) -> Option<f64> {
        self.policy.semantic_cache()
    }

    fn now(&self) -> i64 {
        unix_millis((self.clock)())
    }

    fn key(&self) -> String {
        self.ask.journal_key()
    }

    fn take_up(&mut self, change: &mut Change<'_>, now: i64) -> Result<Option<Turned>, StageError> {
        let known: Option<Journal> =
            if is_switched_off(Mechanism::Journal) { None } else { load(change, &self.key())? };
        let begun = known.as_ref().is_some_and(Journal::is_under_way);
        if let Some(known) = known {
            self.journal = known;
            if self.journal.step == Step::Failed && self.ask.is_to_restart() {
                self.journal.restart();
            }
        }
        if begun {
            self.resume(change, now)?;
        } else if let Some(turned) = self.begin(change, now)? {
            return Ok(Some(turned));
        }
        change.put(self.key(), stored(&self.journal)?);
        Ok(None)
    }

    /// Takes over from an owner that is gone.
    fn resume(&mut self, change: &mut Change<'_>, now: i64) -> Result<(), StageError> {
        self.journal.owners += 1;
        for open in std::mem::take(&mut self.journal.open) {
            let counted = if open.honours_idempotency { "settled" } else { "charged" };
            counter!(metric::CALLS_IN_DOUBT, "as" => counted).increment(1);
            tracing::warn!(
                tenant = %self.ask.question.tenant,
                request = %self.ask.question.request_id,
                provider = open.provider,
                attempt = open.attempt,
                counted,
                "a call was under way when its owner was lost"
            );
            if open.honours_idempotency {
                // The repeat is charged in its place, or what it comes to was charged before.
                settle(change, &open, 0, NanoUsd::ZERO)?;
            } else {
                self.journal.calls.push(open.in_doubt(now));
            }
        }
        Ok(())
    }

    fn begin(&mut self, change: &mut Change<'_>, now: i64) -> Result<Option<Turned>, StageError> {
        let question = self.ask.question;
        let slot = question.idempotency_key.as_ref().map(|key| key_slot(question, key));
        if let Some(key) = &slot {
            let asked = fingerprint(question, self.ask.text(), &self.ask.version);
            if let Some(found) = claim(change, key, &asked, &Visitor::of(self.ask))? {
                return Ok(Some(Turned::Elsewhere(found)));
            }
        }
        self.journal.request_id = Some(question.request_id.clone());
        self.journal.tenant = Some(question.tenant.clone());
        // It may have waited for a limit, and others for it.
        let slot = slot.filter(|slot| !self.journal.leads.contains(slot));
        self.journal.leads.extend(slot);
        let accounts = self.policy.accounts(question);
        if let Err(refusal) = admit(change, &accounts, now)? {
            return Ok(Some(Turned::OverLimit(refusal)));
        }
        self.journal.accounts = accounts.into_iter().map(|account| account.key).collect();
        (self.journal.began_at, self.journal.owners, self.journal.failed) = (now, 1, None);
        self.journal.enter(Step::Retrieve, now);
        Ok(None)
    }

    /// Whether another request is worked on that will answer this one too. Else this one is the first.
    pub(crate) async fn is_under_way_elsewhere(&mut self, key: &str, asked: &str) -> Result<bool, StageError> {
        let (state, own, visitor) = (self.state, self.key(), Visitor::of(self.ask));
        let journal = &mut self.journal;
        let looked = state.update(|change| match claim(change, key, asked, &visitor)? {
            Some(found) => Ok(found == Found::Running),
            None => {
                if !journal.leads.iter().any(|lead| lead == key) {
                    journal.leads.push(key.to_owned());
                    change.put(&own, stored(journal)?);
                }
                Ok(false)
            }
        });
        looked.await
    }

    /// It waits for the answer of the one that is worked on, and with it those who wait for its own.
    pub(crate) fn join(self, key: String, asked: String) -> Outcome {
        let (own, visitor, journal) = (self.key(), Visitor::of(self.ask), self.journal);
        Outcome::finally(move |change| {
            if !wait(change, &key, &asked, &visitor)? {
                return Ok(look_again(ENDED));
            }
            leave(change, &journal.accounts)?;
            change.remove(&own);
            hand_over(change, &journal.leads, &own, &key)?;
            Ok(joined())
        })
    }

    /// Writes the journal as it is, with what has been settled since.
    pub(crate) async fn record(&mut self) -> Result<(), StageError> {
        let (key, state) = (self.key(), self.state);
        let journal = stored(&self.journal)?;
        let unsettled = std::mem::take(&mut self.unsettled);
        state
            .update(|change| {
                settle_all(change, &unsettled)?;
                change.put(&key, journal);
                Ok(())
            })
            .await
    }

    /// Why the calls stopped, when a limit stopped them.
    ///
    /// # Errors
    /// When the lane was lost.
    pub(crate) fn stopped(&mut self) -> Result<Option<Refusal>, StageError> {
        match self.withheld.take() {
            Some(Cause::Lost(error)) => Err(error),
            Some(Cause::OverLimit(refusal)) => Ok(Some(refusal)),
            None => Ok(None),
        }
    }

    /// What becomes of it when a limit is in the way: it waits, where the tenant wants that and there is time, or is turned
    /// away.
    pub(crate) fn over_limit(self, refusal: &Refusal) -> Result<Outcome, StageError> {
        let now = (self.clock)();
        let wait = refusal.retry_after();
        let left = self.ask.deadline.and_then(|deadline| deadline.remaining(now));
        let queued = wait.filter(|wait| self.policy.queues() && left.is_some_and(|left| *wait < left));
        let decision = if queued.is_some() { "queued" } else { "rejected" };
        counter!(metric::OVER_LIMIT, "limit" => refusal.limit(), "decision" => decision).increment(1);
        tracing::info!(
            tenant = %self.ask.question.tenant,
            request = %self.ask.question.request_id,
            limit = refusal.limit(),
            decision,
            retry_after_ms = wait.and_then(|wait| u64::try_from(wait.as_millis()).ok()),
            "over a limit"
        );
        if let Some(wait) = queued {
            return Ok(self.postpone(Failure::new("over-limit", refusal), wait));
        }
        let draft = Draft { retry_after: wait, ..Draft::without_text(AnswerStatus::Rejected, refusal.to_string()) };
        self.finish(draft)
    }

    /// It comes back later, and begins anew then; who waits for its answer goes on waiting.
    pub(crate) fn postpone(self, failure: Failure, wait: Duration) -> Outcome {
        let (key, now) = (self.key(), self.now());
        let Self { mut journal, unsettled, .. } = self;
        let accounts = std::mem::take(&mut journal.accounts);
        journal.enter(Step::Queued, now);
        Outcome::finally(move |change| {
            settle_all(change, &unsettled)?;
            leave(change, &accounts)?;
            change.put(&key, stored(&journal)?);
            Ok(Outcome::Postpone { failure: failure.clone(), wait })
        })
    }

    /// Its answer, for everybody who waits for it.
    pub(crate) fn finish(self, mut draft: Draft) -> Result<Outcome, StageError> {
        draft.calls.clone_from(&self.journal.calls);
        let reported = self.journal.reported;
        let (answer, usages) = draft.into_records(self.ask.question, &self.ask.version, (self.clock)(), reported);
        let (key, now) = (self.key(), self.now());
        let Self { journal, unsettled, window, keep, .. } = self;
        let kept = is_an_answer(answer.status);
        Ok(Outcome::finally(move |change| {
            settle_all(change, &unsettled)?;
            leave(change, &journal.accounts)?;
            watch::spend(change, &answer.tenant, journal.calls.get(reported..).unwrap_or_default(), now)?;
            change.remove(&key);
            if let Some(keep) = keep.as_ref().filter(|_| is_fresh(&answer)) {
                let cached = Cached { answer: answer.clone(), basis: keep.basis.clone() };
                let until = change.now().saturating_add(keep.for_millis);
                change.put_until(&keep.key, stored(&cached)?, until);
            }
            let waiters = close(change, &journal.leads, &key, kept.then_some((&answer, window)))?;
            Ok(Outcome::Emit(outputs(&answer, &usages, waiters.iter().map(|w| shared(&answer, w, now)))))
        }))
    }
}

/// A request that waits for the answer of another with its idempotency key.
pub(crate) fn wait_for_key(ask: &Ask<'_>, key: &str) -> Outcome {
    let (slot, visitor) = (key_slot(ask.question, key), Visitor::of(ask));
    let asked = fingerprint(ask.question, ask.text(), &ask.version);
    Outcome::finally(move |change| {
        Ok(if wait(change, &slot, &asked, &visitor)? { joined() } else { look_again(ENDED) })
    })
}

fn joined() -> Outcome {
    counter!(metric::SHARED, "by" => "joined").increment(1);
    Outcome::skip("joined")
}

/// A request that can't wait for another one now comes back, and looks again.
pub(crate) fn look_again(reason: &str) -> Outcome {
    Outcome::Postpone { failure: Failure::new("crowded", reason), wait: LOOK_AGAIN }
}

/// What a question that lies among the dead letters from now on says to those who wait, and what is kept of it.
pub(crate) fn fail(
    ask: &Ask<'_>,
    change: &mut Change<'_>,
    failure: &Failure,
    now: std::time::SystemTime,
) -> Result<(Answer, Vec<Usage>, Vec<Answer>), StageError> {
    let (key, millis) = (ask.journal_key(), unix_millis(now));
    let mut journal: Journal = load(change, &key)?.unwrap_or_default();
    leave(change, &journal.accounts)?;
    journal.accounts.clear();
    for open in std::mem::take(&mut journal.open) {
        journal.calls.push(open.in_doubt(millis));
    }
    let draft =
        Draft { calls: journal.calls.clone(), ..Draft::without_text(AnswerStatus::Failed, failure.message.clone()) };
    let (answer, usages) = draft.into_records(ask.question, &ask.version, now, journal.reported);
    let waiters = close(change, &std::mem::take(&mut journal.leads), &key, None)?;
    journal.reported = journal.calls.len();
    journal.failed = Some(failure.message.clone());
    journal.enter(Step::Failed, millis);
    if journal.began_at > 0 {
        change.put_until(&key, stored(&journal)?, change.now().saturating_add(FAILED_KEPT));
    }
    let others = waiters.iter().map(|waiter| shared(&answer, waiter, millis)).collect();
    Ok((answer, usages, others))
}

/// Why a question is not worked on.
enum Turned {
    OverLimit(Refusal),
    Elsewhere(Found),
}

impl Ledger for Case<'_> {
    fn before<'b>(&'b mut self, call: &'b Planned) -> BoxFuture<'b, Result<(), Withheld>> {
        async move {
            match self.let_go(call).await {
                Ok(None) => Ok(()),
                Ok(Some(refusal)) => {
                    let reason = refusal.to_string();
                    self.withheld = Some(Cause::OverLimit(refusal));
                    Err(Withheld(reason))
                }
                Err(error) => {
                    let reason = error.to_string();
                    self.withheld = Some(Cause::Lost(error));
                    Err(Withheld(reason))
                }
            }
        }
        .boxed()
    }

    fn withdrawn(&mut self, call: &Planned) {
        if let Some(open) = self.journal.take_open(call.attempt) {
            self.unsettled.push((open, None));
        }
    }

    fn after(&mut self, call: &Call, said: Option<&Completion>) {
        let mut spent = Spent::of(call);
        if let Some(open) = self.journal.take_open(call.attempt) {
            watch::estimate(call, open.input);
            spent.cost_usd = call.usage.cost(&open.price).0;
            self.unsettled.push((open, Some(call.clone())));
        }
        self.journal.calls.push(spent);
        if let Some(said) = said {
            self.journal.reply = Some(StoredReply::of(call, said));
            self.journal.enter(Step::Finish, self.now());
        }
    }
}

impl Case<'_> {
    /// Reserves what the call may use and notes that it leaves; returns once both are committed and nobody else can have
    /// the lane. A limit that is in the way is given back.
    async fn let_go(&mut self, call: &Planned) -> Result<Option<Refusal>, StageError> {
        let now = self.now();
        let price = self.policy.price(&call.model, call.price);
        let accounts = self.policy.accounts(self.ask.question);
        let (tokens, cost) = (call.bound.input.saturating_add(call.bound.output), call.bound.charge(&price));
        self.journal.enter(Step::Model, now);
        let (key, state) = (self.key(), self.state);
        let unsettled = std::mem::take(&mut self.unsettled);
        let journal = &mut self.journal;
        let refused = state
            .update(|change| {
                settle_all(change, &unsettled)?;
                let reservation = match reserve(change, &accounts, tokens, cost, now)? {
                    Ok(reservation) => reservation,
                    Err(refusal) => return Ok(Some(refusal)),
                };
                journal.last_attempt = journal.last_attempt.max(call.attempt);
                journal.open.push(OpenCall {
                    provider: call.provider.clone(),
                    model: call.model.clone(),
                    attempt: call.attempt,
                    since: now,
                    reservation,
                    accounts: accounts.iter().map(|account| account.key.clone()).collect(),
                    price,
                    input: call.bound.input,
                    honours_idempotency: call.honours_idempotency,
                });
                change.put(&key, stored(journal)?);
                Ok(None)
            })
            .await?;
        if refused.is_none() {
            state.committed().await?;
            state.hold_lease().await?;
        }
        Ok(refused)
    }
}

/// Whether a repeat of the request is to get it again.
fn is_an_answer(status: AnswerStatus) -> bool {
    match status {
        AnswerStatus::Complete | AnswerStatus::Extractive | AnswerStatus::NoContext | AnswerStatus::Incomplete => true,
        AnswerStatus::Expired | AnswerStatus::Failed | AnswerStatus::Rejected | AnswerStatus::Conflict => false,
    }
}

/// Whether it is what a model says of what was found.
fn is_fresh(answer: &Answer) -> bool {
    answer.status == AnswerStatus::Complete && answer.provenance == Provenance::Fresh
}
