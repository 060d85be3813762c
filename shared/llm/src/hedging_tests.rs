//! Hedging, with scripts in place of providers, in paused time.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::{sleep, timeout};

use super::*;
use crate::client::{Ask, Discard, Failed, Finish};
use crate::ledger::{Planned, Unaccounted};
use crate::recorder::Metrics;
use crate::{BreakerConfig, HedgingConfig, LlmConfig, Message, PriceConfig, ProviderConfig, RetryConfig, TokenUsage};

const MS: Duration = Duration::from_millis(1);

/// What a provider does: a piece after some time, the end some time later.
#[derive(Debug, Clone)]
struct Says {
    first: Duration,
    rest: Duration,
    /// Whether the piece is one of a tool call.
    calls_tool: bool,
    fails: Option<CallError>,
}

fn answers(first: u32, rest: u32) -> Says {
    Says { first: first * MS, rest: rest * MS, calls_tool: false, fails: None }
}

/// Fails after so long, without a piece.
fn fails(after: u32, error: CallError) -> Says {
    Says { fails: Some(error), ..answers(after, 0) }
}

#[derive(Debug)]
struct Script {
    name: &'static str,
    next: Mutex<VecDeque<Says>>,
    then: Says,
    asked: Mutex<usize>,
}

impl Script {
    fn new(name: &'static str, then: Says) -> Arc<Self> {
        Arc::new(Self { name, next: Mutex::default(), then, asked: Mutex::default() })
    }

    fn next(&self, says: Says) {
        self.next.lock().unwrap().push_back(says);
    }

    fn asked(&self) -> usize {
        *self.asked.lock().unwrap()
    }
}

impl Ask for Arc<Script> {
    fn ask<'a>(
        &'a self,
        _: &'a ChatRequest,
        attempt: i32,
        _: End,
        deltas: &'a mut dyn Deltas,
    ) -> BoxFuture<'a, Answer> {
        *self.asked.lock().unwrap() += 1;
        let says = self.next.lock().unwrap().pop_front().unwrap_or_else(|| self.then.clone());
        async move {
            sleep(says.first).await;
            let silent = says.rest.is_zero();
            if says.calls_tool {
                deltas.tool_call_piece(attempt, 4);
            } else if !silent {
                deltas.delta(attempt, &format!("{} begins", self.name));
            }
            sleep(says.rest).await;
            if !silent {
                deltas.delta(attempt, " and ends");
            }
            let usage = TokenUsage { input: 2, output: 3, ..TokenUsage::default() };
            let text = if silent { String::new() } else { format!("{} begins and ends", self.name) };
            match says.fails {
                Some(error) => Err(Failed { error, partial: text, usage }),
                None => Ok(Completion {
                    text,
                    finish: Finish::Stop,
                    tool_calls: Vec::new(),
                    usage,
                    first_token: says.first,
                }),
            }
        }
        .boxed()
    }
}

/// The pieces by attempt.
#[derive(Debug, Default)]
struct Heard(BTreeMap<i32, String>);

impl Deltas for Heard {
    fn delta(&mut self, attempt: i32, text: &str) {
        self.0.entry(attempt).or_default().push_str(text);
    }
}

/// Notes everything, holds back one provider, takes its time for one.
#[derive(Debug, Default)]
struct Notes {
    holds_back: Option<&'static str>,
    slow: Option<(&'static str, Duration)>,
    noted: Vec<(&'static str, String, i32)>,
}

impl Ledger for Notes {
    fn before<'a>(&'a mut self, call: &'a Planned) -> BoxFuture<'a, Result<(), Withheld>> {
        async move {
            if let Some((_, time)) = self.slow.filter(|(provider, _)| call.provider == *provider) {
                sleep(time).await;
            }
            if self.holds_back.is_some_and(|provider| call.provider == provider) {
                return Err(Withheld("the account is empty".into()));
            }
            self.noted.push(("before", call.provider.clone(), call.attempt));
            Ok(())
        }
        .boxed()
    }

    fn withdrawn(&mut self, call: &Planned) {
        self.noted.push(("withdrawn", call.provider.clone(), call.attempt));
    }

    fn after(&mut self, call: &Call, _: Option<&Completion>) {
        self.noted.push((call.status, call.provider.clone(), call.attempt));
    }
}

impl Notes {
    fn noted(&self) -> Vec<(&str, &str, i32)> {
        self.noted.iter().map(|(what, provider, attempt)| (*what, provider.as_str(), *attempt)).collect()
    }
}

fn enabled() -> LlmConfig {
    let hedging = HedgingConfig { enabled: true, ..HedgingConfig::default() };
    LlmConfig { hedging, ..LlmConfig::default() }
}

fn chain(config: &LlmConfig, scripts: &[&Arc<Script>]) -> Chain {
    let price = PriceConfig { input_per_million: 1.0, ..PriceConfig::default() };
    let settings = ProviderConfig { model: "m".into(), price, ..ProviderConfig::default() };
    let link =
        |script: &&Arc<Script>| Link::new(script.name, &settings, Box::new(Arc::clone(script)), config, Instant::now());
    Chain::of(scripts.iter().map(link).collect(), config).seeded(7)
}

fn request() -> ChatRequest {
    ChatRequest { messages: vec![Message::user("when was the mill built")], max_tokens: 64, ..ChatRequest::default() }
}

async fn ask(chain: &Chain) -> Run {
    chain.ask(&request(), 1, &mut Discard).await
}

/// The first provider usually begins after 100 ms: a wait of 200 ms, the least one, and two hedges saved up.
async fn warm(config: &LlmConfig, scripts: &[&Arc<Script>]) -> Chain {
    let chain = chain(config, scripts);
    for _ in 0..50 {
        assert_eq!(ask(&chain).await.calls.len(), 1);
    }
    chain
}

fn usual() -> Says {
    answers(100, 400)
}

fn who(run: &Run) -> Vec<(&str, i32, &str)> {
    run.calls.iter().map(|call| (call.provider.as_str(), call.attempt, call.status)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_slow_provider_is_overtaken_and_what_it_may_have_cost_counts() {
    let metrics = Metrics::default();
    let _recording = metrics::set_default_local_recorder(&metrics);
    let (a, b) = (Script::new("a", usual()), Script::new("b", answers(50, 450)));
    let chain = warm(&enabled(), &[&a, &b]).await;
    a.next(answers(9_000, 1_000));
    let (mut heard, mut notes, began) = (Heard::default(), Notes::default(), Instant::now());
    let run = chain.ask_with_ledger(&request(), 1, &mut heard, &mut notes).await;
    assert_eq!(began.elapsed(), 700 * MS, "200 ms of waiting, and all of the second answer");
    assert_eq!(who(&run), [("a", 1, "cancelled"), ("b", 2, "ok")]);
    let lost = &run.calls[0];
    assert!(lost.usage.estimated && lost.usage.input == 6 && lost.cost.0 > 0.0, "{lost:?}");
    assert_eq!(lost.latency, 250 * MS, "it was cancelled as soon as the other one began");
    assert_eq!(heard.0, BTreeMap::from([(2, "b begins and ends".to_owned())]));
    let expected = [("before", "a", 1), ("before", "b", 2), ("cancelled", "a", 1), ("ok", "b", 2)];
    assert_eq!(notes.noted(), expected);
    let reply = run.reply.unwrap();
    assert_eq!((reply.text.as_str(), reply.call.attempt, reply.first_token), ("b begins and ends", 2, 250 * MS));
    assert_eq!(metrics.of(metric::HEDGES, "b,m,won"), 1.0);
    assert_eq!(metrics.of(metric::CALLS, "a,m,cancelled"), 1.0);
    assert_eq!(metrics.of(metric::CALLS_IN_FLIGHT, "a"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn unless_it_is_switched_on_nobody_is_asked_beside() {
    let (a, b) = (Script::new("a", usual()), Script::new("b", answers(50, 450)));
    let chain = warm(&LlmConfig::default(), &[&a, &b]).await;
    a.next(answers(9_000, 1_000));
    let began = Instant::now();
    assert_eq!(who(&ask(&chain).await), [("a", 1, "ok")]);
    assert_eq!((began.elapsed(), b.asked()), (10_000 * MS, 0));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_beside_before_fifty_calls_have_shown_what_is_usual() {
    let (a, b) = (Script::new("a", usual()), Script::new("b", answers(50, 450)));
    let config = enabled();
    let chain = chain(&config, &[&a, &b]);
    for _ in 0..49 {
        ask(&chain).await;
    }
    a.next(answers(9_000, 1_000));
    assert_eq!(who(&ask(&chain).await), [("a", 1, "ok")]);
    a.next(answers(9_000, 1_000));
    assert_eq!(who(&ask(&chain).await), [("a", 1, "cancelled"), ("b", 2, "ok")]);
}

#[tokio::test(start_paused = true)]
async fn the_wait_is_what_is_usual_of_that_provider() {
    let (a, b) = (Script::new("a", answers(3_000, 1_000)), Script::new("b", answers(50, 450)));
    let chain = warm(&enabled(), &[&a, &b]).await;
    a.next(answers(2_999, 1_000));
    assert_eq!(who(&ask(&chain).await), [("a", 1, "ok")]);
    a.next(answers(9_000, 1_000));
    let began = Instant::now();
    assert_eq!(who(&ask(&chain).await), [("a", 1, "cancelled"), ("b", 2, "ok")]);
    assert_eq!(began.elapsed(), 3_500 * MS);
}

#[tokio::test(start_paused = true)]
async fn who_begins_in_the_meantime_wins_and_the_second_is_cancelled() {
    let (a, b) = (Script::new("a", usual()), Script::new("b", answers(200, 10)));
    let chain = warm(&enabled(), &[&a, &b]).await;
    // A piece of a tool call is a beginning, too.
    for calls_tool in [false, true] {
        a.next(Says { calls_tool, ..answers(300, 5_000) });
        let (mut heard, mut notes) = (Heard::default(), Notes::default());
        let run = chain.ask_with_ledger(&request(), 7, &mut heard, &mut notes).await;
        assert_eq!(who(&run), [("a", 7, "ok"), ("b", 8, "cancelled")]);
        assert_eq!(run.calls[1].latency, 100 * MS);
        assert_eq!(heard.0.keys().collect::<Vec<_>>(), [&7]);
        assert_eq!(notes.noted()[2..], [("cancelled", "b", 8), ("ok", "a", 7)]);
        assert_eq!(run.reply.unwrap().text, "a begins and ends");
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_that_begin_at_the_same_moment_only_one_is_heard() {
    let (a, b) = (Script::new("a", usual()), Script::new("b", answers(100, 450)));
    let chain = warm(&enabled(), &[&a, &b]).await;
    a.next(answers(300, 400));
    let mut heard = Heard::default();
    let run = chain.ask(&request(), 1, &mut heard).await;
    assert_eq!(who(&run), [("a", 1, "ok"), ("b", 2, "cancelled")]);
    assert_eq!(run.calls[1].usage.output, 2, "what was said counts, heard or not");
    assert_eq!(heard.0, BTreeMap::from([(1, "a begins and ends".to_owned())]));
}

#[tokio::test(start_paused = true)]
async fn a_second_call_that_fails_does_not_hurt_the_first() {
    for error in [
        CallError::Server { status: 503 },
        CallError::Client { status: 400, code: None },
        CallError::Client { status: 401, code: None },
        CallError::Refused,
        CallError::RateLimited { retry_after: Some(5_000 * MS) },
    ] {
        let (a, b) = (Script::new("a", usual()), Script::new("b", answers(50, 450)));
        let chain = warm(&enabled(), &[&a, &b]).await;
        a.next(answers(1_000, 500));
        b.next(fails(100, error.clone()));
        let began = Instant::now();
        let run = ask(&chain).await;
        assert_eq!(who(&run), [("a", 1, "ok"), ("b", 2, error.class())]);
        assert_eq!((began.elapsed(), run.reply.unwrap().text.as_str()), (1_500 * MS, "a begins and ends"));
        // Nor does it end the question: the first may be tried again.
        a.next(fails(1_000, CallError::Server { status: 500 }));
        b.next(fails(100, error.clone()));
        let run = ask(&chain).await;
        let limited = matches!(error, CallError::RateLimited { .. });
        let second = if limited {
            [("a", 1, "server"), ("a", 2, "ok")].to_vec()
        } else {
            [("a", 1, "server"), ("b", 2, error.class()), ("a", 3, "ok")].to_vec()
        };
        assert_eq!(who(&run), second, "who is in a pause is not asked");
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_call_that_fails_leaves_the_second_alone() {
    let (a, b) = (Script::new("a", usual()), Script::new("b", answers(1_000, 500)));
    let chain = warm(&enabled(), &[&a, &b]).await;
    a.next(fails(300, CallError::Server { status: 503 }));
    let mut heard = Heard::default();
    let run = chain.ask(&request(), 1, &mut heard).await;
    assert_eq!(who(&run), [("a", 1, "server"), ("b", 2, "ok")]);
    assert_eq!(heard.0, BTreeMap::from([(2, "b begins and ends".to_owned())]));
    // A request that is at fault itself is answered by nobody.
    a.next(fails(300, CallError::Client { status: 400, code: None }));
    let run = ask(&chain).await;
    assert_eq!(who(&run), [("a", 1, "client"), ("b", 2, "cancelled")]);
    assert!(run.reply.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_winner_that_breaks_off_is_followed_by_retries_as_ever() {
    let (a, b) = (Script::new("a", usual()), Script::new("b", answers(50, 450)));
    let chain = warm(&enabled(), &[&a, &b]).await;
    a.next(answers(9_000, 1_000));
    b.next(Says { fails: Some(CallError::Broken { bytes: 8 }), ..answers(50, 450) });
    let mut heard = Heard::default();
    let run = chain.ask(&request(), 1, &mut heard).await;
    assert_eq!(who(&run), [("a", 1, "cancelled"), ("b", 2, "broken-off"), ("b", 3, "ok")]);
    assert_eq!(heard.0.keys().collect::<Vec<_>>(), [&2, &3]);
    // Without retries neither of the two is asked again.
    let config = LlmConfig { retries: RetryConfig { max: 0, ..RetryConfig::default() }, ..enabled() };
    let chain = warm(&config, &[&a, &b]).await;
    a.next(answers(9_000, 1_000));
    b.next(Says { fails: Some(CallError::Broken { bytes: 8 }), ..answers(50, 450) });
    let run = ask(&chain).await;
    assert_eq!(who(&run), [("a", 1, "cancelled"), ("b", 2, "broken-off")]);
    let exhausted = run.reply.unwrap_err();
    assert_eq!((exhausted.error, exhausted.partial.unwrap().attempt), (CallError::Broken { bytes: 8 }, 2));
}

#[tokio::test(start_paused = true)]
async fn what_the_ledger_holds_back_is_not_asked_and_the_first_goes_on() {
    let (a, b) = (Script::new("a", usual()), Script::new("b", answers(50, 450)));
    let chain = warm(&enabled(), &[&a, &b]).await;
    a.next(answers(1_000, 500));
    let mut notes = Notes { holds_back: Some("b"), ..Notes::default() };
    let run = chain.ask_with_ledger(&request(), 1, &mut Discard, &mut notes).await;
    assert_eq!((who(&run), b.asked()), (vec![("a", 1, "ok")], 0));
    assert_eq!(notes.noted(), [("before", "a", 1), ("ok", "a", 1)]);
}

#[tokio::test(start_paused = true)]
async fn what_the_ledger_lets_go_too_late_is_withdrawn_and_pieces_come_meanwhile() {
    let (a, b) = (Script::new("a", usual()), Script::new("b", answers(50, 450)));
    let chain = warm(&enabled(), &[&a, &b]).await;
    for (first, rest) in [(1_000, 4_000), (1_000, 100)] {
        a.next(answers(first, rest));
        let mut notes = Notes { slow: Some(("b", 2_000 * MS)), ..Notes::default() };
        let began = Instant::now();
        let run = chain.ask_with_ledger(&request(), 1, &mut Discard, &mut notes).await;
        assert_eq!((who(&run), b.asked()), (vec![("a", 1, "ok")], 0));
        assert_eq!(run.calls[0].latency, began.elapsed(), "it is noted when the ledger is done");
        assert_eq!(run.reply.unwrap().first_token, 1_000 * MS);
        let expected = [("before", "a", 1), ("before", "b", 2), ("withdrawn", "b", 2), ("ok", "a", 1)];
        assert_eq!(notes.noted(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn only_who_may_be_called_now_is_asked_beside() {
    let scripts = ["a", "b", "c", "d"].map(|name| Script::new(name, usual()));
    let [a, b, c, d] = &scripts;
    let config =
        LlmConfig { breaker: BreakerConfig { consecutive_failures: 1, ..BreakerConfig::default() }, ..enabled() };
    let chain = warm(&config, &[a, b, c, d]).await;
    let now = Instant::now();
    chain.links[1].breaker.acquire(now).unwrap().report(Outcome::Failure, MS, now);
    chain.links[2].gate.close(now, 60_000 * MS);
    a.next(answers(9_000, 1_000));
    assert_eq!(who(&ask(&chain).await), [("a", 1, "cancelled"), ("d", 2, "ok")]);
    assert_eq!((b.asked(), c.asked()), (0, 0));
    chain.links[3].gate.close(Instant::now(), 60_000 * MS);
    a.next(answers(9_000, 1_000));
    assert_eq!(who(&ask(&chain).await), [("a", 1, "ok")], "nobody is left");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_share_of_questions_is_asked_twice() {
    // The fastest of all calls are what is usual here, so that each later one is slow.
    let hedging = HedgingConfig { quantile: 0.01, ..enabled().hedging };
    let config = LlmConfig { hedging, ..enabled() };
    let (a, b) = (Script::new("a", usual()), Script::new("b", answers(50, 450)));
    let chain = warm(&config, &[&a, &b]).await;
    for asked in 51..=500 {
        a.next(answers(1_000, 500));
        ask(&chain).await;
        assert!(b.asked() * 20 <= asked, "{} of {asked}", b.asked());
    }
    assert_eq!(b.asked(), 25);
}

#[tokio::test(start_paused = true)]
async fn a_question_that_is_dropped_cancels_both_calls_and_counts_them() {
    let metrics = Metrics::default();
    let _recording = metrics::set_default_local_recorder(&metrics);
    let (a, b) = (Script::new("a", usual()), Script::new("b", answers(9_000, 1_000)));
    let chain = warm(&enabled(), &[&a, &b]).await;
    a.next(answers(9_000, 1_000));
    let (request, mut nobody) = (request(), Unaccounted);
    let mut discard = Discard;
    let asking = Asking::new(&chain, &request, 1, &mut nobody).run(&mut discard);
    assert!(timeout(1_000 * MS, asking).await.is_err());
    for provider in ["a", "b"] {
        assert_eq!(metrics.of(metric::CALLS, &format!("{provider},m,cancelled")), 1.0);
        assert_eq!(metrics.of(metric::CALLS_IN_FLIGHT, provider), 0.0);
    }
}
