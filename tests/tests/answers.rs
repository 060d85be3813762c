//! Questions while the services that answer and score them are killed: each has exactly one answer, each answer exactly
//! one evaluation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::HashSet;
use std::time::Duration;

use weir_contracts::{Answer, AnswerStatus, Evaluation, Topic};
use weir_testing::{Broker, Isolation, Pipeline, eventually, program};

const LANES: i32 = 4;
const PATIENCE: Duration = Duration::from_secs(120);
const TENANTS: usize = 6;
const QUESTIONS: usize = 3_000;
/// (service, stage, its input, an output of its transactions)
const STAGES: [(&str, &str, &str, &str); 3] = [
    ("generate", "route-questions", "questions", "asks"),
    ("generate", "answer", "asks", "answers"),
    ("eval", "eval", "answers", "evaluations"),
];
/// Keeps transactions open for a while, so that kills find them open, and batches small, so that there are many.
const HURTABLE: [(&str, &str); 2] =
    [("WEIR_RUNNER__COMMIT_INTERVAL_MS", "400"), ("WEIR_RUNNER__MAX_BATCH_RECORDS", "20")];

fn tenant(n: usize) -> String {
    format!("tenant-{}", n % TENANTS)
}

async fn ask(pipeline: &Pipeline) {
    let publisher = pipeline.publisher();
    let mut pending = Vec::new();
    for n in 0..QUESTIONS {
        let text = format!("Who raises gate {} of weir {}?", n % 17, n % 20);
        let question = Pipeline::question(&format!("question-{n}"), &tenant(n), text);
        let publisher = publisher.clone();
        let key = tenant(n);
        pending.push(tokio::spawn(async move {
            publisher.publish(weir_stage::Output::new(Topic::QUESTIONS, key, question)).await
        }));
    }
    for sent in pending {
        sent.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_question_has_one_answer_and_one_evaluation_though_the_services_are_killed() {
    let broker = Broker::start(|mut config| {
        config.registry = true;
        config.qdrant = true;
        config.qdrant_binary = Some(program("qdrant-embedded"));
        config
    });
    let mut pipeline = Pipeline::new(&broker.stack, "answers", LANES).await;
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

    ask(&pipeline).await;
    // A machine that is busy with other tests must not make answers worse.
    let patient = ("WEIR_GENERATE__RETRIEVE_TIMEOUT_MS", "20000");
    pipeline.start("generate", "0", &[HURTABLE.as_slice(), &[patient]].concat());
    pipeline.start("eval", "0", &HURTABLE);
    for (service, stage, input, output) in STAGES {
        pipeline.kill_at_work(service, stage, input, output, PATIENCE);
    }
    pipeline.supervise_until("every answer is scored and no lag is left", PATIENCE, |pipeline| {
        pipeline.topics.read("evaluations", Isolation::Committed).len() >= QUESTIONS
            && STAGES.iter().all(|(_, stage, input, _)| pipeline.topics.lag(stage, input) == 0)
    });

    let answers: Vec<Answer> = pipeline.records(Topic::ANSWERS).await;
    let answered: HashSet<_> = answers.iter().map(|answer| answer.request_id.clone()).collect();
    assert_eq!((answers.len(), answered.len()), (QUESTIONS, QUESTIONS), "one answer a question");
    assert!(answers.iter().all(|answer| answer.status == AnswerStatus::Extractive), "made of the documents");
    let evaluations: Vec<Evaluation> = pipeline.records(Topic::EVALUATIONS).await;
    let scored: HashSet<_> = evaluations.iter().map(|evaluation| evaluation.request_id.clone()).collect();
    assert_eq!((evaluations.len(), scored), (QUESTIONS, answered), "one evaluation an answer");
    let mut aborted = false;
    for (_, stage, _, output) in STAGES {
        eventually("no transaction is left open", PATIENCE, || !pipeline.topics.has_open_transaction(output));
        assert!(pipeline.topics.read(&format!("dlq.{stage}"), Isolation::Committed).is_empty(), "{stage}");
        let (committed, everything) = pipeline.sizes(output);
        aborted |= everything > committed;
    }
    assert!(aborted, "no kill aborted anything: the test proved nothing");
}
