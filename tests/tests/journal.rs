//! A question's journal on real Kafka: whatever happens to its owner, a call that has ended is not made again, by the
//! provider's own books.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;
use weir_contracts::{
    Answer, AnswerStatus, AnswerToken, Limits, OverLimit, Provenance, Question, RequestId, Shown, Tenant, Tier,
    TokenStream, Topic, Usage,
};
use weir_llm::testing::{Behaviour, Books, FakeProvider, Fate};
use weir_runner::{Action, DeadLetters, Filter, KafkaConfig, Pace, Registry, Start, TopicReader};
use weir_stage::Output;
use weir_testing::{Broker, Isolation, Pipeline, eventually, program};

const LANES: i32 = 4;
const PATIENCE: Duration = Duration::from_secs(120);
const TENANTS: usize = 4;
/// Between the last byte of a provider's answer and the commit that says so: an owner that is lost then makes the call again.
/// Generous, for machines that are busy with other tests.
const WINDOW: u64 = 1_500;

fn tenant(n: usize) -> String {
    format!("tenant-{}", n % TENANTS)
}

fn unix_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// A pipeline with documents, and a provider that takes its time.
async fn ready(name: &str) -> (Broker, Pipeline, FakeProvider) {
    let broker = Broker::start(|mut config| {
        config.registry = true;
        config.qdrant = true;
        config.qdrant_binary = Some(program("qdrant-embedded"));
        config
    });
    let mut pipeline = Pipeline::new(&broker.stack, name, LANES).await;
    for service in ["ingest", "chunk", "embed", "index"] {
        pipeline.start(service, "0", &[]);
    }
    for n in 0..TENANTS {
        let text = |n: usize| format!("The lock keeper of weir {n} raises gate {} at dawn.", n % 17);
        pipeline.send(&tenant(n), (0..20).map(|n| (format!("{n}.md"), text(n)))).await;
    }
    eventually("the documents are indexed", PATIENCE, || {
        pipeline.topics.read("document-status", Isolation::Committed).len() == TENANTS * 20
    });
    for service in ["ingest", "chunk", "embed", "index"] {
        pipeline.process(service, "0").kill();
    }
    let (from, to) = (Duration::from_millis(100), Duration::from_millis(1_200));
    let slow = Behaviour::Slow { from, to, seed: 7, then: Box::new(Behaviour::Quote) };
    let provider = FakeProvider::start(slow).await.unwrap();
    (broker, pipeline, provider.with_idempotency())
}

fn start_generate(pipeline: &mut Pipeline, provider: &FakeProvider, instance: &str, more: &[(&str, &str)]) {
    let url = provider.base_url();
    let settings = [
        ("WEIR_LLM__PROVIDERS__FAKE__BASE_URL", url.as_str()),
        ("WEIR_LLM__PROVIDERS__FAKE__MODEL", "fake"),
        ("WEIR_LLM__PROVIDERS__FAKE__HONOURS_IDEMPOTENCY", "true"),
        ("WEIR_LLM__PROVIDERS__FAKE__PRICE__INPUT_PER_MILLION", "1.0"),
        ("WEIR_LLM__PROVIDERS__FAKE__PRICE__OUTPUT_PER_MILLION", "2.0"),
        // It is back at once after a kill.
        ("WEIR_RUNNER__STATIC_MEMBERSHIP", "true"),
        // A busy machine must not make answers worse here.
        ("WEIR_GENERATE__RETRIEVE_TIMEOUT_MS", "10000"),
    ];
    pipeline.start("generate", instance, &[settings.as_slice(), more].concat());
}

async fn publish(pipeline: &Pipeline, questions: impl IntoIterator<Item = Question>) {
    let publisher = pipeline.publisher();
    let mut pending = Vec::new();
    for question in questions {
        let (publisher, key) = (publisher.clone(), question.tenant.to_string());
        pending
            .push(tokio::spawn(async move { publisher.publish(Output::new(Topic::QUESTIONS, key, question)).await }));
    }
    for sent in pending {
        sent.await.unwrap().unwrap();
    }
}

fn question(n: usize) -> Question {
    let text = format!("Who raises gate {} of weir {}? Asked for the {n}th time.", n % 17, n % 20);
    Pipeline::question(&format!("question-{n}"), &tenant(n), text)
}

/// Asks so many questions and kills their owner so many times. Gives the times at which a call may have ended without its
/// owner having committed that.
async fn kill_while_answering(
    pipeline: &mut Pipeline,
    provider: &FakeProvider,
    (questions, kills): (usize, usize),
    more: &[(&str, &str)],
) -> Vec<Range<u64>> {
    publish(pipeline, (0..questions).map(question)).await;
    start_generate(pipeline, provider, "0", more);
    let mut killed = Vec::new();
    for kill in 1..=kills {
        let answered = kill * questions / (kills + 2);
        eventually("it gets on", PATIENCE, || pipeline.topics.read("answers", Isolation::Committed).len() >= answered);
        assert!(pipeline.topics.lag("answer", "asks") > 0, "there is nothing left to be killed for");
        let before = unix_ms();
        pipeline.process("generate", "0").kill();
        killed.push(before.saturating_sub(WINDOW)..unix_ms());
        pipeline.process("generate", "0").restart();
    }
    pipeline.supervise_until("every question is answered", PATIENCE, |pipeline| {
        pipeline.topics.read("answers", Isolation::Committed).len() >= questions
            && pipeline.topics.lag("answer", "asks") == 0
    });
    killed
}

/// Calls that were made again though the one before had ended, and its owner was not lost right after.
fn repeated(books: &Books, killed: &[Range<u64>]) -> (usize, usize) {
    let mut by_key: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for call in &books.calls {
        by_key.entry(call.idempotency_key.as_deref().expect("each call has a key")).or_default().push(call);
    }
    let (mut inside, mut outside) = (0, 0);
    for pair in by_key.values().flat_map(|calls| calls.windows(2)) {
        let (Fate::Finished, Some(ended)) = (pair[0].fate, pair[0].ended_unix_ms) else { continue };
        match killed.iter().any(|window| window.contains(&ended)) {
            true => inside += 1,
            false => outside += 1,
        }
    }
    (inside, outside)
}

/// Somebody who reads answers as they are written, and begins again from the first piece whenever the connection is lost.
#[derive(Default)]
struct Reader {
    streams: HashMap<RequestId, (TokenStream, String)>,
    connections: usize,
}

impl Reader {
    fn shows(screen: &mut String, shown: Vec<Shown>) {
        for shown in shown {
            match shown {
                Shown::Text(text) => screen.push_str(&text),
                Shown::StartOver => screen.clear(),
            }
        }
    }

    /// Reads from the first piece until none comes for `quiet`, or this many have come.
    async fn read(&mut self, pipeline: (&KafkaConfig, Registry), quiet: Duration, pieces: usize) -> usize {
        let (kafka, registry) = pipeline;
        let mut tokens: TopicReader<AnswerToken> =
            TopicReader::open(kafka, registry, Topic::ANSWER_TOKENS, Start::Beginning).await.unwrap();
        self.connections += 1;
        for read in 0..pieces {
            let Some(token) = tokens.next(quiet).await.unwrap() else { return read };
            let (stream, screen) = self.streams.entry(token.record.request_id.clone()).or_default();
            Self::shows(screen, stream.push(&token.record));
        }
        pieces
    }

    /// What stands on the screen once the answer is there.
    fn finish(&mut self, answer: &Answer) -> &str {
        let (stream, screen) = self.streams.entry(answer.request_id.clone()).or_default();
        Self::shows(screen, stream.finish(answer));
        screen
    }
}

/// Reads while questions are answered, and loses its connection after every 500 pieces, until it is told to stop.
async fn read_along(kafka: KafkaConfig, registry: Registry, stop: CancellationToken) -> Reader {
    let mut reader = Reader::default();
    let mut until = 500;
    while !stop.is_cancelled() {
        let read = reader.read((&kafka, registry.clone()), Duration::from_millis(500), until).await;
        until = if read < until { until } else { until + 500 };
    }
    reader
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_questions_survive_kills_each_answered_once_and_no_call_that_ended_is_made_again() {
    const QUESTIONS: usize = 1_000;
    let (_broker, mut pipeline, provider) = ready("journal").await;
    let stop = CancellationToken::new();
    let reading = tokio::spawn(read_along(pipeline.kafka().clone(), pipeline.registry(), stop.clone()));
    let killed = kill_while_answering(&mut pipeline, &provider, (QUESTIONS, 4), &[]).await;
    stop.cancel();
    let along = reading.await.unwrap();

    let answers: Vec<Answer> = pipeline.records(Topic::ANSWERS).await;
    assert_read_whole(&pipeline, along, &answers).await;
    let answered: HashSet<_> = answers.iter().map(|answer| answer.request_id.clone()).collect();
    assert_eq!((answers.len(), answered.len()), (QUESTIONS, QUESTIONS), "one answer a question");
    let wrong: Vec<_> = answers.iter().filter(|answer| answer.status != AnswerStatus::Complete).take(3).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(answers.iter().all(|answer| answer.provenance == Provenance::Fresh));

    let books = provider.books();
    let (inside, outside) = repeated(&books, &killed);
    println!(
        "{} calls, {} charged; repeated within the window: {inside}, outside: {outside}",
        books.sums.calls, books.sums.charged_calls
    );
    assert_eq!(outside, 0, "a call that had ended was made again");
    assert!(books.keys.len() == QUESTIONS && books.keys.values().all(|sums| sums.charged_calls <= 2));
    assert!(books.sums.calls > QUESTIONS as u64, "no kill hit a call: nothing was proven");

    let usage: Vec<Usage> = pipeline.records(Topic::USAGE).await;
    let sum = |of: fn(&Usage) -> i64| u64::try_from(usage.iter().map(of).sum::<i64>()).unwrap();
    let finished: Vec<_> = books.calls.iter().filter(|call| call.charged && call.fate == Fate::Finished).collect();
    assert_eq!(sum(|usage| usage.input_tokens), finished.iter().map(|call| call.input_tokens).sum::<u64>());
    assert_eq!(sum(|usage| usage.output_tokens), finished.iter().map(|call| call.output_tokens).sum::<u64>());

    let mut state = BTreeMap::new();
    for record in pipeline.topics.read("answer-state", Isolation::Committed) {
        state.insert(record.key, record.value);
    }
    let left: Vec<_> = state
        .iter()
        .filter(|(key, value)| !value.is_empty() && (key.starts_with(b"journal/") || key.starts_with(b"flight/")))
        .map(|(key, _)| String::from_utf8_lossy(key))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Whoever read along, and whoever comes when all is over, has each answer byte for byte; and the pieces of the attempt that an
/// answer names, each once and in order, are the answer.
async fn assert_read_whole(pipeline: &Pipeline, mut along: Reader, answers: &[Answer]) {
    let mut late = Reader::default();
    late.read((pipeline.kafka(), pipeline.registry()), Duration::from_secs(2), usize::MAX).await;
    assert!(along.connections > 2 && along.streams.len() > answers.len() / 2, "{} connections", along.connections);
    let mut pieces: HashMap<(RequestId, i32), BTreeMap<i32, String>> = HashMap::new();
    for token in pipeline.records::<AnswerToken>(Topic::ANSWER_TOKENS).await {
        let of_attempt = pieces.entry((token.request_id, token.attempt)).or_default();
        let twice = of_attempt.insert(token.sequence, token.delta);
        assert_eq!(twice, None, "a piece came twice");
    }
    let (mut streamed, mut begun_again) = (0, 0);
    for answer in answers {
        assert_eq!(along.finish(answer), answer.text);
        assert_eq!(late.finish(answer), answer.text);
        begun_again += usize::from(answer.attempt > 1);
        if answer.attempt > 0 {
            let pieces = &pieces[&(answer.request_id.clone(), answer.attempt)];
            assert!(pieces.keys().copied().eq(0..i32::try_from(pieces.len()).unwrap()));
            assert_eq!(pieces.values().map(String::as_str).collect::<String>(), answer.text);
            streamed += 1;
        }
    }
    println!("{streamed} answers streamed, {begun_again} of them begun again; {} connections", along.connections);
    assert!(streamed > answers.len() / 2 && begun_again > 0, "{streamed} streamed, {begun_again} begun again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_for_good_goes_on_at_its_failed_step_and_from_the_beginning_only_where_that_is_asked_for() {
    let (_broker, mut pipeline, provider) = ready("replayed").await;
    let (limit, long) = ("16384", "Too much to say. ".repeat(2_000));
    provider.script([Behaviour::Answer(long), Behaviour::Answer("Ada [1].".into())]);
    let settings = [("WEIR_RUNNER__MAX_RECORD_BYTES", limit), ("WEIR_GENERATE__MAX_OUTPUT_TOKENS", "20000")];
    start_generate(&mut pipeline, &provider, "0", &settings);
    publish(&pipeline, [question(1)]).await;
    let letters = DeadLetters::of(pipeline.kafka(), "answer");
    let replay = async |restart| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let action = Action::Replay { max_replays: 9, parked: false, restart };
            let plan = letters.plan(Filter::default(), &action).await.unwrap();
            if plan.work() == 1 {
                break plan.carry_out(Pace::default(), |_| (), CancellationToken::new()).await.unwrap();
            }
            assert!(tokio::time::Instant::now() < deadline, "it is not among the dead letters\n{}", pipeline.outputs());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let answers = async |count| {
        eventually("it is answered", PATIENCE, || pipeline.topics.read("answers", Isolation::Committed).len() >= count);
        pipeline.records::<Answer>(Topic::ANSWERS).await
    };
    let failed = answers(1).await.pop().unwrap();
    assert_eq!((failed.status, provider.calls()), (AnswerStatus::Failed, 1), "{failed:?}");
    assert_eq!(replay(false).await.replayed, 1);
    let failed = answers(2).await.pop().unwrap();
    assert_eq!((failed.status, provider.calls()), (AnswerStatus::Failed, 1), "a call that ended was made again");
    assert_eq!(replay(true).await.replayed, 1);
    let answer = answers(3).await.pop().unwrap();
    assert_eq!((answer.status, answer.text.as_str()), (AnswerStatus::Complete, "Ada [1]."));
    assert_eq!((answer.attempts, provider.calls()), (2, 2));
    let usage: Vec<Usage> = pipeline.records(Topic::USAGE).await;
    assert_eq!(usage.len(), 2, "each call is accounted for once");
}

/// The negative control.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a negative control of half a minute"]
async fn without_the_journal_the_same_kills_repeat_calls_that_had_ended() {
    let (_broker, mut pipeline, provider) = ready("forgetful").await;
    // Its answers are committed late, so that kills find calls that have ended.
    let more = [
        ("WEIR_TEST_WITHOUT", "journal"),
        ("WEIR_RUNNER__COMMIT_INTERVAL_MS", "3000"),
        ("WEIR_GENERATE__CACHE_FRESH_S", "0"),
        ("WEIR_GENERATE__CACHE_STALE_S", "0"),
    ];
    let killed = kill_while_answering(&mut pipeline, &provider, (150, 2), &more).await;
    let again = provider.books().calls.iter().filter(|call| call.behaviour == "repeat").count();
    assert!(again > 0, "{killed:?}: nothing was repeated: the check proves nothing");
}

fn limited(name: &str, limits: Limits) -> Tenant {
    Tenant {
        name: name.into(),
        tier: Tier::Standard,
        weight: 1,
        lanes: Vec::new(),
        enabled: true,
        limits,
        features: BTreeMap::new(),
        over_limit: OverLimit::Reject,
        prices: BTreeMap::new(),
        semantic_cache: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_holds_over_kills_and_moves_and_the_same_key_is_answered_once() {
    let (_broker, mut pipeline, provider) = ready("budget").await;
    let limits = Limits { usd_per_hour: Some(0.02), ..Limits::default() };
    let publisher = pipeline.publisher();
    let record = limited(&tenant(0), limits);
    publisher.publish(Output::new(Topic::TENANTS, tenant(0), record).in_lane(weir_contracts::Lane(0))).await.unwrap();
    // Two hundred for one tenant against a budget for a few; and two hundred with one key for another.
    let spending = (0..200).map(|n| question(n * TENANTS));
    let repeats = (0..200).map(|n| Question {
        request_id: format!("repeat-{n}").parse().unwrap(),
        idempotency_key: Some("one".into()),
        ..question(1)
    });
    publish(&pipeline, spending.chain(repeats)).await;
    start_generate(&mut pipeline, &provider, "0", &[]);
    eventually("it gets on", PATIENCE, || provider.calls() > 5);
    pipeline.process("generate", "0").kill();
    start_generate(&mut pipeline, &provider, "1", &[]);
    pipeline.supervise_until("every question is answered", PATIENCE, |pipeline| {
        pipeline.topics.read("answers", Isolation::Committed).len() >= 400
    });
    let answers: Vec<Answer> = pipeline.records(Topic::ANSWERS).await;
    let (repeats, spending): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.request_id.as_str().starts_with("repeat"));
    assert_eq!((repeats.len(), spending.len()), (200, 200));
    assert!(repeats.iter().all(|answer| answer.text == repeats[0].text && !answer.text.is_empty()));
    let served = spending.iter().filter(|answer| answer.status == AnswerStatus::Complete).count();
    let rejected = spending.iter().filter(|answer| answer.status == AnswerStatus::Rejected).count();
    assert!(served > 0 && rejected > 0 && served + rejected == 200, "{served} served, {rejected} rejected");
    // Every call of the limited tenant, by the provider's own count and the price list.
    let books = provider.books();
    let of_repeats: HashSet<_> =
        books.calls.iter().filter(|call| call.charged).map(|call| call.idempotency_key.clone()).collect();
    assert!(!of_repeats.is_empty());
    let cost = (books.sums.input_tokens as f64 + 2.0 * books.sums.output_tokens as f64) / 1e6;
    let of_the_others: f64 = repeats.iter().map(|answer| answer.cost_usd).fold(0.0, f64::max);
    assert!(cost - of_the_others <= 0.02 + 1e-9, "{cost} USD of 0.02");
}
