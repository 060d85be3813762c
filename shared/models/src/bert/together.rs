//! A few sequences computed by several threads at once: each takes some rows through a layer, and only for the keys and
//! values of the others they wait for each other. No thread waits for one that is busy elsewhere: whoever is there does
//! all there is to do.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use super::aligned::Aligned;
use super::layer::{Kernels, Layer, Room, Sequences};
use super::steps::Steps;

/// Rows of a part, at least: the work on fewer is hardly longer than a wait for each other.
const LEAST: usize = 16;
/// Looks at what others do before the processor is offered to somebody else.
const SPINS: usize = 2_000;

/// See the module.
pub(super) struct Together<K: Kernels> {
    lengths: Vec<usize>,
    parts: Vec<Part<K>>,
    /// One before the first layer, then one for each.
    phases: Vec<Phase>,
    /// A thread has panicked.
    failed: AtomicBool,
}

/// Rows one after another.
struct Part<K: Kernels> {
    first: usize,
    count: usize,
    rows: Mutex<Aligned>,
    /// Queries, keys and values of a layer, in turn: while some threads read those of one, others write those of the next.
    qkv: [RwLock<K::Qkv>; 2],
}

/// Parts that were begun, and those that are done.
#[derive(Default)]
struct Phase {
    begun: AtomicUsize,
    done: AtomicUsize,
}

/// Says so when a thread panics, since others wait for what it does.
struct Alarm<'a>(&'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Release);
        }
    }
}

impl<K: Kernels> Together<K> {
    /// `rows` of sequences of these lengths, as the first layer takes them, for so many threads; none where they would make
    /// a single part.
    pub fn new(layers: &[Layer<K>], lengths: Vec<usize>, rows: &[f32], threads: usize) -> Option<Self> {
        let first = layers.first()?;
        let (width, step) = (first.width(), first.kernels.step());
        let all = rows.len() / width;
        let most = all.div_ceil(threads.max(1)).max(LEAST).next_multiple_of(step);
        if most >= all {
            return None;
        }
        let part = |(place, rows): (usize, &[f32])| {
            let mut own = Aligned::zeroed(rows.len());
            own.first(rows.len()).copy_from_slice(rows);
            let qkv = [RwLock::default(), RwLock::default()];
            Part { first: place * most, count: rows.len() / width, rows: Mutex::new(own), qkv }
        };
        let parts = rows.chunks(most * width).enumerate().map(part).collect();
        let phases = (0..=layers.len()).map(|_| Phase::default()).collect();
        Some(Self { lengths, parts, phases, failed: AtomicBool::new(false) })
    }

    /// Takes part until all is done, or until another thread has panicked. For the thread that did the last of it: the
    /// lengths of the sequences and their rows behind the last layer.
    pub fn join(&self, layers: &[Layer<K>], at: &mut Room<K>, steps: &mut Steps) -> Option<(&[usize], Vec<f32>)> {
        let _alarm = Alarm(&self.failed);
        for (number, phase) in self.phases.iter().enumerate() {
            while let Some(part) = self.parts.get(phase.begun.fetch_add(1, Ordering::Relaxed)) {
                self.compute(layers, number, part, at, steps);
                let done = phase.done.fetch_add(1, Ordering::AcqRel) + 1;
                if done == self.parts.len() && number == layers.len() {
                    return Some((&self.lengths, self.rows(layers.first()?.width())));
                }
            }
            self.wait(phase)?;
        }
        None
    }

    /// Until all parts of a phase are done; none when that will not be.
    fn wait(&self, phase: &Phase) -> Option<()> {
        let mut spins = 0;
        while phase.done.load(Ordering::Acquire) < self.parts.len() {
            if self.failed.load(Ordering::Acquire) {
                return None;
            }
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        Some(())
    }

    /// Takes a part through the layer before this phase, and computes what the layer behind it asks of all parts.
    fn compute(&self, layers: &[Layer<K>], phase: usize, part: &Part<K>, at: &mut Room<K>, steps: &mut Steps) {
        let mut rows = part.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((turn, layer)) = phase.checked_sub(1).and_then(|turn| Some((turn, layers.get(turn)?))) {
            let rows = rows.first(part.count * layer.width());
            // From the last on: memory that grows forgets what it held.
            for other in self.parts.iter().rev() {
                let Some(qkv) = other.qkv.get(turn % 2) else { continue };
                let qkv = qkv.read().unwrap_or_else(PoisonError::into_inner);
                K::put(layer, &qkv, other.count, other.first, &mut at.qkv);
            }
            let of = Sequences { qkv: &at.qkv, lengths: &self.lengths, first: part.first };
            K::attend(layer, of, rows, &mut at.memory, steps);
            for rows in rows.chunks_mut(layer.inner_rows(part.count) * layer.width()) {
                K::widen(layer, rows, &mut at.memory, steps, &mut || ());
            }
        }
        if let (Some(layer), Some(qkv)) = (layers.get(phase), part.qkv.get(phase % 2)) {
            let mut qkv = qkv.write().unwrap_or_else(PoisonError::into_inner);
            K::project(layer, rows.first(part.count * layer.width()), &mut qkv, &mut at.memory, steps);
        }
    }

    /// All rows, one after another.
    fn rows(&self, width: usize) -> Vec<f32> {
        let mut all = Vec::new();
        for part in &self.parts {
            let mut rows = part.rows.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend_from_slice(rows.first(part.count * width));
        }
        all
    }
}
