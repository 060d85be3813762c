//! The chain with scripts in place of providers, in paused time.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::VecDeque;

use futures::future::{BoxFuture, join_all, pending};
use tokio::time::{sleep, timeout_at};

use super::*;
use crate::client::{Ask, Completion, Discard, Failed};
use crate::pricing::TokenUsage;
use crate::recorder::Metrics;
use crate::timeouts::End;
use crate::{BreakerConfig, Message, PriceConfig, ProviderConfig, RetryBudgetConfig, metric};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
enum Says {
    Answer,
    Fails(CallError),
    /// Some text, and then nothing.
    Hangs,
}

#[derive(Debug)]
struct Script {
    next: Mutex<VecDeque<Says>>,
    then: Mutex<Says>,
    calls: Mutex<Vec<Instant>>,
}

impl Script {
    fn new(next: impl IntoIterator<Item = Says>, then: Says) -> Arc<Self> {
        let next = Mutex::new(next.into_iter().collect());
        Arc::new(Self { next, then: Mutex::new(then), calls: Mutex::default() })
    }

    fn always(then: Says) -> Arc<Self> {
        Self::new([], then)
    }

    fn set(&self, then: Says) {
        *self.then.lock().unwrap() = then;
    }

    fn calls(&self) -> Vec<Instant> {
        self.calls.lock().unwrap().clone()
    }
}

impl Ask for Arc<Script> {
    fn ask<'a>(
        &'a self,
        _: &'a ChatRequest,
        attempt: i32,
        end: End,
        deltas: &'a mut dyn Deltas,
    ) -> BoxFuture<'a, Result<Completion, Failed>> {
        Box::pin(async move {
            let began = Instant::now();
            self.calls.lock().unwrap().push(began);
            let says = self.next.lock().unwrap().pop_front();
            let error = match says.unwrap_or_else(|| self.then.lock().unwrap().clone()) {
                Says::Answer => {
                    let usage = TokenUsage { input: 2, output: 3, ..TokenUsage::default() };
                    let (text, finish, tool_calls) = ("yes".into(), Finish::Stop, Vec::new());
                    return Ok(Completion { text, finish, tool_calls, usage, first_token: SECOND });
                }
                Says::Fails(error) => error,
                Says::Hangs => {
                    deltas.delta(attempt, "12345678");
                    let _ = timeout_at(end.at, pending::<()>()).await;
                    CallError::Timeout { step: end.step, elapsed: began.elapsed() }
                }
            };
            Err(Failed { error, partial: String::new(), usage: TokenUsage::default() })
        })
    }
}

fn chain(config: &LlmConfig, scripts: &[&Arc<Script>]) -> Chain {
    let price = PriceConfig { input_per_million: 1.0, ..PriceConfig::default() };
    let settings = ProviderConfig { model: "m".into(), price, ..ProviderConfig::default() };
    let links = ["a", "b", "c"].iter().zip(scripts);
    let links =
        links.map(|(name, script)| Link::new(name, &settings, Box::new(Arc::clone(script)), config, Instant::now()));
    Chain::of(links.collect(), config).seeded(7)
}

fn request() -> ChatRequest {
    ChatRequest {
        messages: vec![Message::user("when was the mill built")],
        max_tokens: 64,
        tenant: Some("acme".into()),
        prompt_template: Some("answer".into()),
        prompt_version: Some("v1".into()),
        ..ChatRequest::default()
    }
}

async fn ask(chain: &Chain) -> Run {
    chain.ask(&request(), 1, &mut Discard).await
}

fn server() -> Says {
    Says::Fails(CallError::Server { status: 503 })
}

fn client(status: u16) -> Says {
    Says::Fails(CallError::Client { status, code: None })
}

fn limited(seconds: u64) -> Says {
    Says::Fails(CallError::RateLimited { retry_after: Some(Duration::from_secs(seconds)) })
}

fn who(run: &Run) -> Vec<(&str, i32)> {
    run.calls.iter().map(|call| (call.provider.as_str(), call.attempt)).collect()
}

fn gaps(calls: &[Instant]) -> Vec<Duration> {
    calls.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_tried_again_with_the_same_provider() {
    for error in [
        CallError::Timeout { step: Step::FirstToken, elapsed: SECOND },
        CallError::Network { reason: "reset".into() },
        CallError::Server { status: 500 },
        CallError::RateLimited { retry_after: None },
        CallError::Broken { bytes: 3 },
        CallError::Malformed { reason: "no completion" },
    ] {
        let metrics = Metrics::default();
        let _recording = metrics::set_default_local_recorder(&metrics);
        let a = Script::new(vec![Says::Fails(error.clone()); 4], Says::Answer);
        let b = Script::always(Says::Answer);
        let run = chain(&LlmConfig::default(), &[&a, &b]).ask(&request(), 5, &mut Discard).await;
        assert_eq!(who(&run), [("a", 5), ("a", 6), ("a", 7), ("a", 8), ("a", 9)], "{error}");
        assert_eq!(run.reply.unwrap().call, run.calls[4]);
        assert!(b.calls().is_empty());
        assert_eq!(metrics.of(metric::RETRIES, &format!("a,m,{}", error.class())), 4.0);
    }
}

#[tokio::test(start_paused = true)]
async fn waits_double_at_most_and_no_two_questions_wait_the_same() {
    let mut firsts = Vec::new();
    for seed in 0..100 {
        let a = Script::always(server());
        let run = chain(&LlmConfig::default(), &[&a]).seeded(seed).ask(&request(), 1, &mut Discard).await;
        assert_eq!(run.calls.len(), 5);
        let gaps = gaps(&a.calls());
        assert!(gaps.iter().zip([1, 2, 4, 8]).all(|(gap, bound)| *gap <= bound * SECOND), "{gaps:?}");
        firsts.push(gaps[0]);
    }
    let below = |ms| firsts.iter().filter(|gap| gap.as_millis() < ms).count();
    assert!((5..45).contains(&below(250)) && (55..95).contains(&below(750)), "{firsts:?}");
}

#[tokio::test(start_paused = true)]
async fn the_next_provider_comes_after_four_retries_and_its_first_call_is_none() {
    let (a, b, c) = (Script::always(server()), Script::always(server()), Script::always(Says::Answer));
    let run = ask(&chain(&LlmConfig::default(), &[&a, &b, &c])).await;
    assert_eq!(who(&run)[4..], [("a", 5), ("b", 6), ("c", 7)]);
    assert!(run.reply.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_is_not_set_up_is_left_at_once() {
    for status in [401, 403, 404] {
        let (a, b) = (Script::always(client(status)), Script::always(Says::Answer));
        let run = ask(&chain(&LlmConfig::default(), &[&a, &b])).await;
        assert_eq!(who(&run), [("a", 1), ("b", 2)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_at_fault_or_refused_is_put_to_nobody_else() {
    for says in [client(400), client(413), client(422), Says::Fails(CallError::Refused)] {
        let (a, b) = (Script::always(says), Script::always(Says::Answer));
        let run = ask(&chain(&LlmConfig::default(), &[&a, &b])).await;
        assert_eq!(who(&run), [("a", 1)]);
        let exhausted = run.reply.unwrap_err();
        assert_eq!((exhausted.provider.as_str(), exhausted.providers.len()), ("a", 1));
    }
}

#[tokio::test(start_paused = true)]
async fn no_retry_is_waited_for_that_would_come_too_late() {
    let mut refused = 0;
    for seed in 0..50 {
        let a = Script::always(server());
        let chain = chain(&LlmConfig::default(), &[&a]).seeded(seed);
        let began = Instant::now();
        let request = ChatRequest { deadline: Some(began + SECOND), ..request() };
        let run = chain.ask(&request, 1, &mut Discard).await;
        assert!(began.elapsed() < SECOND, "it would have ended with the deadline");
        assert!(!run.reply.unwrap_err().is_deadline());
        refused += usize::from(run.calls.len() < 5);
    }
    assert!(refused > 10, "some waits must have been too long");
}

#[tokio::test(start_paused = true)]
async fn a_step_ends_in_time_whatever_is_left_to_try() {
    let (a, b) = (Script::always(Says::Hangs), Script::always(Says::Answer));
    let began = Instant::now();
    let run = ask(&chain(&LlmConfig::default(), &[&a, &b])).await;
    assert_eq!(began.elapsed(), 60 * SECOND);
    assert!(matches!(run.reply.unwrap_err().error, CallError::Timeout { step: Step::Ask, .. }));
    assert!(b.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_time_nobody_is_asked() {
    let a = Script::always(Says::Answer);
    let request = ChatRequest { deadline: Some(Instant::now()), ..request() };
    let run = chain(&LlmConfig::default(), &[&a]).ask(&request, 1, &mut Discard).await;
    assert!(run.reply.unwrap_err().is_deadline());
    assert!(run.calls.is_empty() && a.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_providers_wish_to_wait_is_kept_by_all_questions_and_none_come_back_together() {
    let a = Script::new([limited(5)], Says::Answer);
    let chain = chain(&LlmConfig::default(), &[&a]);
    let began = Instant::now();
    let later = async {
        sleep(SECOND).await;
        join_all((0..20).map(|_| ask(&chain))).await
    };
    let (first, later) = tokio::join!(ask(&chain), later);
    assert_eq!(who(&first), [("a", 1), ("a", 2)]);
    assert!(later.iter().all(|run| run.reply.is_ok() && run.calls.len() == 1));
    let mut after: Vec<Duration> = a.calls().iter().map(|call| *call - began).skip(1).collect();
    assert_eq!(after.len(), 21);
    assert!(after.iter().all(|at| (5 * SECOND..=6 * SECOND).contains(at)), "{after:?}");
    after.dedup();
    assert!(after.len() > 15, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_is_waited_for_only_when_nobody_else_is_ready() {
    let (a, b) = (Script::new([limited(5)], Says::Answer), Script::new([Says::Answer], client(401)));
    let chain = chain(&LlmConfig::default(), &[&a, &b]);
    let began = Instant::now();
    assert_eq!(who(&ask(&chain).await), [("a", 1), ("b", 2)]);
    assert_eq!(began.elapsed(), Duration::ZERO);
    let run = ask(&chain).await;
    assert_eq!(who(&run), [("b", 1), ("a", 2)], "the other one failed, and there is time");
    assert!(run.reply.is_ok() && began.elapsed() >= 5 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_beyond_the_step_exhausts_the_chain_at_once() {
    let a = Script::always(limited(3_600));
    let chain = chain(&LlmConfig::default(), &[&a]);
    let began = Instant::now();
    let first = ask(&chain).await;
    assert_eq!(first.calls.len(), 1);
    let second = ask(&chain).await;
    assert!(second.calls.is_empty() && a.calls().len() == 1);
    assert_eq!(began.elapsed(), Duration::ZERO);
    let exhausted = second.reply.unwrap_err();
    assert_eq!(exhausted.error, CallError::Paused { retry_after: 60 * SECOND });
    assert!(exhausted.to_string().contains("a: not asked: it wants no call for another 60 s"), "{exhausted}");
    sleep(61 * SECOND).await;
    a.set(Says::Answer);
    assert!(ask(&chain).await.reply.is_ok(), "the longest pause is over");
}

#[tokio::test(start_paused = true)]
async fn open_breakers_exhaust_the_chain_at_once_and_say_so() {
    let metrics = Metrics::default();
    let _recording = metrics::set_default_local_recorder(&metrics);
    let (a, b) = (Script::always(server()), Script::always(server()));
    let config = LlmConfig {
        breaker: BreakerConfig { consecutive_failures: 2, ..BreakerConfig::default() },
        ..LlmConfig::default()
    };
    let chain = chain(&config, &[&a, &b]);
    let opening = ask(&chain).await;
    assert_eq!(who(&opening), [("a", 1), ("a", 2), ("b", 3), ("b", 4)], "an open breaker ends the retries");
    let began = Instant::now();
    let runs = join_all((0..50).map(|_| ask(&chain))).await;
    assert_eq!((began.elapsed(), a.calls().len(), b.calls().len()), (Duration::ZERO, 2, 2));
    for run in runs {
        assert!(run.calls.is_empty());
        let exhausted = run.reply.unwrap_err();
        assert!(matches!(exhausted.error, CallError::BreakerOpen { .. }));
        let names: Vec<&str> = exhausted.providers.iter().map(|one| one.provider.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(exhausted.to_string().contains("a: not asked: it failed too often"), "{exhausted}");
    }
    assert_eq!(metrics.of(metric::BREAKER_REFUSALS, "a,m"), 50.0);
    assert_eq!(metrics.of(metric::EXHAUSTED, "breaker-open"), 50.0);
    assert_eq!(metrics.of(metric::BREAKER_STATE, "a,m"), 2.0);
    assert_eq!(metrics.of(metric::BREAKER_TRANSITIONS, "a,m,open"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_is_not_waited_for_when_the_breaker_is_open_beyond_it() {
    let a = Script::always(server());
    let config = LlmConfig {
        breaker: BreakerConfig { consecutive_failures: 1, ..BreakerConfig::default() },
        ..LlmConfig::default()
    };
    let chain = chain(&config, &[&a]);
    ask(&chain).await;
    // Another call was under way meanwhile, and came back with a limit.
    chain.links[0].gate.close(Instant::now(), 5 * SECOND);
    let began = Instant::now();
    let run = ask(&chain).await;
    assert_eq!((began.elapsed(), a.calls().len()), (Duration::ZERO, 1));
    assert_eq!(run.reply.unwrap_err().error, CallError::BreakerOpen { retry_after: 30 * SECOND });
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_recovers_gets_three_probes_and_then_everything() {
    let metrics = Metrics::default();
    let _recording = metrics::set_default_local_recorder(&metrics);
    let a = Script::always(server());
    let chain = chain(&LlmConfig::default(), &[&a]);
    join_all((0..10).map(|_| ask(&chain))).await;
    let calls = a.calls().len();
    sleep(31 * SECOND).await;
    a.set(Says::Hangs);
    let probing = join_all((0..10).map(|_| ask(&chain)));
    assert!(timeout_at(Instant::now() + SECOND, probing).await.is_err(), "the probes hang and are cancelled");
    assert_eq!(a.calls().len(), calls + 3);
    assert_eq!(metrics.of(metric::BREAKER_STATE, "a,m"), 1.0);
    a.set(Says::Answer);
    for _ in 0..10 {
        assert!(ask(&chain).await.reply.is_ok(), "their permits were given back");
    }
    assert_eq!(metrics.of(metric::BREAKER_STATE, "a,m"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_not_one_call_passes_while_the_breaker_is_open() {
    let a = Script::always(server());
    let chain = chain(&LlmConfig::default(), &[&a]);
    let questions = (0..600).map(|n| {
        let chain = &chain;
        async move {
            sleep(n * SECOND / 10).await;
            ask(chain).await
        }
    });
    join_all(questions).await;
    let calls = a.calls();
    let silences: Vec<Duration> = gaps(&calls).into_iter().filter(|gap| *gap > 10 * SECOND).collect();
    assert!(!silences.is_empty() && silences.iter().all(|gap| *gap >= 30 * SECOND), "{silences:?}");
    // Ten failures open it, and each half-open moment has one to three probes.
    assert!(calls.len() <= 20, "{}", calls.len());
}

#[tokio::test(start_paused = true)]
async fn neither_limits_nor_faults_of_the_caller_nor_its_deadline_open_a_breaker() {
    let config = LlmConfig { retries: RetryConfig { max: 0, ..RetryConfig::default() }, ..LlmConfig::default() };
    let limited = Says::Fails(CallError::RateLimited { retry_after: None });
    for says in [limited, client(400), client(401), Says::Fails(CallError::Refused), Says::Hangs] {
        let a = Script::always(says);
        let chain = chain(&config, &[&a]);
        for _ in 0..50 {
            let request = ChatRequest { deadline: Some(Instant::now() + SECOND / 10), ..request() };
            assert_eq!(chain.ask(&request, 1, &mut Discard).await.calls.len(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_exhausted_budget_ends_the_retries_of_a_provider() {
    let metrics = Metrics::default();
    let _recording = metrics::set_default_local_recorder(&metrics);
    let config = LlmConfig {
        retry_budget: RetryBudgetConfig { share: 0.2, per_second: 0.1, window_s: 10 },
        ..LlmConfig::default()
    };
    let (a, b) = (Script::always(server()), Script::always(Says::Answer));
    let chain = chain(&config, &[&a, &b]);
    assert_eq!(who(&ask(&chain).await), [("a", 1), ("a", 2), ("b", 3)], "one retry is in the floor");
    assert_eq!(who(&ask(&chain).await), [("a", 1), ("b", 2)]);
    assert_eq!(metrics.of(metric::RETRY_BUDGET_EXHAUSTED, "a,m"), 2.0);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_call_counts_what_it_may_have_cost() {
    let metrics = Metrics::default();
    let _recording = metrics::set_default_local_recorder(&metrics);
    let a = Script::always(Says::Hangs);
    let chain = chain(&LlmConfig::default(), &[&a]);
    assert!(timeout_at(Instant::now() + SECOND, ask(&chain)).await.is_err());
    assert_eq!(metrics.of(metric::CALLS, "a,m,cancelled"), 1.0);
    assert_eq!((metrics.of(metric::TOKENS, "a,m,in"), metrics.of(metric::TOKENS, "a,m,out")), (6.0, 2.0));
    assert_eq!(metrics.of(metric::COST, "a,m"), 6.0);
    assert_eq!(metrics.of(metric::CALLS_IN_FLIGHT, "a"), 0.0);
}
