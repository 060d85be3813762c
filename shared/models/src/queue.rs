//! Work that waits for a thread: what someone waits for goes before bulk, and bulk goes on all the same.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Urgent tasks in a row while bulk waits, at most.
const MOST_OVERTAKING: usize = 8;

/// Who waits for a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Someone waits for this little alone.
    Interactive,
    /// One of many: only the sum of all counts.
    Bulk,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    more: Condvar,
}

#[derive(Debug)]
struct Waiting<T> {
    interactive: VecDeque<T>,
    bulk: VecDeque<T>,
    /// Interactive tasks taken since the last bulk task.
    overtaken: usize,
    /// Threads that wait for a task.
    idle: usize,
    closed: bool,
}

impl<T> Queue<T> {
    pub fn new() -> Self {
        let waiting =
            Waiting { interactive: VecDeque::new(), bulk: VecDeque::new(), overtaken: 0, idle: 0, closed: false };
        Self { waiting: Mutex::new(waiting), more: Condvar::new() }
    }

    /// Adds tasks behind those of the same urgency.
    pub fn add(&self, urgency: Urgency, tasks: impl IntoIterator<Item = T>) {
        let mut waiting = self.lock();
        match urgency {
            Urgency::Interactive => waiting.interactive.extend(tasks),
            Urgency::Bulk => waiting.bulk.extend(tasks),
        }
        drop(waiting);
        self.more.notify_all();
    }

    /// The next task; waits for one. None when the queue is closed.
    pub fn next(&self) -> Option<T> {
        let mut waiting = self.lock();
        loop {
            if waiting.closed {
                return None;
            }
            if let Some(task) = waiting.next() {
                return Some(task);
            }
            waiting.idle += 1;
            waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.idle -= 1;
        }
    }

    /// A task that does not want to wait until those in work are done.
    pub fn next_interactive(&self) -> Option<T> {
        self.lock().interactive.pop_front()
    }

    /// Threads for which there is nothing to do.
    pub fn idle(&self) -> usize {
        let waiting = self.lock();
        waiting.idle.saturating_sub(waiting.interactive.len() + waiting.bulk.len())
    }

    /// Nobody takes anything any more.
    pub fn close(&self) {
        self.lock().closed = true;
        self.more.notify_all();
    }

    /// No code that can panic runs while it is held.
    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Waiting<T> {
    fn next(&mut self) -> Option<T> {
        if (self.overtaken >= MOST_OVERTAKING || self.interactive.is_empty())
            && let Some(task) = self.bulk.pop_front()
        {
            self.overtaken = 0;
            return Some(task);
        }
        let task = self.interactive.pop_front()?;
        self.overtaken = if self.bulk.is_empty() { 0 } else { self.overtaken + 1 };
        Some(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interactive_tasks_go_first_and_bulk_goes_on_all_the_same() {
        let queue = Queue::new();
        queue.add(Urgency::Bulk, 100..103);
        queue.add(Urgency::Interactive, 0..10);
        let taken: Vec<i32> = (0..13).filter_map(|_| queue.next()).collect();
        assert_eq!(taken, [0, 1, 2, 3, 4, 5, 6, 7, 100, 8, 9, 101, 102]);
        queue.add(Urgency::Bulk, [100]);
        assert_eq!(queue.next_interactive(), None);
        queue.close();
        assert_eq!(queue.next(), None);
    }
}
