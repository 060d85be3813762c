//! Named places at which a test lets this process die as by SIGKILL, or the answer to a commit get lost. Without the
//! feature `failpoints` all of it compiles to nothing.
//!
//! `WEIR_TEST_FAILPOINT` is `[stage/]name:nth`, to act once when the place is reached the nth time, or
//! `[stage/]name:probability@seed`, to act each time with that probability.

/// A place in the life of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failpoint {
    /// The stage has said what becomes of a batch.
    AfterProcess,
    /// Its outputs were handed to the producer.
    AfterProduce,
    /// All outputs are acknowledged or on their way, and positions are next.
    BeforeCommit,
    /// The positions are in the transaction, which is still open.
    AfterSendOffsets,
    /// Kafka has said that the transaction counts.
    AfterCommit,
    /// The same, right before the state of the lanes is written to disk.
    BeforeStoreWrite,
    /// The request to commit never leaves, and this process does not know.
    LostCommitRequest,
    /// The transaction is committed, and this process does not hear of it.
    LostCommitAnswer,
}

/// Ends this process here if a test wants that.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub(crate) fn reach(_stage: &str, _at: Failpoint) {}

/// Whether a test wants something to get lost here.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub(crate) fn is_lost(_stage: &str, _at: Failpoint) -> bool {
    false
}

#[cfg(feature = "failpoints")]
pub(crate) use armed::{is_lost, reach};

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::{Mutex, OnceLock, PoisonError};

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use rustix::process::{Signal, getpid, kill_process};

    use super::Failpoint;

    const VARIABLE: &str = "WEIR_TEST_FAILPOINT";

    /// Ends this process here if a test wants that.
    pub(crate) fn reach(stage: &str, at: Failpoint) {
        if is_lost(stage, at) {
            // Only a process that may not signal itself gets past this.
            let _ = kill_process(getpid(), Signal::KILL);
            std::process::abort();
        }
    }

    /// Whether a test wants something to get lost here.
    pub(crate) fn is_lost(stage: &str, at: Failpoint) -> bool {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        let armed = ARMED.get_or_init(|| {
            let wanted = std::env::var(VARIABLE).ok()?;
            let armed = Armed::parse(&wanted);
            if armed.is_none() {
                tracing::error!(wanted, "{VARIABLE} is not [stage/]name:nth or [stage/]name:probability@seed");
            }
            armed
        });
        let hit = armed.as_ref().is_some_and(|armed| armed.hits(stage, at));
        if hit {
            tracing::warn!(stage, ?at, "failpoint");
        }
        hit
    }

    #[derive(Debug)]
    struct Armed {
        stage: Option<String>,
        at: Failpoint,
        when: Mutex<When>,
    }

    #[derive(Debug)]
    enum When {
        /// After so many more.
        In(u64),
        With(f64, Box<StdRng>),
    }

    impl Armed {
        fn parse(text: &str) -> Option<Self> {
            let (place, when) = text.split_once(':')?;
            let (stage, name) = match place.split_once('/') {
                Some((stage, name)) => (Some(stage.to_owned()), name),
                None => (None, place),
            };
            let when = match when.split_once('@') {
                Some((probability, seed)) => {
                    When::With(probability.parse().ok()?, Box::new(StdRng::seed_from_u64(seed.parse().ok()?)))
                }
                None => When::In(when.parse().ok().filter(|nth| *nth > 0)?),
            };
            Some(Self { stage, at: named(name)?, when: Mutex::new(when) })
        }

        fn hits(&self, stage: &str, at: Failpoint) -> bool {
            if self.at != at || self.stage.as_deref().is_some_and(|wanted| wanted != stage) {
                return false;
            }
            match &mut *self.when.lock().unwrap_or_else(PoisonError::into_inner) {
                When::In(0) => false,
                When::In(left) => {
                    *left -= 1;
                    *left == 0
                }
                When::With(probability, random) => random.random::<f64>() < *probability,
            }
        }
    }

    fn named(name: &str) -> Option<Failpoint> {
        Some(match name {
            "after-process" => Failpoint::AfterProcess,
            "after-produce" => Failpoint::AfterProduce,
            "before-commit" => Failpoint::BeforeCommit,
            "after-send-offsets" => Failpoint::AfterSendOffsets,
            "after-commit" => Failpoint::AfterCommit,
            "before-store-write" => Failpoint::BeforeStoreWrite,
            "lost-commit-request" => Failpoint::LostCommitRequest,
            "lost-commit-answer" => Failpoint::LostCommitAnswer,
            _ => return None,
        })
    }

    #[cfg(test)]
    mod tests {
        #![allow(clippy::unwrap_used)]

        use super::*;

        #[test]
        fn a_failpoint_acts_once_at_its_turn_and_in_its_stage() {
            let armed = Armed::parse("extract/before-commit:2").unwrap();
            assert!(!armed.hits("extract", Failpoint::BeforeCommit));
            assert!(!armed.hits("chunk", Failpoint::BeforeCommit));
            assert!(!armed.hits("extract", Failpoint::AfterCommit));
            assert!(armed.hits("extract", Failpoint::BeforeCommit));
            assert!(!armed.hits("extract", Failpoint::BeforeCommit), "once");
        }

        #[test]
        fn chance_is_the_same_for_the_same_seed() {
            let hits = |text| {
                let armed = Armed::parse(text).unwrap();
                (0..200).filter(|_| armed.hits("any", Failpoint::AfterProduce)).collect::<Vec<_>>()
            };
            let some = hits("after-produce:0.2@7");
            assert!((10..90).contains(&some.len()), "{some:?}");
            assert_eq!(some, hits("after-produce:0.2@7"));
            assert_ne!(some, hits("after-produce:0.2@8"));
        }

        #[test]
        fn what_is_not_understood_is_no_failpoint() {
            for text in ["", "before-commit", "before-commit:0", "nowhere:1", "before-commit:x@1", "before-commit:0.1@"]
            {
                assert!(Armed::parse(text).is_none(), "{text}");
            }
        }
    }
}
