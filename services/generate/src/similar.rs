//! Questions that were answered lately, by what they ask: an equivalent one may get the same answer. In memory only, beside the
//! answers, which are in the state of the lane: after a restart or a move of the lane it begins anew.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::gist::Gist;
use crate::meaning::cosine;
use crate::queries::Vector;

/// Questions of one scope that are remembered, the latest.
const OF_A_SCOPE: usize = 256;
/// Scopes that are remembered.
const SCOPES: usize = 512;

/// A question, as it is compared.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) gist: Gist,
    pub(crate) vector: Vector,
}

/// A question that was answered.
#[derive(Debug)]
struct Answered {
    asked: Asked,
    /// Where its answer is.
    key: String,
}

/// Questions that were answered, by scope: all that must be equal, the tenant first.
#[derive(Debug, Default)]
pub(crate) struct Similar(Mutex<HashMap<String, VecDeque<Answered>>>);

impl Similar {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, VecDeque<Answered>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the answer of the nearest equivalent question is, if any is as near as this.
    pub(crate) fn find(&self, scope: &str, asked: &Asked, threshold: f64) -> Option<String> {
        let scopes = self.lock();
        let answered = scopes.get(scope)?.iter().filter(|other| other.asked.gist == asked.gist);
        let near = answered.map(|other| (cosine(&other.asked.vector, &asked.vector), other));
        let nearest = near.filter(|(near, _)| *near >= threshold).max_by(|(a, _), (b, _)| a.total_cmp(b));
        nearest.map(|(_, other)| other.key.clone())
    }

    /// Remembers where the answer of a question is.
    pub(crate) fn note(&self, scope: String, asked: Asked, key: String) {
        let mut scopes = self.lock();
        if scopes.len() >= SCOPES && !scopes.contains_key(&scope) {
            // Whichever: it is a cache.
            let any = scopes.keys().next().cloned();
            any.and_then(|any| scopes.remove(&any));
        }
        let answered = scopes.entry(scope).or_default();
        answered.retain(|other| other.key != key);
        if answered.len() >= OF_A_SCOPE {
            answered.pop_front();
        }
        answered.push_back(Answered { asked, key });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str, vector: [f32; 2]) -> Asked {
        Asked { gist: Gist::of(text), vector: Vector::from(vector) }
    }

    #[test]
    fn only_an_equivalent_question_that_is_near_enough_and_of_the_same_scope_is_found() {
        let similar = Similar::default();
        similar.note("acme".into(), asked("How do I reset my password?", [1.0, 0.0]), "a".into());
        similar.note("acme".into(), asked("how can i reset the password", [0.9, 0.435_89]), "b".into());
        let find = |scope, text, vector, threshold| similar.find(scope, &asked(text, vector), threshold);
        assert_eq!(find("acme", "How to reset a password", [1.0, 0.0], 0.95), Some("a".into()), "the nearest");
        assert_eq!(find("acme", "How to reset a password", [0.0, 1.0], 0.95), None);
        assert_eq!(find("other", "How to reset a password", [1.0, 0.0], 0.95), None);
        assert_eq!(find("acme", "How do I not reset my password?", [1.0, 0.0], 0.95), None);
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let similar = Similar::default();
        for n in 0..=OF_A_SCOPE {
            similar.note("acme".into(), asked(&format!("plan {n}"), [1.0, 0.0]), n.to_string());
        }
        let found = |n: usize| similar.find("acme", &asked(&format!("plan {n}"), [1.0, 0.0]), 0.9);
        assert_eq!((found(0), found(1)), (None, Some("1".into())));
    }
}
