//! What must come of requests, written down a second time: the state of each document and each idempotency key, moved
//! by one decision after the other in the order in which Weir says it made them.

use std::collections::{HashMap, HashSet};

use crate::workload::{Request, There, Wish};

/// What a request can end as, by the names of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The document changes.
    Accepted,
    /// It was so already.
    Duplicate,
    /// A later request was decided before.
    Superseded,
    /// Its idempotency key was used for something else.
    Conflict,
    /// It can't be done.
    Rejected,
}

impl Kind {
    /// By its name in the schema.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::Accepted, Self::Duplicate, Self::Superseded, Self::Conflict, Self::Rejected];
        all.into_iter().find(|kind| kind.name() == name)
    }

    /// Its name in the schema.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Superseded => "superseded",
            Self::Conflict => "conflict",
            Self::Rejected => "rejected",
        }
    }

    /// Whether its request lies among the dead letters.
    #[must_use]
    pub fn is_dead(self) -> bool {
        matches!(self, Self::Conflict | Self::Rejected)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Stored { content: String },
    Deleted,
    Failed,
}

#[derive(Debug)]
struct Known {
    last: i64,
    standing: Standing,
}

#[derive(Debug)]
struct FirstUse {
    revision: i64,
    fingerprint: String,
    kind: Kind,
}

/// What a document shows in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Revision of the last accepted request.
    pub revision: i64,
    /// Its text; none when it deleted the document.
    pub text: Option<String>,
}

/// All documents of all tenants.
#[derive(Debug, Default)]
pub struct Model {
    documents: HashMap<String, Known>,
    keys: HashMap<(&'static str, String), FirstUse>,
    rejected: HashSet<String>,
    /// What each document shows.
    pub shown: HashMap<String, Shown>,
}

impl Model {
    /// Takes the next decision: `request`, which lay at `revision`, was said to have become `said`. Complains when
    /// that is not what must have come of it, and goes on from what must have.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decide(&mut self, request: &Request, revision: i64, said: Kind) -> Result<(), String> {
        let subject = request.subject();
        let known = self.documents.get(&subject);
        let waits = request.may_wait();
        let expected = self.expect(request, revision, known);
        let Some(expected) = expected else {
            return Err(format!("decided again, though it was decided as the latest (said: {})", said.name()));
        };
        let store_failed = said == Kind::Rejected && expected != Kind::Superseded && waits;
        let fresh_key = self.first_use(request).is_none();
        if store_failed && expected != Kind::Conflict {
            // The store failed each time it was asked. Only when it said that there is nothing is that remembered.
            self.rejected.insert(request.id.clone());
            if matches!(&request.wish, Wish::Claim { there: There::MissingUntilHealed, .. }) {
                self.remember(request, revision, Standing::Failed, Kind::Rejected, fresh_key);
            }
            return Ok(());
        }
        let late = waits || self.rejected.contains(&request.id);
        let verdict = if said != expected {
            Err(format!("said to be {}, must be {}", said.name(), expected.name()))
        } else if said == Kind::Superseded && !late {
            Err("superseded, though nothing held it up: decided after a later request".to_owned())
        } else {
            Ok(())
        };
        if expected.is_dead() {
            self.rejected.insert(request.id.clone());
        }
        if !fresh_key && self.first_use(request).is_some_and(|first| first.revision != revision) {
            return verdict;
        }
        match expected {
            Kind::Accepted => {
                let (standing, text) = match (&request.wish, request.content()) {
                    (Wish::Text(text) | Wish::Claim { text, .. }, Some(content)) => {
                        (Standing::Stored { content }, Some(text.clone()))
                    }
                    _ => (Standing::Deleted, None),
                };
                self.shown.insert(subject, Shown { revision, text });
                self.remember(request, revision, standing, expected, fresh_key);
            }
            Kind::Duplicate => {
                let standing = request.content().map_or(Standing::Deleted, |content| Standing::Stored { content });
                self.remember(request, revision, standing, expected, fresh_key);
            }
            Kind::Rejected => self.remember(request, revision, Standing::Failed, expected, fresh_key),
            Kind::Superseded => self.remember_key(request, revision, expected),
            Kind::Conflict => {}
        }
        verdict
    }

    /// What must come of it; nothing when it needs no decision any more.
    fn expect(&self, request: &Request, revision: i64, known: Option<&Known>) -> Option<Kind> {
        if let Some(first) = self.first_use(request).filter(|first| first.revision != revision) {
            let same = first.fingerprint == request.fingerprint();
            return Some(if same { first.kind } else { Kind::Conflict });
        }
        if let Some(known) = known {
            if known.last > revision {
                return Some(Kind::Superseded);
            }
            if known.last == revision && known.standing != Standing::Failed {
                return None;
            }
        }
        let standing = known.map(|known| &known.standing);
        Some(match (&request.wish, request.content()) {
            (Wish::Impossible(_), _) => Kind::Rejected,
            (Wish::Delete, _) if standing == Some(&Standing::Deleted) => Kind::Duplicate,
            (_, Some(content)) if standing == Some(&Standing::Stored { content: content.clone() }) => Kind::Duplicate,
            _ => Kind::Accepted,
        })
    }

    fn first_use(&self, request: &Request) -> Option<&FirstUse> {
        self.keys.get(&(request.tenant, request.key.clone()?))
    }

    fn remember(&mut self, request: &Request, revision: i64, standing: Standing, kind: Kind, fresh_key: bool) {
        self.documents.insert(request.subject(), Known { last: revision, standing });
        if fresh_key || kind != Kind::Superseded {
            self.remember_key(request, revision, kind);
        }
    }

    fn remember_key(&mut self, request: &Request, revision: i64, kind: Kind) {
        if let Some(key) = &request.key {
            let first = FirstUse { revision, fingerprint: request.fingerprint(), kind };
            self.keys.insert((request.tenant, key.clone()), first);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;
    use crate::workload::Impossible;

    fn request(id: &str, wish: Wish) -> Request {
        Request { id: id.into(), tenant: "acme", document: "d".into(), wish, key: None, metadata: None }
    }

    fn text(id: &str, text: &str) -> Request {
        request(id, Wish::Text(text.into()))
    }

    fn claim(id: &str, there: There) -> Request {
        request(id, Wish::Claim { name: format!("{id}.txt"), text: format!("text of {id}"), there })
    }

    #[test]
    fn duplicates_deletions_and_what_is_impossible_end_as_they_must() {
        let mut model = Model::default();
        model.decide(&text("a", "one"), 1, Kind::Accepted).unwrap();
        model.decide(&text("b", "one"), 2, Kind::Duplicate).unwrap();
        assert!(model.decide(&text("c", "one"), 3, Kind::Accepted).is_err());
        model.decide(&request("d", Wish::Impossible(Impossible::Picture)), 4, Kind::Rejected).unwrap();
        model.decide(&text("e", "one"), 5, Kind::Accepted).unwrap();
        model.decide(&request("f", Wish::Delete), 6, Kind::Accepted).unwrap();
        model.decide(&request("g", Wish::Delete), 7, Kind::Duplicate).unwrap();
        let shown = model.shown.remove("acme/d").unwrap();
        assert_eq!(shown, Shown { revision: 6, text: None });
    }

    #[test]
    fn a_request_that_waited_for_its_store_is_superseded_by_a_later_one_and_by_nothing_else() {
        let mut model = Model::default();
        let late = claim("a", There::After(Duration::from_secs(1)));
        model.decide(&text("b", "two"), 2, Kind::Accepted).unwrap();
        assert!(model.decide(&late, 1, Kind::Accepted).is_err(), "older than what is there");
        let mut model = Model::default();
        model.decide(&text("b", "two"), 2, Kind::Accepted).unwrap();
        model.decide(&late, 1, Kind::Superseded).unwrap();
        let mut model = Model::default();
        model.decide(&text("b", "two"), 2, Kind::Accepted).unwrap();
        assert!(model.decide(&text("a", "one"), 1, Kind::Superseded).is_err(), "nothing held it up");
    }

    #[test]
    fn what_the_store_failed_for_may_be_accepted_later() {
        let mut model = Model::default();
        let failing = claim("a", There::FailingUntilHealed);
        model.decide(&failing, 1, Kind::Rejected).unwrap();
        model.decide(&failing, 1, Kind::Accepted).unwrap();
        let missing = claim("b", There::MissingUntilHealed);
        model.decide(&missing, 2, Kind::Rejected).unwrap();
        model.decide(&text("c", "three"), 3, Kind::Accepted).unwrap();
        model.decide(&missing, 2, Kind::Superseded).unwrap();
        assert!(model.decide(&text("d", "four"), 4, Kind::Rejected).is_err());
    }

    #[test]
    fn a_key_repeats_its_first_outcome_and_refuses_another_content() {
        let mut model = Model::default();
        let keyed = |id, content| Request { key: Some("k".into()), ..text(id, content) };
        model.decide(&keyed("a", "one"), 1, Kind::Accepted).unwrap();
        model.decide(&text("b", "two"), 2, Kind::Accepted).unwrap();
        model.decide(&keyed("c", "one"), 3, Kind::Accepted).unwrap();
        assert_eq!(model.shown.get("acme/d").unwrap().revision, 2, "a repeat changes nothing");
        model.decide(&keyed("d", "other"), 4, Kind::Conflict).unwrap();
        assert!(model.decide(&text("a", "two"), 2, Kind::Accepted).is_err(), "decided already");
    }
}
