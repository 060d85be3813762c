//! Questions as vectors: those that come at once are embedded together, and those that came lately are remembered.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{counter, histogram};
use tokio::sync::{mpsc, oneshot};

use crate::meaning::MeaningError;
use crate::metric;

/// Questions that are embedded together, at most.
const TOGETHER: usize = 32;
/// Questions that may wait; more of them wait to wait.
const WAITING: usize = 1_024;
/// Vectors that are remembered: 6 MB of those with 384 components.
const REMEMBERED: usize = 4_096;

/// Embeds texts; blocks.
pub(crate) type Embed = Arc<dyn Fn(&[&str]) -> Result<Vec<Vec<f32>>, MeaningError> + Send + Sync>;

/// A vector that is shared.
pub(crate) type Vector = Arc<[f32]>;

type Result<T, E = Arc<MeaningError>> = std::result::Result<T, E>;

/// The queue of questions. While some are embedded the next ones gather, so nobody waits for a batch to fill.
#[derive(Debug)]
pub(crate) struct Queries {
    waiting: mpsc::Sender<Waiting>,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Waiting {
    text: String,
    reply: oneshot::Sender<Result<Vector>>,
}

impl Queries {
    /// A queue that is worked off as long as this is there. Must be called within a runtime.
    pub(crate) fn new(embed: Embed) -> Self {
        let (waiting, arriving) = mpsc::channel(WAITING);
        tokio::spawn(work(arriving, embed));
        Self { waiting, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The vector of a question.
    pub(crate) async fn of(&self, text: &str) -> Result<Vector> {
        let known = self.known().get(text);
        let from = if known.is_some() { "cache" } else { "model" };
        counter!(metric::QUERY_VECTORS, "from" => from).increment(1);
        if let Some(vector) = known {
            return Ok(vector);
        }
        let (reply, answered) = oneshot::channel();
        let ended = || Arc::new(MeaningError::Ended);
        self.waiting.send(Waiting { text: text.to_owned(), reply }).await.map_err(|_| ended())?;
        let vector = answered.await.map_err(|_| ended())??;
        self.known().keep(text, &vector);
        Ok(vector)
    }
}

async fn work(mut arriving: mpsc::Receiver<Waiting>, embed: Embed) {
    let mut batch = Vec::with_capacity(TOGETHER);
    while arriving.recv_many(&mut batch, TOGETHER).await > 0 {
        histogram!(metric::QUERY_BATCH).record(u32::try_from(batch.len()).unwrap_or(u32::MAX));
        // The same question often comes several times at once.
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut texts = Vec::new();
        for waiting in &batch {
            places.entry(&waiting.text).or_insert_with(|| {
                texts.push(waiting.text.clone());
                texts.len() - 1
            });
        }
        let embed = Arc::clone(&embed);
        let vectors = tokio::task::spawn_blocking(move || {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            embed(&texts)
        });
        let vectors = vectors.await.map_err(MeaningError::from).and_then(|vectors| vectors);
        let vectors: Result<Vec<Vector>> =
            vectors.map(|vectors| vectors.into_iter().map(Vector::from).collect()).map_err(Arc::new);
        let replies: Vec<_> = batch
            .iter()
            .map(|waiting| match &vectors {
                Ok(vectors) => {
                    let vector = places.get(waiting.text.as_str()).and_then(|place| vectors.get(*place));
                    vector.cloned().ok_or_else(|| Arc::new(MeaningError::Ended))
                }
                Err(error) => Err(Arc::clone(error)),
            })
            .collect();
        for (waiting, reply) in batch.drain(..).zip(replies) {
            // Whoever waited may have gone.
            let _ = waiting.reply.send(reply);
        }
    }
}

/// The vectors of the latest questions.
#[derive(Debug, Default)]
struct Known {
    vectors: HashMap<Arc<str>, Vector>,
    /// The oldest first.
    order: VecDeque<Arc<str>>,
}

impl Known {
    fn get(&self, text: &str) -> Option<Vector> {
        self.vectors.get(text).cloned()
    }

    fn keep(&mut self, text: &str, vector: &Vector) {
        if self.vectors.contains_key(text) {
            return;
        }
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.vectors.remove(&oldest);
        }
        let text: Arc<str> = text.into();
        self.order.push_back(Arc::clone(&text));
        self.vectors.insert(text, Arc::clone(vector));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_precision_loss)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    type Batches = Arc<Mutex<Vec<Vec<String>>>>;

    /// Gives the length of a text; the first batch lasts until the barrier is met.
    fn queries(first: Option<Arc<Barrier>>) -> (Arc<Queries>, Batches) {
        let batches = Batches::default();
        let seen = Arc::clone(&batches);
        let queries = Queries::new(Arc::new(move |texts: &[&str]| {
            let begun = {
                let mut seen = seen.lock().unwrap();
                seen.push(texts.iter().map(|text| (*text).to_owned()).collect());
                seen.len()
            };
            if let Some(first) = first.as_ref().filter(|_| begun == 1) {
                first.wait();
            }
            Ok(texts.iter().map(|text| vec![text.len() as f32]).collect())
        }));
        (Arc::new(queries), batches)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_comes_meanwhile_is_embedded_together_and_each_text_once() {
        let barrier = Arc::new(Barrier::new(2));
        let (queries, batches) = queries(Some(Arc::clone(&barrier)));
        let ask = |text: &str| {
            let (queries, text) = (Arc::clone(&queries), text.to_owned());
            tokio::spawn(async move { queries.of(&text).await.unwrap() })
        };
        let first = ask("first");
        while batches.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = ["aa", "bbb", "aa", "cccc"].into_iter().map(ask).collect();
        while queries.waiting.capacity() > WAITING - 4 {
            tokio::task::yield_now().await;
        }
        tokio::task::spawn_blocking(move || barrier.wait()).await.unwrap();
        assert_eq!(*first.await.unwrap(), [5.0]);
        for (other, length) in others.into_iter().zip([2.0, 3.0, 2.0, 4.0]) {
            assert_eq!(*other.await.unwrap(), [length]);
        }
        let batches = batches.lock().unwrap();
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [1, 3]);
    }

    #[tokio::test]
    async fn a_question_that_came_before_is_not_embedded_again() {
        let (queries, batches) = queries(None);
        for _ in 0..3 {
            assert_eq!(*queries.of("again").await.unwrap(), [5.0]);
        }
        assert_eq!(batches.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn an_error_reaches_everybody_and_is_not_remembered() {
        let queries = Queries::new(Arc::new(|_: &[&str]| Err(MeaningError::Ended)));
        assert!(queries.of("a").await.is_err());
        assert!(queries.known().get("a").is_none());
    }

    #[test]
    fn the_oldest_goes_when_there_is_no_room() {
        let mut known = Known::default();
        let vector: Vector = vec![1.0].into();
        for n in 0..=REMEMBERED {
            known.keep(&n.to_string(), &vector);
            known.keep(&n.to_string(), &vector);
        }
        assert!(known.get("0").is_none() && known.get("1").is_some());
        assert_eq!((known.vectors.len(), known.order.len()), (REMEMBERED, REMEMBERED));
    }
}
