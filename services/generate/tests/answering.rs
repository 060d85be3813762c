//! Answering, with passages from memory and a provider that does as a script says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod house;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use house::{House, LANES, MILL, NOW, Plan, answer, delivery, home, house, question, written};
use weir_contracts::{AnswerStatus, Provenance, Question, Topic, header};
use weir_generate::config::GenerateConfig;
use weir_generate::{Rerank, RerankError, RouteQuestions};
use weir_llm::testing::{Behaviour, FakeProvider};
use weir_stage::{Batch, Change, ConcurrentStage, Failure, LaneView, Outcome, Stage};

#[tokio::test]
async fn without_a_provider_the_answer_is_made_of_the_documents_sentences() {
    let (answer, usage) = house(&[]).await.ask(question("q", "When was the mill at Ulm built?")).await;
    assert_eq!(answer.status, AnswerStatus::Extractive);
    assert_eq!(answer.provenance, Provenance::Fresh);
    assert!(answer.text.starts_with("The mill at Ulm was built in 1912. [1]"), "{}", answer.text);
    let cited = &answer.citations[0];
    assert_eq!((cited.document.as_str(), cited.revision.ordinal(), cited.start), ("mill.md", 7, 10));
    assert!(usage.is_empty());
    assert_eq!(answer.attempt, 0);
    assert!(answer.timings.contains_key("retrieve") && answer.timings["queued"] == "40.0");
}

#[tokio::test]
async fn a_models_answer_is_streamed_cited_and_accounted_for() {
    let text = "It was built in 1912 [1]. It is not the ship [2, 9] or [7].";
    let provider = FakeProvider::start(Behaviour::Answer(text.into())).await.unwrap();
    let house = house(&[&provider]).await;
    let (answer, usage) = house.ask(question("q", "When was the mill at Ulm built?")).await;
    assert_eq!(answer.status, AnswerStatus::Complete);
    assert_eq!(answer.text, text);
    assert_eq!(
        answer.citations.iter().map(|c| (c.marker, c.document.as_str())).collect::<Vec<_>>(),
        [(1, "mill.md"), (2, "ship.md")]
    );
    assert_eq!(
        (answer.provider.as_str(), answer.model.as_str(), answer.prompt_version.as_str()),
        ("p0", "model", "v1")
    );
    assert_eq!(answer.attempt, 1);
    assert_eq!(house.tokens.text(1), text, "the pieces concatenate to the answer");
    assert_eq!(house.tokens.taken.lock().unwrap()[0].1, home(), "in the lane of the question");
    assert_eq!(answer.text_hash.len(), 64);
    assert_eq!(usage.len(), 1);
    assert_eq!((usage[0].status.as_str(), usage[0].feature.as_deref()), ("ok", Some("search")));
    assert_eq!(usage[0].input_tokens, answer.input_tokens);
    assert!(answer.cost_usd > 0.0 && !answer.usage_estimated);
    let body = &provider.received()[0].body;
    let prompt = body["messages"][1]["content"].as_str().unwrap();
    assert!(prompt.contains(MILL) && prompt.contains("Question: When was"), "{prompt}");
}

#[tokio::test]
async fn a_search_is_bound_to_the_tenant_the_filter_and_the_most_that_is_allowed() {
    let house = house(&[]).await;
    let filter = BTreeMap::from([("kind".to_owned(), "mill".to_owned())]);
    let narrow =
        Question { filter: filter.clone(), top_k: Some(1_000), ..question("q", "When was the mill at Ulm built?") };
    house.ask(narrow).await;
    assert_eq!(*house.searches.lock().unwrap(), [("acme".to_owned(), filter, GenerateConfig::default().max_top_k)]);
}

#[tokio::test]
async fn when_no_provider_answers_the_answer_is_extractive_and_degraded() {
    let first = FakeProvider::start(Behaviour::status(503)).await.unwrap();
    let second = FakeProvider::start(Behaviour::Hang).await.unwrap();
    let house = house(&[&first, &second]).await;
    let (answer, usage) = house.ask(question("q", "When was the mill at Ulm built?")).await;
    assert_eq!((answer.status, answer.provenance), (AnswerStatus::Extractive, Provenance::Degraded));
    assert!(answer.text.contains("1912. [1]"));
    assert!(answer.reason.unwrap().contains("timed out"));
    assert_eq!(usage.iter().map(|u| u.status.as_str()).collect::<Vec<_>>(), ["server", "timeout"]);
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_taken_over_or_marked_incomplete() {
    let text = "It was built in 1912 [1].";
    let cut = FakeProvider::start(Behaviour::Cut { text: text.into(), words: 3 }).await.unwrap();
    let whole = FakeProvider::start(Behaviour::Answer(text.into())).await.unwrap();
    let both = house(&[&cut, &whole]).await;
    let (answer, usage) = both.ask(question("q", "When was the mill at Ulm built?")).await;
    assert_eq!((answer.status, answer.attempt, answer.text.as_str()), (AnswerStatus::Complete, 2, text));
    assert_eq!((both.tokens.text(1), both.tokens.text(2)), ("It was built ".to_owned(), text.to_owned()));
    assert_eq!(usage.len(), 2);
    assert_eq!(answer.input_tokens, usage.iter().map(|u| u.input_tokens).sum::<i64>());

    let alone = house(&[&cut]).await;
    let (answer, _) = alone.ask(question("q", "When was the mill at Ulm built?")).await;
    assert_eq!((answer.status, answer.text.as_str()), (AnswerStatus::Incomplete, "It was built "));
    assert!(answer.reason.unwrap().contains("broke off"));
}

#[tokio::test]
async fn an_answer_that_cites_nothing_says_so() {
    let provider = FakeProvider::start(Behaviour::Answer("The documents do not say.".into())).await.unwrap();
    let (answer, _) = house(&[&provider]).await.ask(question("q", "When was the mill at Ulm built?")).await;
    assert_eq!(answer.status, AnswerStatus::Complete);
    assert!(answer.citations.is_empty() && answer.reason.unwrap().contains("cites none"));
}

#[tokio::test]
async fn an_expired_question_costs_nothing() {
    let provider = FakeProvider::start(Behaviour::Quote).await.unwrap();
    let house = house(&[&provider]).await;
    house.away.store(true, Ordering::Relaxed);
    let mut late = question("q", "When was the mill at Ulm built?");
    late.deadline = Some(i64::try_from(NOW).unwrap());
    let (answer, usage) = house.ask(late).await;
    assert_eq!(answer.status, AnswerStatus::Expired);
    assert!(usage.is_empty() && provider.calls() == 0);
}

#[tokio::test]
async fn a_question_that_names_no_deadline_has_two_minutes_where_a_model_answers() {
    let provider = FakeProvider::start(Behaviour::Quote).await.unwrap();
    let asked_at = i64::try_from(NOW).unwrap() - 120_000;
    for (created_at, status) in [(asked_at + 5_000, AnswerStatus::Complete), (asked_at, AnswerStatus::Expired)] {
        let asked = Question { created_at, ..question("q", "When was the mill at Ulm built?") };
        let (answer, _) = house(&[&provider]).await.ask(asked.clone()).await;
        assert_eq!(answer.status, status);
        let (extractive, _) = house(&[]).await.ask(asked).await;
        assert_eq!(extractive.status, AnswerStatus::Extractive, "no model, no deadline");
    }
}

#[tokio::test]
async fn a_deadline_that_passes_during_the_call_ends_it() {
    let provider = FakeProvider::start(Behaviour::Hang).await.unwrap();
    let house = house(&[&provider]).await;
    let mut hasty = question("q", "When was the mill at Ulm built?");
    hasty.deadline = Some(i64::try_from(NOW).unwrap() + 60);
    let (answer, usage) = house.ask(hasty).await;
    assert_eq!(answer.status, AnswerStatus::Expired);
    assert_eq!(usage[0].status, "timeout");
    assert!(usage[0].estimated && usage[0].input_tokens > 0, "the cancelled call may have cost");
}

#[tokio::test]
async fn what_the_documents_are_not_about_has_no_context() {
    let provider = FakeProvider::start(Behaviour::Quote).await.unwrap();
    let house = house(&[&provider]).await;
    let (answer, _) = house.ask(question("q", "Wieviel kostet Fernsehen heute?")).await;
    assert_eq!(answer.status, AnswerStatus::NoContext);
    assert!(answer.citations.is_empty() && provider.calls() == 0);
}

#[tokio::test]
async fn what_can_not_be_answered_is_answered_as_failed_with_the_reason() {
    let house = house(&[]).await;
    let mut unknown = question("q", "When was the mill built?");
    unknown.prompt_version = Some("v99".into());
    for (question, word) in
        [(unknown, "v99"), (question("q", " \n"), "empty"), (question("q", &"é".repeat(300_000)), "bytes")]
    {
        let (answer, _) = house.ask(question).await;
        assert_eq!(answer.status, AnswerStatus::Failed);
        assert!(answer.question.len() <= 64 << 10, "the answer must fit a record whatever was asked");
        assert!(answer.reason.unwrap().contains(word));
    }
    // What the runner rejects, too: whoever asked waits.
    let failure = Failure::new("panic", "the stage panicked");
    let lane = house.lane.begin().await.unwrap();
    let mut change = Change::new(lane.as_ref(), 5);
    let words = house.stage.last_words(&delivery(question("q", "When?")), &failure, &mut change).unwrap();
    let answer = answer(&Outcome::emit_all(words));
    assert_eq!((answer.status, answer.reason.as_deref()), (AnswerStatus::Failed, Some("the stage panicked")));
}

#[tokio::test]
async fn a_vector_store_that_is_away_takes_no_answer_down() {
    let provider = FakeProvider::start(Behaviour::Quote).await.unwrap();
    let config = GenerateConfig { cache_fresh_s: 0, answer_unaided: false, ..GenerateConfig::default() };
    let house = Plan { providers: &[&provider], config, ..Plan::default() }.build().await;
    house.away.store(true, Ordering::Relaxed);
    let (answer, _) = house.ask(question("q", "When was the mill at Ulm built?")).await;
    assert_eq!((answer.status, answer.provenance), (AnswerStatus::NoContext, Provenance::Degraded));
    assert!(answer.reason.unwrap().contains("nothing could be looked up"));
    assert_eq!(provider.calls(), 0, "nothing to answer from");
    // What was found before is used for a while.
    house.away.store(false, Ordering::Relaxed);
    house.ask(question("q", "When was the mill at Ulm built?")).await;
    house.away.store(true, Ordering::Relaxed);
    let (answer, _) = house.ask(question("q", "When was the mill at Ulm built?")).await;
    assert_eq!((answer.status, answer.provenance), (AnswerStatus::Complete, Provenance::Degraded));
    assert!(answer.reason.unwrap().contains("passages found"));
}

fn resumed_as(outcome: &Outcome) -> (Provenance, String) {
    let answer = answer(outcome);
    (answer.provenance, answer.prompt_version)
}

#[tokio::test]
async fn a_model_answers_without_the_documents_while_they_can_not_be_searched_and_that_is_said() {
    let provider = FakeProvider::start(Behaviour::Answer("The documents can not be searched.".into())).await.unwrap();
    let house = house(&[&provider]).await;
    house.away.store(true, Ordering::Relaxed);
    let (answer, usage) = house.ask(question("q", "When was the mill at Ulm built?")).await;
    assert_eq!((answer.status, answer.provenance), (AnswerStatus::Complete, Provenance::Degraded));
    assert!(answer.citations.is_empty() && answer.reason.unwrap().contains("answered without the documents"));
    assert_eq!((answer.prompt_version.as_str(), usage.len()), ("unaided/v1", 1));
    assert_eq!(usage[0].prompt_version, "unaided/v1");
    let body = provider.received().pop().unwrap().body;
    assert!(body["messages"][0]["content"].as_str().unwrap().contains("can not be searched"), "{body}");
    // An owner that takes it over says so, too.
    let asked = delivery(question("r", "When was the mill at Ulm built?"));
    drop(house.stage.process(&asked, house.state()).await.unwrap());
    let resumed = house.outcome(&asked).await;
    assert_eq!(resumed_as(&resumed), (Provenance::Degraded, "unaided/v1".into()));
    assert_eq!(provider.calls(), 2);
    // It is an answer for want of a better one.
    house.away.store(false, Ordering::Relaxed);
    let (answer, _) = house.ask(question("q", "When was the mill at Ulm built?")).await;
    assert_eq!((answer.provenance, answer.prompt_version.as_str()), (Provenance::Fresh, "v1"));
}

/// Turns the order round, or fails.
struct Backwards {
    fails: AtomicBool,
}

impl Rerank for Backwards {
    fn order<'a>(&'a self, _: &'a str, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<usize>, RerankError>> {
        let order = match self.fails.load(Ordering::Relaxed) {
            true => Err(RerankError::Unreachable("away".into())),
            false => Ok((0..texts.len()).rev().collect()),
        };
        Box::pin(async move { order })
    }

    fn candidates(&self) -> usize {
        9
    }
}

#[tokio::test]
async fn a_reranker_orders_more_than_is_used_and_may_be_away() {
    let provider = FakeProvider::start(Behaviour::Quote).await.unwrap();
    let backwards = Arc::new(Backwards { fails: AtomicBool::new(false) });
    let rerank = Some(Arc::clone(&backwards) as Arc<dyn Rerank>);
    let config = GenerateConfig { top_k: 1, min_similarity: 0.0, ..GenerateConfig::default() };
    let house = Plan { providers: &[&provider], config, rerank, ..Plan::default() }.build().await;
    let asked = |house: &House| house.searches.lock().unwrap().last().unwrap().2;
    let (answer, _) = house.ask(question("a", "When was the mill at Ulm built?")).await;
    assert_eq!((answer.citations[0].document.as_str(), asked(&house)), ("ship.md", 9));
    backwards.fails.store(true, Ordering::Relaxed);
    let (answer, _) = house.ask(question("b", "When was the mill at Ulm built?")).await;
    assert_eq!(answer.citations[0].document.as_str(), "mill.md", "the order of the search stands");
}

#[tokio::test]
async fn asks_are_answered_side_by_side() {
    let slow = Behaviour::Drip { text: "Built in 1912 [1].".into(), pause: Duration::from_millis(60) };
    let provider = FakeProvider::start(slow).await.unwrap();
    let house = house(&[&provider]).await;
    let asked: Vec<_> =
        (0..12).map(|at| delivery(question(&format!("q{at}"), &format!("When was mill {at} at Ulm built?")))).collect();
    let outcomes = futures::future::join_all(asked.iter().map(|asked| house.outcome(asked))).await;
    let ids: Vec<String> = outcomes.iter().map(|outcome| answer(outcome).request_id.to_string()).collect();
    assert_eq!(ids, (0..12).map(|at| format!("q{at}")).collect::<Vec<_>>());
    assert!(provider.connections() > 1, "one after another, each would find the connection of the one before it free");
}

#[tokio::test]
async fn an_answer_whose_stream_kafka_refuses_is_whole_all_the_same() {
    let provider = FakeProvider::start(Behaviour::Quote).await.unwrap();
    let house = house(&[&provider]).await;
    house.tokens.refuses.store(true, Ordering::Relaxed);
    let (answer, _) = house.ask(question("q", "When was the mill at Ulm built?")).await;
    assert_eq!((answer.status, answer.attempt), (AnswerStatus::Complete, 0));
    assert!(answer.text.contains("1912"));
}

#[tokio::test]
async fn questions_go_to_their_tenants_home_lane_with_their_deadline() {
    let mut with_header = delivery(question("q", "?"));
    with_header.headers.set(header::DEADLINE, "1234");
    with_header.record.created_at = 0;
    let outcomes = RouteQuestions::new(LANES).process(Batch::new(&[with_header])).await.unwrap();
    let output = &outcomes[0].outputs()[0];
    assert_eq!(output.lane, Some(home()));
    assert_eq!(output.key.as_deref(), Some(b"acme".as_slice()));
    assert_eq!(output.headers.text(header::DEADLINE), Some("1234"));
    let ask: Vec<Question> = written(&outcomes[0], Topic::ASKS);
    assert_eq!((ask[0].deadline, ask[0].created_at), (Some(1234), 5));
}
