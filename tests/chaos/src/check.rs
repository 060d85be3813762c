//! What must hold in the end, whatever was broken on the way.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use crate::evidence::{Evidence, Seen};
use crate::model::{Kind, Model};
use crate::workload::{Request, Wish};

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Violation {
    /// What was promised.
    pub promise: &'static str,
    /// Where it was broken.
    pub what: String,
}

/// What became of the requests, and what is wrong with that.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Everything that must not be.
    pub violations: Vec<Violation>,
    /// Requests by what they ended as.
    pub ends: BTreeMap<&'static str, usize>,
    /// The model after all decisions.
    pub model: Model,
}

const REQUESTS: &str = "every request reaches its lane once, in the order it was sent";
/// Broken by requests without an outcome, with several, or with a wrong one.
pub const OUTCOMES: &str = "every request has one outcome, the right one";
/// Broken by records that say the same again.
pub const ONCE: &str = "nothing is committed twice";
/// Broken by changes that do not reach every topic.
pub const LOST: &str = "nothing is lost on the way";
/// Broken by an older revision behind a newer one.
pub const ORDER: &str = "revisions of a document only rise";
const STATUS: &str = "every change ends in one status of its document";
const LETTERS: &str = "the dead letters are the requests that were turned away";
const LAG: &str = "no stage is behind";
const OPEN: &str = "no transaction is open";
const POINTS: &str = "the points are those of the shown revisions";
const READABLE: &str = "every record fits its schema";

impl Verdict {
    fn add(&mut self, promise: &'static str, what: impl Into<String>) {
        self.violations.push(Violation { promise, what: what.into() });
    }

    fn add_all(&mut self, promise: &'static str, all: impl IntoIterator<Item = String>) {
        self.violations.extend(all.into_iter().map(|what| Violation { promise, what }));
    }
}

/// Holds what is in Kafka against what was asked for.
#[must_use]
pub fn judge(sent: &[Request], evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    verdict.add_all(READABLE, evidence.unreadable.iter().cloned());
    let revisions = arrivals(sent, evidence, &mut verdict);
    let by_id: HashMap<&str, &Request> = sent.iter().map(|request| (request.id.as_str(), request)).collect();
    let lasts = outcomes(&by_id, &revisions, evidence, &mut verdict);
    let accepted = changes(&lasts, &revisions, evidence, &mut verdict);
    carried("chunks", &accepted, evidence, &mut verdict);
    carried("embeddings", &accepted, evidence, &mut verdict);
    let stated = statuses(&accepted, evidence, &mut verdict);
    letters(&by_id, &lasts, evidence, &mut verdict);
    count_ends(&lasts, &revisions, &stated, evidence, &mut verdict);
    for place in evidence.places.iter().filter(|place| place.lag() != 0) {
        let lag = place.lag();
        verdict.add(LAG, format!("{} is {lag} behind in {}/{}", place.stage, place.topic, place.lane));
    }
    for (topic, lane, behind) in &evidence.open {
        verdict.add(OPEN, format!("{topic}/{lane}: the last stable offset lies {behind} before the end"));
    }
    verdict
}

/// Holds the points against the model.
pub fn judge_points(evidence: &Evidence, verdict: &mut Verdict) {
    let differences = evidence.points.differences(&verdict.model.shown);
    verdict.add_all(POINTS, differences);
}

/// Where each request lies in its lane, which is its revision.
fn arrivals(sent: &[Request], evidence: &Evidence, verdict: &mut Verdict) -> HashMap<String, i64> {
    let mut revisions = HashMap::new();
    let mut order: HashMap<String, Vec<&str>> = HashMap::new();
    for seen in evidence.of("requests") {
        let id = seen.fields.text("request_id");
        if revisions.insert(id.to_owned(), seen.at.offset).is_some() {
            verdict.add(ONCE, format!("request {id} again at {}", seen.at));
        } else {
            order.entry(seen.fields.subject()).or_default().push(id);
        }
    }
    let mut wanted: HashMap<String, Vec<&str>> = HashMap::new();
    for request in sent {
        wanted.entry(request.subject()).or_default().push(&request.id);
        if !revisions.contains_key(&request.id) {
            verdict.add(REQUESTS, format!("request {} never arrived", request.id));
        }
    }
    for (subject, ids) in &order {
        let expected = wanted.get(subject).map_or(&[][..], Vec::as_slice);
        let expected: Vec<&&str> = expected.iter().filter(|id| revisions.contains_key(**id)).collect();
        if ids.iter().collect::<Vec<_>>() != expected {
            verdict.add(REQUESTS, format!("{subject}: arrived as {ids:?}, sent as {expected:?}"));
        }
    }
    revisions
}

/// The last outcome of each request, after the model has followed all of them.
fn outcomes(
    by_id: &HashMap<&str, &Request>,
    revisions: &HashMap<String, i64>,
    evidence: &Evidence,
    verdict: &mut Verdict,
) -> HashMap<String, Kind> {
    let mut model = Model::default();
    let mut lasts: HashMap<String, Kind> = HashMap::new();
    let mut counts: HashMap<String, usize> = HashMap::new();
    for seen in evidence.of("request-outcomes") {
        let (id, name) = (seen.fields.text("request_id"), seen.fields.text("outcome"));
        let (Some(request), Some(revision), Some(kind)) = (by_id.get(id), revisions.get(id), Kind::named(name)) else {
            verdict.add(OUTCOMES, format!("{}: {name:?} of request {id:?}, which nobody sent", seen.at));
            continue;
        };
        *counts.entry(id.to_owned()).or_default() += 1;
        if let Err(wrong) = model.decide(request, *revision, kind) {
            let reason = seen.fields.text("reason");
            let what = format!(
                "{}: request {id} for {} (revision {revision}): {wrong}; reason: {reason:?}",
                seen.at,
                request.subject()
            );
            verdict.add(OUTCOMES, what);
        }
        lasts.insert(id.to_owned(), kind);
    }
    for id in by_id.keys() {
        let (told, replays) =
            (counts.get(*id).copied().unwrap_or_default(), evidence.replays.get(*id).copied().unwrap_or_default());
        if told != 1 + replays {
            verdict.add(OUTCOMES, format!("request {id} has {told} outcomes and was replayed {replays} times"));
        }
    }
    verdict.model = model;
    lasts
}

/// A change of a document.
type Change = (String, i64);

/// Accepted changes, by document and revision: whether they delete. Each is in `documents` once.
fn changes(
    lasts: &HashMap<String, Kind>,
    revisions: &HashMap<String, i64>,
    evidence: &Evidence,
    verdict: &mut Verdict,
) -> HashMap<Change, bool> {
    let mut found: HashMap<Change, bool> = HashMap::new();
    let mut requests = HashSet::new();
    for seen in evidence.of("documents") {
        let Some(change) = change(seen, verdict) else { continue };
        let id = seen.fields.text("request_id");
        if found.insert(change.clone(), seen.fields.flag("deleted")).is_some() {
            verdict.add(ONCE, format!("{} revision {} again at {}", change.0, change.1, seen.at));
        }
        if lasts.get(id) != Some(&Kind::Accepted) || revisions.get(id) != Some(&change.1) {
            let said = lasts.get(id).map_or("nothing", |kind| kind.name());
            verdict.add(OUTCOMES, format!("{}: document of request {id}, of which was said: {said}", seen.at));
        }
        requests.insert(id.to_owned());
    }
    rising("documents", evidence, verdict);
    // A repeat with a key is told of the first outcome and changes nothing.
    let mut repeated = 0;
    for (id, _) in lasts.iter().filter(|(id, kind)| **kind == Kind::Accepted && !requests.contains(*id)) {
        repeated += 1;
        let told = evidence.of("request-outcomes").filter(|seen| seen.fields.text("request_id") == id).last();
        let of = told.and_then(|seen| Some((seen.fields.subject(), seen.fields.number("revision")?)));
        if !of.as_ref().is_some_and(|of| found.contains_key(of) && revisions.get(id) != Some(&of.1)) {
            verdict.add(LOST, format!("request {id} was accepted ({of:?}), and there is no document of it"));
        }
    }
    *verdict.ends.entry("repeat of an accepted one").or_default() += repeated;
    found
}

fn change(seen: &Seen, verdict: &mut Verdict) -> Option<Change> {
    let revision = seen.fields.number("revision");
    if revision.is_none() {
        verdict.add(READABLE, format!("{}: no revision", seen.at));
    }
    Some((seen.fields.subject(), revision?))
}

fn rising(topic: &str, evidence: &Evidence, verdict: &mut Verdict) {
    let mut latest: HashMap<String, i64> = HashMap::new();
    let mut wrong = Vec::new();
    for seen in evidence.of(topic) {
        let (subject, revision) = (seen.fields.subject(), seen.fields.number("revision").unwrap_or_default());
        let before = latest.insert(subject.clone(), revision);
        if let Some(before) = before.filter(|before| *before > revision) {
            wrong.push(format!("{}: {subject} goes from revision {before} back to {revision}", seen.at));
        }
    }
    verdict.add_all(ORDER, wrong);
}

/// Each change lies in a topic behind `documents` once, in order; documents here have one batch.
fn carried(topic: &str, accepted: &HashMap<Change, bool>, evidence: &Evidence, verdict: &mut Verdict) {
    let mut found = HashSet::new();
    for seen in evidence.of(topic) {
        let Some(change) = change(seen, verdict) else { continue };
        let batch = seen.fields.number("batch").unwrap_or_default();
        if !accepted.contains_key(&change) {
            verdict
                .add(ONCE, format!("{}: {} revision {}, of which there is no document", seen.at, change.0, change.1));
        }
        let (subject, revision) = (change.0.clone(), change.1);
        if !found.insert((change, batch)) {
            verdict.add(ONCE, format!("{subject} revision {revision} batch {batch} again at {}", seen.at));
        }
    }
    for (subject, revision) in accepted.keys().filter(|change| !found.contains(&((*change).clone(), 0))) {
        verdict.add(LOST, format!("{subject} revision {revision} is not in {topic}"));
    }
    rising(topic, evidence, verdict);
}

/// Changes of which a status tells. One that was overtaken by a later one may have none.
fn statuses(accepted: &HashMap<Change, bool>, evidence: &Evidence, verdict: &mut Verdict) -> HashSet<Change> {
    let mut stated = HashSet::new();
    for seen in evidence.of("document-status") {
        let Some(change) = change(seen, verdict) else { continue };
        let state = seen.fields.text("state");
        let expected = match accepted.get(&change) {
            Some(true) => "deleted",
            Some(false) => "indexed",
            None => "nothing, for there is no such change",
        };
        if state != expected {
            verdict
                .add(STATUS, format!("{}: {} revision {} is {state}, must be {expected}", seen.at, change.0, change.1));
        }
        if !stated.insert(change.clone()) {
            verdict
                .add(STATUS, format!("{} revision {} is said to be {state} again at {}", change.0, change.1, seen.at));
        }
    }
    rising("document-status", evidence, verdict);
    let shown: Vec<Change> =
        verdict.model.shown.iter().map(|(subject, shown)| (subject.clone(), shown.revision)).collect();
    for (subject, revision) in shown.into_iter().filter(|change| !stated.contains(change)) {
        verdict.add(STATUS, format!("{subject}: its last revision {revision} has no status"));
    }
    stated
}

/// Outstanding dead letters are those of the extractor whose request was turned away last, one each.
fn letters(by_id: &HashMap<&str, &Request>, lasts: &HashMap<String, Kind>, evidence: &Evidence, verdict: &mut Verdict) {
    let mut outstanding = HashSet::new();
    for (stage, letters) in &evidence.letters {
        for letter in letters {
            let id = letter.request.clone().unwrap_or_default();
            if stage != "extract" || !lasts.get(&id).is_some_and(|kind| kind.is_dead()) {
                verdict.add(LETTERS, format!("{}: a dead letter of request {id:?}: {}", letter.at, letter.why));
            } else if !outstanding.insert(id.clone()) {
                verdict.add(ONCE, format!("{}: a second dead letter of request {id}", letter.at));
            }
        }
    }
    for (id, kind) in lasts.iter().filter(|(_, kind)| kind.is_dead()) {
        if !outstanding.contains(id) {
            verdict.add(LETTERS, format!("request {id} is {} and has no dead letter", kind.name()));
        }
        let request = by_id.get(id.as_str());
        if *kind == Kind::Rejected && request.is_some_and(|request| matches!(request.wish, Wish::Claim { .. })) {
            verdict.add(
                LETTERS,
                format!("request {id} was replayed after its store was healed, and is dead all the same"),
            );
        }
    }
}

/// What each request ended as: exactly one thing.
fn count_ends(
    lasts: &HashMap<String, Kind>,
    revisions: &HashMap<String, i64>,
    stated: &HashSet<Change>,
    evidence: &Evidence,
    verdict: &mut Verdict,
) {
    for seen in evidence.of("documents") {
        let Some(revision) = seen.fields.number("revision") else { continue };
        let end = match (stated.contains(&(seen.fields.subject(), revision)), seen.fields.flag("deleted")) {
            (true, true) => "deleted",
            (true, false) => "indexed",
            (false, _) => "overtaken before it was indexed",
        };
        *verdict.ends.entry(end).or_default() += 1;
    }
    for kind in lasts.values().filter(|kind| **kind != Kind::Accepted) {
        let end = match kind {
            Kind::Accepted => continue,
            Kind::Duplicate => "duplicate",
            Kind::Superseded => "superseded",
            Kind::Conflict => "dead letter: conflict",
            Kind::Rejected => "dead letter: rejected",
        };
        *verdict.ends.entry(end).or_default() += 1;
    }
    let open = revisions.keys().filter(|id| !lasts.contains_key(*id)).count();
    if open > 0 {
        verdict.ends.insert("NOTHING", open);
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
