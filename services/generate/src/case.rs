//! One question's hold on the state of its lane: admission, the ledger of its calls, and its end.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use metrics::counter;
use weir_contracts::{Answer, AnswerStatus, Provenance, RequestId, Usage, unix_millis};
use weir_llm::{
    Account, Call, Completion, Ledger, NanoUsd, Planned, Refused, Reservation, Retry, Withheld, admit_all, reserve_all,
};
use weir_runner::{Mechanism, is_switched_off};
use weir_stage::{Change, Failure, LaneState, Outcome, StageError};

use crate::ask::Ask;
use crate::cache::Cached;
use crate::clock::Clock;
use crate::draft::{Draft, outputs, text_hash};
use crate::journal::{Journal, OpenCall, Spent, Step, StoredReply, load, stored};
use crate::metric;
use crate::slot::{Found, Slot, Waiter, fingerprint, key_slot};
use crate::tenants::{Charged, Policy};

/// How long the journal of a question is kept that lies among the dead letters, milliseconds.
const FAILED_KEPT: i64 = 30 * 86_400_000;
/// How long a question waits for others that are under way, before it looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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

/// A limit that is in the way.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    refused: Refused,
    whose: String,
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

impl Refusal {
    /// When to come again, if time helps.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self.refused.retry {
            Retry::After(wait) => Some(wait),
            Retry::WhenOneEnds => Some(LOOK_AGAIN),
            Retry::Never => None,
        }
    }

    fn limit(&self) -> &'static str {
        self.refused.limit.name()
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, which {} has", self.refused, self.whose)
    }
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
            let asked = fingerprint(question, self.ask.text(), self.ask.version);
            if let Some(found) = join(change, key, &asked, self.ask)? {
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

    /// Whether another request that is worked on will answer this one too, which waits with it then. Else this one is the first.
    pub(crate) async fn join(&mut self, key: String, asked: &str) -> Result<bool, StageError> {
        let (ask, state, own) = (self.ask, self.state, self.key());
        let journal = &mut self.journal;
        let joined = state.update(|change| match join(change, &key, asked, ask)? {
            Some(Found::Joined) => {
                leave(change, &journal.accounts)?;
                change.remove(&own);
                hand_over(change, &journal.leads, &own, &key)?;
                Ok(true)
            }
            // Whoever can't wait with it asks for itself.
            Some(_) => Ok(false),
            None => {
                if !journal.leads.contains(&key) {
                    journal.leads.push(key.clone());
                    change.put(&own, stored(journal)?);
                }
                Ok(false)
            }
        });
        joined.await
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
        let (answer, usages) = draft.into_records(self.ask.question, self.ask.version, (self.clock)(), reported);
        let (key, now) = (self.key(), self.now());
        let Self { journal, unsettled, window, keep, .. } = self;
        let kept = is_an_answer(answer.status);
        Ok(Outcome::finally(move |change| {
            settle_all(change, &unsettled)?;
            leave(change, &journal.accounts)?;
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
    let (answer, usages) = draft.into_records(ask.question, ask.version, now, journal.reported);
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

fn account(change: &Change<'_>, key: &str) -> Result<Account, StageError> {
    Ok(load(change, key)?.unwrap_or_default())
}

/// Counts a question in all its accounts, or in none.
fn admit(change: &mut Change<'_>, charged: &[Charged], now: i64) -> Result<Result<(), Refusal>, StageError> {
    together(change, charged, |accounts| admit_all(accounts, now))
}

fn reserve(
    change: &mut Change<'_>,
    charged: &[Charged],
    tokens: u64,
    cost: NanoUsd,
    now: i64,
) -> Result<Result<Option<Reservation>, Refusal>, StageError> {
    if charged.is_empty() {
        return Ok(Ok(None));
    }
    let reserved = together(change, charged, |accounts| reserve_all(accounts, tokens, cost, now))?;
    Ok(reserved.map(Some))
}

fn together<T>(
    change: &mut Change<'_>,
    charged: &[Charged],
    with: impl FnOnce(&mut [(&mut Account, &weir_llm::Limits)]) -> Result<T, Refused>,
) -> Result<Result<T, Refusal>, StageError> {
    let mut accounts = Vec::with_capacity(charged.len());
    for of in charged {
        accounts.push(account(change, &of.key)?);
    }
    let mut pairs: Vec<_> = accounts.iter_mut().zip(charged.iter().map(|of| &of.limits)).collect();
    let result = match with(&mut pairs) {
        Ok(result) => result,
        Err(refused) => {
            let whose = charged.get(refused.account).map(|of| of.whose.clone()).unwrap_or_default();
            return Ok(Err(Refusal { refused, whose }));
        }
    };
    for (of, account) in charged.iter().zip(&accounts) {
        change.put(&of.key, stored(account)?);
    }
    Ok(Ok(result))
}

/// A question is not under way any more.
fn leave(change: &mut Change<'_>, accounts: &[String]) -> Result<(), StageError> {
    for key in accounts {
        let mut account = account(change, key)?;
        account.leave();
        change.put(key, stored(&account)?);
    }
    Ok(())
}

/// A call that has ended, or none when it never left, and what it was charged before.
type Unsettled = (OpenCall, Option<Call>);

/// Puts what calls used in place of what was reserved for them. Where the provider does not say what it used, and it may have
/// used something, the reservation stands.
fn settle_all(change: &mut Change<'_>, unsettled: &[Unsettled]) -> Result<(), StageError> {
    for (open, call) in unsettled {
        let usage = call.as_ref().map(|call| call.usage).unwrap_or_default();
        let tokens = usage.input.saturating_add(usage.output);
        if !usage.estimated || tokens == 0 {
            settle(change, open, tokens, usage.charge(&open.price))?;
        }
    }
    Ok(())
}

fn settle(change: &mut Change<'_>, open: &OpenCall, tokens: u64, cost: NanoUsd) -> Result<(), StageError> {
    let Some(reservation) = &open.reservation else { return Ok(()) };
    for key in &open.accounts {
        let mut account = account(change, key)?;
        account.settle(reservation, tokens, cost);
        change.put(key, stored(&account)?);
    }
    Ok(())
}

/// Looks into a slot: none when this request is the first.
fn join(change: &mut Change<'_>, key: &str, asked: &str, ask: &Ask<'_>) -> Result<Option<Found>, StageError> {
    let mut slot = match load::<Slot>(change, key)? {
        Some(slot) => slot,
        None => Slot::led_by(ask, asked.to_owned()),
    };
    let found = slot.visit(ask, asked);
    if matches!(found, Found::Leads | Found::Joined) {
        change.put(key, stored(&slot)?);
    }
    Ok(Some(found).filter(|found| *found != Found::Leads))
}

/// Those who wait with a request that itself waits with another one from now on wait with that one, too.
fn hand_over(change: &mut Change<'_>, leads: &[String], own: &str, to: &str) -> Result<(), StageError> {
    let Some(mut joined) = load::<Slot>(change, to)? else { return Ok(()) };
    for key in leads {
        let Some(slot) = load::<Slot>(change, key)?.filter(|slot| slot.leader == own) else { continue };
        joined.waiters.extend(slot.waiters);
        joined.keys.push(key.clone());
        let following = Slot { leader: joined.leader.clone(), waiters: Vec::new(), ..slot };
        change.put(key, stored(&following)?);
    }
    change.put(to, stored(&joined)?);
    Ok(())
}

/// Ends the slots that a request leads: those of idempotency keys keep the answer, for so many milliseconds, if it is one.
/// Gives everybody who waited.
fn close(
    change: &mut Change<'_>,
    leads: &[String],
    own: &str,
    keep: Option<(&Answer, i64)>,
) -> Result<Vec<Waiter>, StageError> {
    let mut waiters = Vec::new();
    let mut keys: Vec<String> = leads.to_vec();
    while let Some(key) = keys.pop() {
        let Some(mut slot) = load::<Slot>(change, &key)?.filter(|slot| slot.leader == own) else { continue };
        waiters.append(&mut slot.waiters);
        keys.append(&mut slot.keys);
        match keep.filter(|_| key.starts_with("key/")) {
            Some((answer, window)) => {
                slot.answer = Some(Box::new(answer.clone()));
                let until = change.now().saturating_add(window);
                change.put_until(&key, stored(&slot)?, until);
            }
            None => change.remove(&key),
        }
    }
    Ok(waiters)
}

/// The answer of one request as that of another one that waited for it.
fn shared(answer: &Answer, waiter: &Waiter, now: i64) -> Answer {
    let late = waiter.deadline.is_some_and(|deadline| deadline <= now);
    let answer = as_answer_of(answer, &waiter.request_id, waiter.asked_at);
    if !late {
        return answer;
    }
    let reason = "the deadline passed while it waited for another request to be answered";
    Answer {
        status: AnswerStatus::Expired,
        reason: Some(reason.to_owned()),
        text: String::new(),
        text_hash: text_hash(""),
        citations: Vec::new(),
        ..answer
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

/// The same answer, byte for byte, under another request's id.
pub(crate) fn as_answer_of(answer: &Answer, request_id: &RequestId, asked_at: i64) -> Answer {
    Answer {
        request_id: request_id.clone(),
        answered_with: Some(answer.answered_with.clone().unwrap_or_else(|| answer.request_id.clone())),
        // Its pieces stream under the other's id.
        attempt: 0,
        asked_at,
        ..answer.clone()
    }
}
