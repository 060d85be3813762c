//! The checks find what is wrong, in histories made for it.
#![allow(clippy::unwrap_used)]

use apache_avro::types::Value;

use super::*;
use crate::avro::Fields;
use crate::evidence::{At, Letter};
use crate::kafka::Place;
use crate::points::{Chunk, Head};
use crate::workload::Impossible;

fn sent() -> Vec<Request> {
    let request = |id: &str, document: &str, wish| Request {
        id: id.into(),
        tenant: "acme",
        document: document.into(),
        wish,
        key: None,
        metadata: None,
    };
    vec![
        request("r0", "a", Wish::Text("one".into())),
        request("r1", "a", Wish::Text("two".into())),
        request("r2", "b", Wish::Text("three".into())),
        request("r3", "b", Wish::Delete),
        request("r4", "a", Wish::Impossible(Impossible::Picture)),
    ]
}

fn seen(topic: &str, offset: i64, fields: &[(&str, Value)]) -> Seen {
    let at = At { topic: topic.into(), lane: 0, offset };
    let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    Seen { at, fields: Fields::of(fields.collect()) }
}

fn text(text: &str) -> Value {
    Value::String(text.into())
}

/// What a run leaves behind in which nothing went wrong.
fn calm() -> Evidence {
    let mut evidence = Evidence::default();
    for (offset, request) in (0..).zip(sent()) {
        let about = [
            ("request_id", text(&request.id)),
            ("tenant", text("acme")),
            ("document", text(&request.document)),
            ("revision", Value::Long(offset)),
            ("deleted", Value::Boolean(request.wish == Wish::Delete)),
            ("batch", Value::Int(0)),
        ];
        let with = |more: &[(&'static str, Value)]| [&about[..], more].concat();
        let rejected = matches!(request.wish, Wish::Impossible(_));
        let outcome = text(if rejected { "rejected" } else { "accepted" });
        let mut add = |topic: &'static str, fields: Vec<(&'static str, Value)>| {
            evidence.records.entry(topic).or_default().push(seen(topic, offset, &fields));
        };
        add("requests", with(&[]));
        add("request-outcomes", with(&[("outcome", outcome)]));
        if !rejected {
            let state = text(if request.wish == Wish::Delete { "deleted" } else { "indexed" });
            ["documents", "chunks", "embeddings"].into_iter().for_each(|topic| add(topic, with(&[])));
            add("document-status", with(&[("state", state)]));
        }
    }
    let at = At { topic: "dlq.extract".into(), lane: 0, offset: 0 };
    let letter = Letter { at, request: Some("r4".into()), why: "a picture".into() };
    evidence.letters.insert("extract".into(), vec![letter]);
    let head = |revision, deleted, chunks| vec![Head { revision, deleted, chunks }];
    evidence.points.heads.extend([("acme/a".to_owned(), head(1, false, 1)), ("acme/b".to_owned(), head(3, true, 0))]);
    let chunk = Chunk { id: "p".into(), revision: 1, text: "two".into() };
    evidence.points.chunks.insert("acme/a".into(), vec![chunk]);
    evidence
}

fn verdict(evidence: &Evidence) -> Verdict {
    let mut verdict = judge(&sent(), evidence);
    judge_points(evidence, &mut verdict);
    verdict
}

#[test]
fn a_calm_run_has_no_violations_and_every_request_ended_as_one_thing() {
    let verdict = verdict(&calm());
    assert_eq!(verdict.violations, []);
    assert_eq!(verdict.ends.values().sum::<usize>(), sent().len(), "{:?}", verdict.ends);
    assert_eq!(verdict.ends.get("dead letter: rejected"), Some(&1));
}

/// Breaks a calm run in one way; that promise must be found broken.
#[track_caller]
fn breaks(promise: &str, hurt: impl FnOnce(&mut Evidence)) {
    let mut evidence = calm();
    hurt(&mut evidence);
    let violations = verdict(&evidence).violations;
    assert!(violations.iter().any(|violation| violation.promise == promise), "{violations:#?}");
}

fn lose(evidence: &mut Evidence, topic: &str, place: usize) {
    evidence.records.get_mut(topic).unwrap().remove(place);
}

fn repeat(evidence: &mut Evidence, topic: &str, place: usize) {
    let records = evidence.records.get_mut(topic).unwrap();
    let mut again = records.get(place).unwrap().clone();
    again.at.offset = 99;
    records.push(again);
}

#[test]
fn whatever_is_lost_is_noticed() {
    breaks(REQUESTS, |evidence| lose(evidence, "requests", 0));
    breaks(OUTCOMES, |evidence| lose(evidence, "request-outcomes", 1));
    breaks(LOST, |evidence| lose(evidence, "documents", 0));
    breaks(LOST, |evidence| lose(evidence, "chunks", 0));
    breaks(LOST, |evidence| lose(evidence, "embeddings", 3));
    breaks(STATUS, |evidence| lose(evidence, "document-status", 1));
    breaks(LETTERS, |evidence| evidence.letters.clear());
    breaks(POINTS, |evidence| _ = evidence.points.heads.remove("acme/b"));
    breaks(POINTS, |evidence| _ = evidence.points.chunks.remove("acme/a"));
}

#[test]
fn whatever_is_done_twice_is_noticed() {
    for topic in ["requests", "documents", "chunks", "embeddings"] {
        breaks(ONCE, |evidence| repeat(evidence, topic, 1));
    }
    breaks(OUTCOMES, |evidence| repeat(evidence, "request-outcomes", 1));
    breaks(STATUS, |evidence| repeat(evidence, "document-status", 1));
    breaks(POINTS, |evidence| {
        let chunk = Chunk { id: "q".into(), revision: 0, text: "one".into() };
        evidence.points.chunks.get_mut("acme/a").unwrap().insert(0, chunk);
    });
}

#[test]
fn whatever_goes_backwards_or_hangs_is_noticed() {
    breaks(REQUESTS, |evidence| evidence.records.get_mut("requests").unwrap().swap(0, 1));
    breaks(ORDER, |evidence| evidence.records.get_mut("documents").unwrap().swap(0, 1));
    breaks(ORDER, |evidence| evidence.records.get_mut("document-status").unwrap().swap(2, 3));
    breaks(OUTCOMES, |evidence| evidence.records.get_mut("request-outcomes").unwrap().swap(0, 1));
    breaks(LAG, |evidence| {
        evidence.places.push(Place { stage: "chunk", topic: "documents", lane: 0, committed: 3, end: 4 });
    });
    breaks(OPEN, |evidence| evidence.open.push(("chunks".into(), 0, 2)));
}
