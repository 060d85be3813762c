//! Calls to Kafka that must succeed before anything else makes sense.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::StageStatus;
use crate::backoff::Backoff;
use crate::transaction::TransactionError;

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// Repeats a call to Kafka until it answers, with backoff.
pub(crate) struct Insist {
    pub(crate) stage: &'static str,
    /// Told of every try: a loop that waits for Kafka does not stand still.
    pub(crate) status: Arc<StageStatus>,
    /// How long a call may fail before the client is given up, since only a new one may help.
    pub(crate) patience: Duration,
}

impl Insist {
    /// The same without an end: for what may be in order although it fails for long.
    pub(crate) fn without_end(&self) -> Self {
        Self { stage: self.stage, status: Arc::clone(&self.status), patience: Duration::MAX }
    }

    /// The answer; an error where repeating can't help, or has not for as long as patience lasts.
    pub(crate) fn on<T>(&self, what: &str, mut call: impl FnMut() -> Result<T, TransactionError>) -> Result<T, String> {
        let begun = Instant::now();
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        loop {
            let answer = call();
            self.status.goes_on();
            match answer {
                Ok(value) => return Ok(value),
                Err(TransactionError::Fatal(reason)) => return Err(reason),
                Err(TransactionError::Abort(reason) | TransactionError::Ambiguous(reason)) => {
                    let elapsed = begun.elapsed();
                    if elapsed >= self.patience {
                        return Err(format!("{what} has failed for {} s: {reason}", elapsed.as_secs()));
                    }
                    tracing::warn!(stage = self.stage, reason, "{what}: trying again");
                    std::thread::sleep(backoff.next(&mut rand::rng(), None));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn insist(patience: Duration) -> Insist {
        Insist { stage: "test", status: Arc::default(), patience }
    }

    fn not_yet<T>() -> Result<T, TransactionError> {
        Err(TransactionError::Ambiguous("no answer".into()))
    }

    #[test]
    fn a_call_is_repeated_until_it_answers_and_the_loop_goes_on_meanwhile() {
        let insist = insist(60 * SECOND);
        let (mut asked, mut tries) = (Instant::now(), 0);
        insist.status.turn();
        let stood_since = |asked: Instant| insist.status.stands_still_for() <= asked.elapsed();
        let answer = insist.on("asking", || {
            assert!(stood_since(asked), "since the call before, whatever it answered");
            (asked, tries) = (Instant::now(), tries + 1);
            if tries < 4 { not_yet() } else { Ok(7) }
        });
        assert_eq!((answer, tries), (Ok(7), 4));
        assert!(stood_since(asked), "since the last call, not the first");
    }

    #[test]
    fn a_call_that_keeps_failing_is_given_up_with_its_reason() {
        let given_up = insist(Duration::ZERO).on("asking", not_yet::<()>);
        assert_eq!(given_up, Err("asking has failed for 0 s: no answer".into()));
        let hopeless = insist(60 * SECOND).on::<()>("asking", || Err(TransactionError::Fatal("fenced".into())));
        assert_eq!(hopeless, Err("fenced".into()), "at once");
    }

    #[test]
    fn a_loop_that_has_not_begun_is_not_watched() {
        let insist = insist(60 * SECOND);
        assert_eq!(insist.on("asking", || Ok(())), Ok(()));
        std::thread::sleep(SECOND / 100);
        assert_eq!(insist.status.stands_still_for(), Duration::ZERO);
    }
}
