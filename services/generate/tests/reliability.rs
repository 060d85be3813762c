//! What is paid once, shared, limited and remembered.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod house;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use house::{House, NOW, Plan, answer, delivery, question, written};
use weir_contracts::{
    Answer, AnswerStatus, Limits, OverLimit, Provenance, Question, RequestId, Tenant, Tier, Topic, Usage, header,
};
use weir_generate::config::GenerateConfig;
use weir_llm::testing::{Behaviour, FakeProvider};
use weir_stage::{Change, ConcurrentStage, Delivery, Failure, LaneView, MemoryLane, Outcome};

const BUILT: &str = "When was the mill at Ulm built?";

async fn quoting() -> FakeProvider {
    FakeProvider::start(Behaviour::Quote).await.unwrap()
}

/// Answers slowly enough for others to come meanwhile.
async fn slow() -> FakeProvider {
    let pause = Duration::from_millis(40);
    FakeProvider::start(Behaviour::Drip { text: "It was built in 1912 [1].".into(), pause }).await.unwrap()
}

fn keyed(id: &str, key: &str, text: &str) -> Delivery<Question> {
    delivery(Question { idempotency_key: Some(key.into()), ..question(id, text) })
}

fn tenant(limits: Limits, over_limit: OverLimit) -> Tenant {
    Tenant {
        name: "acme".into(),
        tier: Tier::Standard,
        weight: 1,
        lanes: Vec::new(),
        enabled: true,
        limits,
        features: BTreeMap::new(),
        over_limit,
        prices: BTreeMap::new(),
        semantic_cache: None,
    }
}

fn uncached() -> GenerateConfig {
    GenerateConfig { cache_fresh_s: 0, cache_stale_s: 0, ..GenerateConfig::default() }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("did not happen: {what}"));
}

#[tokio::test]
async fn a_repeat_with_the_same_key_gets_the_same_answer_and_costs_nothing() {
    let provider = quoting().await;
    let house = Plan { providers: &[&provider], ..Plan::default() }.build().await;
    let first = answer(&house.outcome(&keyed("first", "k", BUILT)).await);
    let outcome = house.outcome(&keyed("second", "k", BUILT)).await;
    let second = answer(&outcome);
    assert_eq!(second.request_id.as_str(), "second");
    assert_eq!(second.answered_with, Some(RequestId::parse("first").unwrap()));
    let same = |answer: &Answer| (answer.text.clone(), answer.citations.clone(), answer.text_hash.clone(), answer.at);
    assert_eq!(same(&second), same(&first));
    assert!(written::<Usage>(&outcome, Topic::USAGE).is_empty());
    assert_eq!(provider.calls(), 1);
    let other = answer(&house.outcome(&keyed("third", "k", "When was the ship launched?")).await);
    assert_eq!(other.status, AnswerStatus::Conflict);
    assert!(other.reason.unwrap().contains("request first"));
    assert_eq!(provider.calls(), 1);
}

#[tokio::test]
async fn a_repeat_gets_no_answer_that_rests_on_what_was_erased_since() {
    let provider = quoting().await;
    let house = Plan { providers: &[&provider], ..Plan::default() }.build().await;
    let _ = house.outcome(&keyed("first", "k", BUILT)).await;
    house.erased.store(true, Ordering::Relaxed);
    let repeat = answer(&house.outcome(&keyed("second", "k", BUILT)).await);
    assert_eq!((repeat.status, repeat.text.as_str()), (AnswerStatus::Failed, ""));
    assert!(repeat.reason.unwrap().contains("erased"));
}

/// 200 requests that come while the first one is worked on, one way or the other the same.
async fn two_hundred(
    house: &House,
    provider: &FakeProvider,
    request: impl Fn(usize) -> Delivery<Question>,
) -> Vec<Answer> {
    let leader = request(0);
    let others: Vec<_> = (1..=200).map(&request).collect();
    let led = house.outcome(&leader);
    let joined = async {
        until("the first one is under way", || provider.calls() == 1).await;
        for other in &others {
            let outcome = house.outcome(other).await;
            assert!(matches!(outcome, Outcome::Skip { reason: "joined", .. }), "{outcome:?}");
        }
    };
    let (outcome, ()) = tokio::join!(led, joined);
    assert_eq!(written::<Usage>(&outcome, Topic::USAGE).len(), 1);
    written(&outcome, Topic::ANSWERS)
}

#[tokio::test]
async fn two_hundred_who_come_with_the_same_key_or_question_wait_for_the_first_and_pay_nothing() {
    for same_key in [true, false] {
        let provider = slow().await;
        let house = Plan { providers: &[&provider], ..Plan::default() }.build().await;
        let request = |n: usize| match same_key {
            true => keyed(&format!("r{n}"), "k", BUILT),
            false => delivery(question(&format!("r{n}"), BUILT)),
        };
        let answers = two_hundred(&house, &provider, request).await;
        let ids: std::collections::BTreeSet<_> = answers.iter().map(|answer| answer.request_id.clone()).collect();
        assert_eq!((answers.len(), ids.len()), (201, 201), "each has one answer");
        assert!(answers.iter().all(|answer| answer.text == answers[0].text));
        assert_eq!(provider.calls(), 1);
        let left: Vec<_> = house
            .lane
            .keys()
            .into_iter()
            .filter(|key| key.starts_with(b"flight") || key.starts_with(b"journal"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// An owner is lost in the middle of a call.
async fn lost_in_a_call(idempotent: bool) -> (Answer, Vec<Usage>, FakeProvider) {
    let provider = slow().await;
    provider.set_idempotency(idempotent);
    let lane = Arc::new(MemoryLane::default());
    let plan = || Plan { providers: &[], idempotent, lane: Arc::clone(&lane), ..Plan::default() };
    let asked = delivery(question("q", BUILT));
    {
        let house = Plan { providers: &[&provider], ..plan() }.build().await;
        let work = house.outcome(&asked);
        tokio::select! {
            _ = work => panic!("it was not lost"),
            () = until("the call has left", || provider.calls() == 1) => {}
        }
    }
    until("the provider has noticed", || provider.connections() == 0).await;
    let next = Plan { providers: &[&provider], ..plan() }.build().await;
    let outcome = next.outcome(&asked).await;
    (answer(&outcome), written(&outcome, Topic::USAGE), provider)
}

#[tokio::test]
async fn a_call_whose_owner_was_lost_is_made_again_under_the_same_key_and_a_higher_attempt() {
    let (answer, usage, provider) = lost_in_a_call(false).await;
    assert_eq!((answer.status, answer.attempt, answer.attempts), (AnswerStatus::Complete, 2, 2));
    assert_eq!(usage.iter().map(|usage| usage.status.as_str()).collect::<Vec<_>>(), ["unknown", "ok"]);
    assert!(usage[0].estimated && usage[0].cost_usd > 0.0, "it may have cost");
    let keys: Vec<_> = provider.received().into_iter().map(|received| received.idempotency_key.unwrap()).collect();
    assert_eq!((keys.len(), &keys[0]), (2, &keys[1]));
    // A provider that honours the key charges one of them.
    let (answer, usage, _) = lost_in_a_call(true).await;
    assert_eq!((answer.attempt, answer.attempts), (2, 2), "what the first one streamed is no part of this");
    assert_eq!(usage.iter().map(|usage| usage.status.as_str()).collect::<Vec<_>>(), ["ok"]);
}

#[tokio::test]
async fn a_call_that_was_heard_is_not_made_again() {
    let provider = quoting().await;
    let lane = Arc::new(MemoryLane::default());
    let providers = [&provider];
    let plan = || Plan { providers: &providers, lane: Arc::clone(&lane), ..Plan::default() };
    let asked = delivery(question("q", BUILT));
    let first = plan().build().await;
    // The owner is lost before the answer is committed.
    let uncommitted = first.stage.process(&asked, first.state()).await.unwrap();
    assert!(matches!(uncommitted, Outcome::Finally(_)));
    provider.set_down(true);
    let outcome = plan().build().await.outcome(&asked).await;
    let answer = answer(&outcome);
    assert_eq!((answer.status, answer.provenance), (AnswerStatus::Complete, Provenance::Fresh));
    assert_eq!(written::<Usage>(&outcome, Topic::USAGE).len(), 1);
    assert_eq!(provider.calls(), 1);
    assert!(!lane.keys().iter().any(|key| key.starts_with(b"journal")), "{:?}", lane.keys());
}

/// What is said of a question that becomes a dead letter after a model was heard.
async fn failed_after_its_call(house: &House, asked: &Delivery<Question>) -> Outcome {
    drop(house.stage.process(asked, house.state()).await.unwrap());
    let view = house.lane.begin().await.unwrap();
    let mut change = Change::new(view.as_ref(), i64::try_from(NOW).unwrap());
    let failure = Failure::new("panic", "the stage panicked");
    let words = house.stage.last_words(asked, &failure, &mut change).unwrap();
    let writes = change.into_writes();
    view.finish(writes);
    Outcome::emit_all(words)
}

#[tokio::test]
async fn a_replay_from_the_beginning_asks_a_model_again_under_another_key() {
    let provider = quoting().await;
    let house = Plan { providers: &[&provider], idempotent: true, ..Plan::default() }.build().await;
    let mut asked = delivery(question("q", BUILT));
    drop(failed_after_its_call(&house, &asked).await);
    asked.headers.set(header::RESTART, "true");
    let outcome = house.outcome(&asked).await;
    let answer = answer(&outcome);
    assert_eq!((answer.status, answer.attempts), (AnswerStatus::Complete, 2), "what it cost before counts");
    assert_eq!(written::<Usage>(&outcome, Topic::USAGE).len(), 1);
    let keys: BTreeSet<_> = provider.received().into_iter().map(|call| call.idempotency_key).collect();
    assert_eq!(keys.len(), 2);
}

#[tokio::test]
async fn a_question_that_failed_for_good_is_taken_up_where_it_was_when_it_is_replayed() {
    let provider = quoting().await;
    let house = Plan { providers: &[&provider], ..Plan::default() }.build().await;
    let asked = keyed("q", "k", BUILT);
    let said = failed_after_its_call(&house, &asked).await;
    assert_eq!(answer(&said).status, AnswerStatus::Failed);
    assert_eq!(written::<Usage>(&said, Topic::USAGE).len(), 1, "what it cost is told once");
    let outcome = house.outcome(&asked).await;
    assert_eq!(answer(&outcome).status, AnswerStatus::Complete);
    assert!(written::<Usage>(&outcome, Topic::USAGE).is_empty());
    assert_eq!(provider.calls(), 1);
}

#[tokio::test]
async fn what_was_answered_is_answered_again_from_the_cache_as_long_as_it_rests_on_the_same() {
    let provider = quoting().await;
    let house = Plan { providers: &[&provider], ..Plan::default() }.build().await;
    let (first, _) = house.ask(question("a", BUILT)).await;
    let (second, usage) = house.ask(question("b", "  When was the   mill at Ulm built? ")).await;
    assert_eq!(
        (second.status, second.provenance, second.age_ms),
        (AnswerStatus::Complete, Provenance::Cached, Some(0))
    );
    assert_eq!((second.text, second.citations, second.model), (first.text, first.citations, first.model));
    assert!(usage.is_empty());
    let other = Question { filter: BTreeMap::from([("kind".into(), "mill".into())]), ..question("c", BUILT) };
    assert_eq!(house.ask(other).await.0.provenance, Provenance::Fresh, "another filter is another question");
    assert_eq!(provider.calls(), 2);
}

#[tokio::test]
async fn an_equivalent_question_gets_the_same_answer_where_its_tenant_wants_that() {
    let provider = quoting().await;
    let wants = |semantic_cache| Tenant { semantic_cache, ..tenant(Limits::default(), OverLimit::Reject) };
    let providers = [&provider];
    let house = |tenant: Option<Tenant>| Plan {
        providers: &providers,
        tenants: tenant.into_iter().collect(),
        ..Plan::default()
    };
    let asked = "When was the mill at Ulm built?";
    let same = "when was the mill at Ulm built, please";
    for tenant in [None, Some(wants(None)), Some(wants(Some(1.0)))] {
        let house = house(tenant).build().await;
        house.ask(question("a", asked)).await;
        assert_eq!(house.ask(question("b", same)).await.0.provenance, Provenance::Fresh, "off, or not near enough");
    }
    let house = house(Some(wants(Some(0.5)))).build().await;
    let (first, _) = house.ask(question("a", asked)).await;
    let (second, usage) = house.ask(question("b", same)).await;
    assert_eq!((second.provenance, second.text), (Provenance::Cached, first.text));
    assert!(usage.is_empty() && second.reason.unwrap().contains("equivalent"));
    for other in
        ["When was the mill at Ulm not built?", "When was the mill at Kiel built?", "When was the mill 2 at Ulm built?"]
    {
        assert_eq!(house.ask(question("c", other)).await.0.provenance, Provenance::Fresh, "{other}");
    }
    let filtered = Question { filter: BTreeMap::from([("kind".into(), "mill".into())]), ..question("d", same) };
    assert_eq!(house.ask(filtered).await.0.provenance, Provenance::Fresh, "another scope");
    house.revised.store(true, Ordering::Relaxed);
    assert_eq!(house.ask(question("e", same)).await.0.provenance, Provenance::Fresh, "it rests on other revisions now");
}

#[tokio::test]
async fn a_stale_answer_is_given_marked_when_no_model_answers_and_never_from_what_was_erased() {
    let provider = quoting().await;
    let config = GenerateConfig { cache_fresh_s: 0, cache_stale_s: 60, ..GenerateConfig::default() };
    let house = Plan { providers: &[&provider], config, ..Plan::default() }.build().await;
    let (fresh, _) = house.ask(question("a", BUILT)).await;
    provider.set_down(true);
    let (stale, _) = house.ask(question("b", BUILT)).await;
    assert_eq!((stale.status, stale.provenance, stale.age_ms), (AnswerStatus::Complete, Provenance::Stale, Some(0)));
    assert_eq!(stale.text, fresh.text);
    assert!(stale.reason.unwrap().contains("503"));
    house.erased.store(true, Ordering::Relaxed);
    let (extractive, _) = house.ask(question("c", BUILT)).await;
    assert_eq!((extractive.status, extractive.provenance), (AnswerStatus::Extractive, Provenance::Degraded));
}

/// 200 questions at once against a budget for 20, by the provider's own count.
async fn two_hundred_against_a_budget_for_twenty(behaviour: Behaviour) {
    let provider = FakeProvider::start(behaviour).await.unwrap();
    // What a question of this prompt reserves: found out by one that may use all there is.
    let reserved = {
        let probe = quoting().await;
        let limits = Limits { tokens_per_minute: Some(1), ..Limits::default() };
        let tenants = vec![tenant(limits, OverLimit::Reject)];
        let house = Plan { providers: &[&probe], tenants, config: short(), ..Plan::default() }.build().await;
        let mut needed = 1_000;
        loop {
            let limits = Limits { tokens_per_minute: Some(needed), ..Limits::default() };
            let tenants = vec![tenant(limits, OverLimit::Reject)];
            let house =
                Plan { providers: &[&probe], tenants, config: short(), lane: Arc::default(), ..Plan::default() }
                    .build()
                    .await;
            if house.ask(question("q000", BUILT)).await.0.status != AnswerStatus::Rejected {
                break;
            }
            needed += 10;
        }
        drop(house);
        needed
    };
    let budget = 20 * reserved;
    let limits = Limits { tokens_per_minute: Some(budget), ..Limits::default() };
    let tenants = vec![tenant(limits, OverLimit::Reject)];
    let house = Plan { providers: &[&provider], tenants, config: short(), ..Plan::default() }.build().await;
    let asked: Vec<_> = (0..200).map(|n| delivery(question(&format!("q{n:03}"), BUILT))).collect();
    let outcomes = futures::future::join_all(asked.iter().map(|asked| house.outcome(asked))).await;
    let answers: Vec<Answer> = outcomes.iter().map(answer).collect();
    let rejected: Vec<_> = answers.iter().filter(|answer| answer.status == AnswerStatus::Rejected).collect();
    let served = answers.len() - rejected.len();
    assert!(served >= 20, "{served} were served");
    assert!(!rejected.is_empty());
    assert!(rejected.iter().all(|answer| answer.retry_after_ms.is_some_and(|wait| (1..=61_000).contains(&wait))));
    until("the provider has noticed", || provider.connections() == 0 || provider.books().sums.calls >= 20).await;
    let sums = provider.books().sums;
    assert!(sums.input_tokens + sums.output_tokens <= u64::try_from(budget).unwrap(), "{sums:?} of {budget}");
}

fn short() -> GenerateConfig {
    GenerateConfig { max_output_tokens: 40, ..uncached() }
}

#[tokio::test]
async fn a_budget_is_never_overspent_by_the_providers_own_count() {
    two_hundred_against_a_budget_for_twenty(Behaviour::Quote).await;
}

#[tokio::test]
async fn nor_when_the_provider_counts_a_fifth_more_input_than_was_estimated() {
    let then = Box::new(Behaviour::Quote);
    two_hundred_against_a_budget_for_twenty(Behaviour::WrongInputUsage { percent: 120, then }).await;
}

#[tokio::test]
async fn nor_when_the_provider_ignores_the_limit_of_output() {
    let pause = Duration::from_millis(4);
    two_hundred_against_a_budget_for_twenty(Behaviour::Long { words: 2_000, pause }).await;
}

#[tokio::test]
async fn over_a_limit_a_question_waits_where_its_tenant_wants_that_and_there_is_time() {
    let provider = quoting().await;
    let limits = Limits { requests_per_minute: Some(1), ..Limits::default() };
    let tenants = vec![tenant(limits, OverLimit::Queue)];
    let house = Plan { providers: &[&provider], tenants, config: uncached(), ..Plan::default() }.build().await;
    assert_eq!(house.ask(question("a", BUILT)).await.0.status, AnswerStatus::Complete);
    let outcome = house.outcome(&delivery(question("b", BUILT))).await;
    let Outcome::Postpone { failure, wait } = &outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.class, "over-limit");
    assert!(*wait <= Duration::from_secs(61));
    let hasty = Question { deadline: Some(i64::try_from(NOW).unwrap() + 5_000), ..question("c", BUILT) };
    let (rejected, _) = house.ask(hasty).await;
    assert_eq!(rejected.status, AnswerStatus::Rejected);
    assert!(rejected.reason.unwrap().contains("1 requests a minute"), "the limit is named");
}

#[tokio::test]
async fn questions_at_once_are_limited_and_the_place_of_one_that_ends_is_free() {
    let provider = slow().await;
    let limits = Limits { concurrency: Some(1), ..Limits::default() };
    let tenants = vec![tenant(limits, OverLimit::Reject)];
    let house = Plan { providers: &[&provider], tenants, config: uncached(), ..Plan::default() }.build().await;
    let first = delivery(question("a", BUILT));
    let second = async {
        until("the first one is under way", || provider.calls() == 1).await;
        house.ask(question("b", "When was the ship launched in Kiel?")).await.0
    };
    let (first, second) = tokio::join!(house.outcome(&first), second);
    assert_eq!((answer(&first).status, second.status), (AnswerStatus::Complete, AnswerStatus::Rejected));
    assert_eq!(house.ask(question("c", BUILT)).await.0.status, AnswerStatus::Complete);
}

#[tokio::test]
async fn a_question_of_a_disabled_tenant_is_turned_away() {
    let tenants = vec![Tenant { enabled: false, ..tenant(Limits::default(), OverLimit::Reject) }];
    let house = Plan { tenants, ..Plan::default() }.build().await;
    let (answer, _) = house.ask(question("a", BUILT)).await;
    assert_eq!(answer.status, AnswerStatus::Rejected);
}

#[tokio::test]
async fn a_question_outside_its_home_lane_is_forwarded_and_not_answered() {
    let provider = quoting().await;
    let house = Plan { providers: &[&provider], ..Plan::default() }.build().await;
    let mut strayed = delivery(question("a", BUILT));
    strayed.at.lane.0 = (strayed.at.lane.0 + 1) % house::LANES;
    let outcome = house.outcome(&strayed).await;
    let outputs = outcome.outputs();
    assert_eq!((outputs.len(), outputs[0].topic, outputs[0].lane), (1, Topic::ASKS, Some(house::home())));
    assert_eq!(provider.calls(), 0);
}
