//! An outage drill: 20 questions a second for five minutes, the provider down from the first to the third. How questions are
//! answered meanwhile, what reaches the dead provider, how soon things are as before; beside the same with breaker and cache
//! off. A third of the questions are asked again and again; half a minute into the outage the documents of half the tenants
//! change, so that what was answered before is stale there.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use color_eyre::eyre::{Result, ensure};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use weir_contracts::{Answer, AnswerStatus, Provenance, Question, Topic, Usage};
use weir_llm::testing::{Behaviour, FakeProvider};
use weir_runner::{Start, TopicReader};
use weir_stage::Output;
use weir_testing::{Broker, Isolation, Pipeline, eventually};

use crate::pipeline::stack;
use crate::{at_least, at_most, percentile};

const LANES: i32 = 4;
const TENANTS: usize = 4;
const DOCUMENTS: usize = 20;
const RATE: u32 = 20;
/// Parts of the drill: healthy, down for two, healthy for two.
const PARTS: u32 = 5;
const LATENCY: Duration = Duration::from_millis(300);
/// Seconds that answers are summed over for the timeline.
const SLICE_S: u32 = 10;
/// Longest wait for the next answer once all questions are asked.
const PATIENCE: Duration = Duration::from_secs(90);
/// What the breaker is allowed: calls before it opens, beside those under way then, and probes a cooldown.
const BEFORE_OPEN: u32 = 20;
const PROBES: u32 = 3;
const COOLDOWN_S: u32 = 30;
const CONCURRENCY: u32 = 64;
const BACK_WITHIN_S: f64 = 35.0;
const PRICE: [(&str, &str); 2] = [
    ("WEIR_LLM__PROVIDERS__MAIN__PRICE__INPUT_PER_MILLION", "1"),
    ("WEIR_LLM__PROVIDERS__MAIN__PRICE__OUTPUT_PER_MILLION", "4"),
];
const BARE: [(&str, &str); 6] = [
    ("WEIR_LLM__BREAKER__CONSECUTIVE_FAILURES", "4000000000"),
    ("WEIR_LLM__BREAKER__MIN_CALLS", "4000000000"),
    ("WEIR_LLM__BREAKER__BURST_MIN_CALLS", "4000000000"),
    ("WEIR_LLM__RETRY_BUDGET__SHARE", "1"),
    ("WEIR_GENERATE__CACHE_FRESH_S", "0"),
    ("WEIR_GENERATE__CACHE_STALE_S", "0"),
];
/// One question in so many is one of those that come again and again, and there are so many of those.
const POPULAR: (usize, usize) = (3, 40);

/// An answer as the drill sees it.
struct Seen {
    asked: Duration,
    came: Duration,
    provenance: String,
    fresh: bool,
}

/// The drill, `part` long each of its five parts, with breaker and cache and without.
pub async fn run(part: Duration) -> Result<Value> {
    let broker = stack();
    let with = drill(&broker, "outage", &[], part).await?;
    let without = drill(&broker, "outage-bare", &BARE, part).await?;
    let figure = |of: &Value, name: &str| of.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let cooldowns = (2.0 * part.as_secs_f64() / f64::from(COOLDOWN_S)).ceil();
    let allowed = f64::from(BEFORE_OPEN + CONCURRENCY) + f64::from(PROBES) * cooldowns;
    let targets = json!({
        "calls_to_the_dead_provider": at_most(figure(&with, "calls_to_the_dead_provider"), allowed),
        "questions_without_exactly_one_answer": at_most(figure(&with, "without_exactly_one_answer"), 0.0),
        "seconds_until_fresh_again": at_most(figure(&with, "seconds_until_fresh_again"), BACK_WITHIN_S),
        "share_of_calls_saved": at_least(
            1.0 - figure(&with, "calls_to_the_dead_provider") / figure(&without, "calls_to_the_dead_provider"), 0.5),
    });
    Ok(json!({ "with_breaker_and_cache": with, "without": without, "targets": targets }))
}

async fn drill(broker: &Broker, name: &str, settings: &[(&str, &str)], part: Duration) -> Result<Value> {
    let provider = FakeProvider::start(Behaviour::Late { latency: LATENCY, then: Box::new(Behaviour::Quote) }).await?;
    let mut pipeline = Pipeline::new(&broker.stack, name, LANES).await;
    for service in ["ingest", "chunk", "embed", "index"] {
        pipeline.start(service, "0", &[]);
    }
    for n in 0..TENANTS {
        pipeline.send(&tenant(n), documents("at dawn")).await;
    }
    tokio::task::block_in_place(|| {
        eventually("the documents are indexed", PATIENCE, || {
            pipeline.topics.lag("index", "embeddings") == 0
                && pipeline.topics.read("document-status", Isolation::Committed).len() >= TENANTS * DOCUMENTS
        });
    });
    let url = provider.base_url();
    let concurrency = CONCURRENCY.to_string();
    let of_provider = [
        ("WEIR_LLM__PROVIDERS__MAIN__BASE_URL", url.as_str()),
        ("WEIR_LLM__PROVIDERS__MAIN__MODEL", "scripted"),
        ("WEIR_GENERATE__CONCURRENCY", concurrency.as_str()),
    ];
    let settings: Vec<_> = of_provider.into_iter().chain(PRICE).chain(settings.iter().copied()).collect();
    pipeline.start("generate", "0", &settings);
    let mut answers: TopicReader<Answer> =
        TopicReader::open(pipeline.kafka(), pipeline.registry(), Topic::ANSWERS, Start::End).await?;
    warm_up(&pipeline, &mut answers).await?;

    let begun = Instant::now();
    let count = RATE * PARTS * u32::try_from(part.as_secs())?;
    let asking = ask(&pipeline, begun, count);
    let watching = watch(&mut answers, begun, count);
    let breaking = async {
        sleep_until(begun + part).await;
        provider.set_down(true);
        sleep_until(begun + part + part / 2).await;
        for n in 0..TENANTS / 2 {
            pipeline.send(&tenant(n), documents("at noon")).await;
        }
        sleep_until(begun + 3 * part).await;
        provider.set_down(false);
    };
    let (asked, seen, ()) = tokio::join!(asking, watching, breaking);
    let (asked, seen) = (asked?, seen?);
    let died = provider.calls_since(begun + part) - provider.calls_since(begun + 3 * part);
    let usage: Vec<Usage> = pipeline.records(Topic::USAGE).await;
    Ok(figures(name, part, &asked, &seen, died, &usage))
}

fn documents(when: &str) -> impl Iterator<Item = (String, String)> {
    (0..DOCUMENTS).map(move |n| {
        (format!("{n}.md"), format!("The lock keeper of weir {n} raises the gate, gate {} at that, {when}.", n % 17))
    })
}

fn tenant(n: usize) -> String {
    format!("tenant-{}", n % TENANTS)
}

fn question(name: &str, n: usize) -> Question {
    let (every, popular) = POPULAR;
    let text = match n.is_multiple_of(every) {
        // Whoever asks it again is of the same tenant.
        true => {
            let n = n / every % popular;
            return Pipeline::question(name, &tenant(n), format!("Who raises the gate of weir {}?", n % DOCUMENTS));
        }
        false => format!("Who raises gate {} of weir {} on day {n}?", n % 17, n % DOCUMENTS),
    };
    Pipeline::question(name, &tenant(n), text)
}

/// The first answer shows that everything runs.
async fn warm_up(pipeline: &Pipeline, answers: &mut TopicReader<Answer>) -> Result<()> {
    let publisher = pipeline.publisher();
    publisher.publish(Output::new(Topic::QUESTIONS, tenant(0), question("warm-up", 0))).await?;
    ensure!(answers.next(PATIENCE).await?.is_some(), "nothing is answered\n{}", pipeline.outputs());
    Ok(())
}

/// Asks at an even rate. When each was asked, by its name.
async fn ask(pipeline: &Pipeline, begun: Instant, count: u32) -> Result<HashMap<String, Duration>> {
    let publisher = pipeline.publisher();
    let mut asked = HashMap::new();
    let mut sending = tokio::task::JoinSet::new();
    for n in 0..count {
        sleep_until(begun + Duration::from_secs(1) * n / RATE).await;
        let (name, n) = (format!("question-{n}"), usize::try_from(n)?);
        let question = question(&name, n);
        asked.insert(name, begun.elapsed());
        let publisher = publisher.clone();
        sending.spawn(async move {
            let key = question.tenant.to_string();
            publisher.publish(Output::new(Topic::QUESTIONS, key, question)).await
        });
    }
    while let Some(sent) = sending.join_next().await {
        sent??;
    }
    Ok(asked)
}

/// Every answer, by its question, until all are there or none comes any more.
async fn watch(
    answers: &mut TopicReader<Answer>,
    begun: Instant,
    count: u32,
) -> Result<HashMap<String, Vec<(Duration, Answer)>>> {
    let mut seen: HashMap<String, Vec<(Duration, Answer)>> = HashMap::new();
    while seen.len() < usize::try_from(count)? {
        let Some(answer) = answers.next(PATIENCE).await? else { break };
        let came = begun.elapsed();
        seen.entry(answer.record.request_id.to_string()).or_default().push((came, answer.record));
    }
    // Whatever comes twice comes soon.
    while let Some(answer) = answers.next(Duration::from_secs(2)).await? {
        seen.entry(answer.record.request_id.to_string()).or_default().push((begun.elapsed(), answer.record));
    }
    Ok(seen)
}

fn figures(
    name: &str,
    part: Duration,
    asked: &HashMap<String, Duration>,
    answers: &HashMap<String, Vec<(Duration, Answer)>>,
    died: usize,
    usage: &[Usage],
) -> Value {
    let once = asked.keys().filter(|name| answers.get(*name).is_some_and(|answers| answers.len() == 1)).count();
    let mut seen: Vec<Seen> = Vec::new();
    for (question, asked) in asked {
        let Some((came, answer)) = answers.get(question).and_then(|answers| answers.first()) else { continue };
        let provenance = format!("{:?} {:?}", answer.provenance, answer.status).to_lowercase();
        let fresh = answer.status == AnswerStatus::Complete && answer.provenance == Provenance::Fresh;
        seen.push(Seen { asked: *asked, came: *came, provenance, fresh });
    }
    seen.sort_by_key(|seen| seen.asked);
    let mut latencies: Vec<f64> =
        seen.iter().map(|seen| seen.came.saturating_sub(seen.asked).as_secs_f64() * 1e3).collect();
    let recovered = 3 * part;
    let fresh_again = seen.iter().filter(|seen| seen.fresh && seen.came >= recovered).map(|seen| seen.came).min();
    let wasted: f64 = usage.iter().filter(|call| call.status != "ok").map(|call| call.cost_usd).sum();
    let timeline = timeline(&seen);
    println!("  {name}: answers by provenance, {SLICE_S} s a line");
    for (at, counts) in &timeline {
        println!("    {at:>4} s  {counts:?}");
    }
    json!({
        "questions": asked.len(),
        "without_exactly_one_answer": asked.len() - once,
        "calls_to_the_dead_provider": died,
        "money_wasted_usd": wasted,
        "answer_p50_ms": percentile(&mut latencies, 50),
        "answer_p95_ms": percentile(&mut latencies, 95),
        "answer_p99_ms": percentile(&mut latencies, 99),
        "seconds_until_fresh_again": fresh_again.map(|came| came.saturating_sub(recovered).as_secs_f64()),
        "by_provenance_over_time": timeline.iter().map(|(at, counts)| json!({ "s": at, "answers": counts })).collect::<Vec<_>>(),
    })
}

fn timeline(seen: &[Seen]) -> BTreeMap<u64, BTreeMap<&str, usize>> {
    let mut slices: BTreeMap<u64, BTreeMap<&str, usize>> = BTreeMap::new();
    for seen in seen {
        let slice = seen.asked.as_secs() / u64::from(SLICE_S) * u64::from(SLICE_S);
        *slices.entry(slice).or_default().entry(seen.provenance.as_str()).or_default() += 1;
    }
    slices
}
