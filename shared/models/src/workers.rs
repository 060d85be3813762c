//! Threads that turn texts into vectors. A call is cut into tasks; each is tokenized and computed by one thread, so
//! that the texts of later tasks are tokenized while earlier ones are computed. What is little, and comes while no thread
//! has anything to do, they compute together.

use std::any::Any;
use std::cmp::Reverse;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use crate::ModelError;
use crate::pinning::pin;
use crate::queue::{Queue, Urgency};

/// Bytes of a text for each token, roughly: only the size of tasks depends on it.
pub(crate) const BYTES_PER_TOKEN: usize = 4;

/// A vector for each text, in order, and how many tokens that were.
pub(crate) type Computed = Result<(Vec<Vec<f32>>, usize), ModelError>;

/// What the threads do.
pub(crate) trait Compute: Send + Sync + 'static {
    /// What a thread keeps from one task to the next.
    type Memory: Default;
    /// A few texts that threads compute together.
    type Team: Send + Sync + 'static;

    /// A vector for each text, in order, and how many tokens that were. Calls `between` every few milliseconds.
    fn compute(&self, texts: &[String], memory: &mut Self::Memory, between: &mut dyn FnMut()) -> Computed;

    /// Texts for so many threads to compute together; none where they are too little for that.
    fn team(&self, texts: &[&str], threads: usize) -> Result<Option<Self::Team>, ModelError>;

    /// Takes part until all is computed, however few others do. For one thread, what came of it. Nothing else is done in
    /// between: a call that waits for what this thread has begun would wait for ever.
    fn join(&self, team: &Self::Team, memory: &mut Self::Memory) -> Option<Computed>;
}

/// See the module.
pub(crate) struct Workers<C: Compute> {
    shared: Arc<Shared<C>>,
    threads: Vec<JoinHandle<()>>,
    /// Tokens of a text, at most.
    longest: usize,
    /// Tokens of a task, roughly, at most.
    task: usize,
}

struct Shared<C: Compute> {
    compute: C,
    queue: Queue<Task<C::Team>>,
}

enum Task<T> {
    /// Texts for one thread.
    Alone(Own),
    /// For each thread that can come.
    Together(Arc<T>, mpsc::Sender<Result<Computed, Panic>>),
}

struct Own {
    /// Places of the texts in their call.
    places: Vec<usize>,
    texts: Vec<String>,
    answer: mpsc::Sender<Answer>,
}

type Panic = Box<dyn Any + Send>;

struct Answer {
    places: Vec<usize>,
    result: Result<Computed, Panic>,
}

impl<C: Compute> Workers<C> {
    /// So many threads, each on a processor of its own where there are as many. Texts have at most `longest` tokens; those of a task have about `task` together.
    pub fn start(compute: C, threads: usize, longest: usize, task: usize) -> Result<Self, ModelError> {
        let shared = Arc::new(Shared { compute, queue: Queue::new() });
        let spawn = |thread| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("embed-{thread}"))
                .spawn(move || {
                    pin(thread, threads);
                    shared.work();
                })
                .map_err(|error| ModelError::Compute(format!("no thread to compute with: {error}")))
        };
        let mut workers = Self { shared: Arc::clone(&shared), threads: Vec::new(), longest, task };
        for thread in 0..threads {
            // What was started ends with `workers` when another can't be.
            workers.threads.push(spawn(thread)?);
        }
        Ok(workers)
    }

    /// What the threads do.
    pub fn compute(&self) -> &C {
        &self.shared.compute
    }

    /// A vector for each text, in order, and how many tokens that were. Blocks. A few short texts do not wait until
    /// what came before is done.
    pub fn run(&self, texts: &[&str]) -> Computed {
        if let Some(computed) = self.together(texts) {
            return computed;
        }
        let (sender, answers) = mpsc::channel();
        let (urgency, tasks) = self.cut(texts, &sender);
        drop(sender);
        self.shared.queue.add(urgency, tasks);
        let mut vectors = vec![Vec::new(); texts.len()];
        let mut all_tokens = 0;
        let mut failed = None;
        // Every task answers, also when one has failed: none of them is left behind.
        for Answer { places, result } in answers {
            match result {
                Ok(Ok((computed, tokens))) => {
                    all_tokens += tokens;
                    for (place, vector) in places.into_iter().zip(computed) {
                        if let Some(slot) = vectors.get_mut(place) {
                            *slot = vector;
                        }
                    }
                }
                Ok(Err(error)) => failed = Some(error),
                Err(panic) => resume_unwind(panic),
            }
        }
        failed.map_or(Ok((vectors, all_tokens)), Err)
    }

    /// What the threads make of texts together, if these are little and several threads have nothing else to do.
    fn together(&self, texts: &[&str]) -> Option<Computed> {
        let threads = self.threads.len();
        let tokens: usize = texts.iter().map(|text| self.tokens(text)).sum();
        if self.shared.queue.idle() < 2 || tokens > threads * self.task {
            return None;
        }
        let team = match self.shared.compute.team(texts, threads) {
            Ok(team) => Arc::new(team?),
            Err(error) => return Some(Err(error)),
        };
        let (sender, answers) = mpsc::channel();
        let tasks = (0..threads).map(|_| Task::Together(Arc::clone(&team), sender.clone()));
        self.shared.queue.add(Urgency::Interactive, tasks);
        drop(sender);
        match answers.recv() {
            Ok(Ok(computed)) => Some(computed),
            Ok(Err(panic)) => resume_unwind(panic),
            Err(mpsc::RecvError) => Some(Err(ModelError::Compute("the threads have ended".into()))),
        }
    }

    /// Tokens of a text, roughly.
    fn tokens(&self, text: &str) -> usize {
        (text.len() / BYTES_PER_TOKEN + 2).min(self.longest)
    }

    /// Tasks of texts of similar length, the longest first: the short ones fill the gaps at the end.
    fn cut(&self, texts: &[&str], answer: &mpsc::Sender<Answer>) -> (Urgency, Vec<Task<C::Team>>) {
        let mut waiting: Vec<(usize, usize, &str)> = Vec::with_capacity(texts.len());
        for (place, text) in texts.iter().enumerate() {
            waiting.push((self.tokens(text), place, text));
        }
        waiting.sort_by_key(|(tokens, ..)| Reverse(*tokens));
        let all: usize = waiting.iter().map(|(tokens, ..)| tokens).sum();
        let urgency = if all <= self.longest { Urgency::Interactive } else { Urgency::Bulk };
        let most = all.div_ceil(self.threads.len().max(1)).min(self.task);
        let mut tasks = Vec::new();
        let mut rest = waiting.as_slice();
        while !rest.is_empty() {
            let mut taken = 0;
            let fits = |(tokens, ..): &&(usize, usize, &str)| {
                taken += tokens;
                taken <= most
            };
            let (task, after) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            rest = after;
            let (places, texts) = task.iter().map(|(_, place, text)| (*place, (*text).to_owned())).unzip();
            tasks.push(Task::Alone(Own { places, texts, answer: answer.clone() }));
        }
        (urgency, tasks)
    }
}

impl<C: Compute> Drop for Workers<C> {
    fn drop(&mut self) {
        self.shared.queue.close();
        for thread in self.threads.drain(..) {
            // A thread does not panic: what it calls is caught.
            let _ = thread.join();
        }
    }
}

impl<C: Compute> Shared<C> {
    /// The life of a thread.
    fn work(&self) {
        let (mut memory, mut second) = (C::Memory::default(), C::Memory::default());
        while let Some(task) = self.queue.next() {
            task.run(&self.compute, &mut memory, &mut || {
                // One at a time: the task in work goes on, however many come.
                if let Some(task) = self.queue.next_interactive() {
                    task.run(&self.compute, &mut second, &mut || ());
                }
            });
        }
    }
}

impl<T> Task<T> {
    fn run<C: Compute<Team = T>>(self, compute: &C, memory: &mut C::Memory, between: &mut dyn FnMut()) {
        // Memory is written before it is read, whatever a panic left there. Nobody waits for an answer any more when an
        // earlier task of the call has panicked.
        match self {
            Self::Alone(Own { places, texts, answer }) => {
                let result = catch_unwind(AssertUnwindSafe(|| compute.compute(&texts, memory, between)));
                let _ = answer.send(Answer { places, result });
            }
            Self::Together(team, answer) => {
                let result = catch_unwind(AssertUnwindSafe(|| compute.join(&team, memory)));
                if let Some(result) = result.transpose() {
                    let _ = answer.send(result);
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_precision_loss, clippy::panic)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// Says what it was given, and does what the test wants between two layers.
    struct Told<F> {
        seen: Mutex<Vec<String>>,
        between_layers: F,
    }

    impl<F: Fn(&str) + Send + Sync + 'static> Compute for Told<F> {
        type Memory = ();
        /// Those who have come.
        type Team = AtomicUsize;

        fn compute(&self, texts: &[String], (): &mut (), between: &mut dyn FnMut()) -> Computed {
            let name = texts.join("+");
            self.seen.lock().unwrap().push(format!("begin {name}"));
            (self.between_layers)(&name);
            between();
            self.seen.lock().unwrap().push(format!("end {name}"));
            if let Some(text) = texts.iter().find(|text| text.as_str() == "untokenizable") {
                return Err(ModelError::Tokenize { bytes: text.len(), reason: String::new() });
            }
            Ok((texts.iter().map(|text| vec![text.len() as f32]).collect(), texts.len()))
        }

        /// Of texts that say so.
        fn team(&self, texts: &[&str], threads: usize) -> Result<Option<AtomicUsize>, ModelError> {
            assert!(threads > 1);
            Ok(texts.iter().any(|text| text.starts_with("together")).then(AtomicUsize::default))
        }

        fn join(&self, come: &AtomicUsize, (): &mut ()) -> Option<Computed> {
            (self.between_layers)("join");
            let last = come.fetch_add(1, Ordering::SeqCst) == 1;
            last.then(|| Ok((vec![vec![7.0]], 1)))
        }
    }

    fn told<F: Fn(&str) + Send + Sync + 'static>(threads: usize, between_layers: F) -> Workers<Told<F>> {
        Workers::start(Told { seen: Mutex::default(), between_layers }, threads, 10, 10).unwrap()
    }

    #[test]
    fn a_short_text_overtakes_bulk_even_within_a_task() {
        let (begun, has_begun) = mpsc::channel();
        let (go, may_go) = mpsc::channel::<()>();
        let may_go = Mutex::new(may_go);
        let workers = told(1, move |name| {
            if name.starts_with('a') {
                begun.send(()).unwrap();
                may_go.lock().unwrap().recv().unwrap();
            }
        });
        let bulk = ["a".repeat(40), "b".repeat(39)];
        std::thread::scope(|scope| {
            scope.spawn(|| workers.run(&bulk.each_ref().map(String::as_str)).unwrap());
            has_begun.recv().unwrap();
            // The only thread is busy with bulk, and more of it waits.
            let (urgency, tasks) = workers.cut(&["?"], &mpsc::channel().0);
            assert_eq!(urgency, Urgency::Interactive);
            workers.shared.queue.add(urgency, tasks);
            go.send(()).unwrap();
        });
        let [a, b] = bulk;
        let expected = [&format!("begin {a}"), "begin ?", "end ?", &format!("end {a}"), &format!("begin {b}")];
        assert_eq!(*workers.compute().seen.lock().unwrap().get(..5).unwrap(), expected);
    }

    /// Waits until so many threads have nothing to do.
    fn wait_idle<C: Compute>(workers: &Workers<C>, threads: usize) {
        while workers.shared.queue.idle() < threads {
            std::thread::yield_now();
        }
    }

    #[test]
    fn threads_that_have_nothing_to_do_compute_what_is_little_together() {
        let workers = told(2, |_| ());
        wait_idle(&workers, 2);
        assert_eq!(workers.run(&["together"]).unwrap(), (vec![vec![7.0]], 1));
        wait_idle(&workers, 2);
        let long = "x".repeat(100);
        assert_eq!(
            workers.run(&["together", &long, &long]).unwrap().0,
            [[8.0], [100.0], [100.0]],
            "that is not little"
        );
        let alone = told(1, |_| ());
        wait_idle(&alone, 1);
        assert_eq!(alone.run(&["together"]).unwrap().0, [[8.0]], "there is nobody to do it together with");
        let panicking = told(2, |name| assert!(name != "join", "as the test wants it"));
        wait_idle(&panicking, 2);
        assert!(catch_unwind(AssertUnwindSafe(|| panicking.run(&["together"]))).is_err());
    }

    #[test]
    fn an_error_and_a_panic_reach_the_call_they_belong_to_and_no_other() {
        let workers = told(2, |name| assert!(!name.contains("panic"), "as the test wants it"));
        let error = workers.run(&["one", "untokenizable", "three"]).unwrap_err();
        assert!(matches!(error, ModelError::Tokenize { bytes: 13, .. }), "{error}");
        assert!(catch_unwind(AssertUnwindSafe(|| workers.run(&["panic"]))).is_err());
        assert_eq!(workers.run(&["four"]).unwrap(), (vec![vec![4.0]], 1));
    }

    proptest! {
        #[test]
        fn every_text_gets_its_vector_whatever_the_lengths_and_the_threads(
            lengths in prop::collection::vec(0usize..60, 1..40),
            threads in 1usize..4,
        ) {
            let texts: Vec<String> = lengths.iter().map(|length| "x".repeat(*length)).collect();
            let workers = told(threads, |_| ());
            let (vectors, count) = workers.run(&texts.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
            prop_assert_eq!(count, texts.len());
            prop_assert_eq!(vectors, lengths.iter().map(|length| vec![*length as f32]).collect::<Vec<_>>());
        }
    }
}
