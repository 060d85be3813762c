//! Threads that stay where their caches are.

/// Keeps this thread, one of `threads`, on a processor of its own, if there are as many as threads. Where there are more,
/// other programs may have chosen the same ones, and the system knows better.
#[cfg(target_os = "linux")]
pub(crate) fn pin(thread: usize, threads: usize) {
    let processors = processors();
    let Some(processor) = processors.get(thread).filter(|_| processors.len() == threads) else { return };
    let mut own = rustix::thread::CpuSet::new();
    own.set(*processor);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &own) {
        tracing::debug!(thread, processor, %error, "the thread is not pinned");
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn pin(_: usize, _: usize) {}

/// Processors on which this thread may run.
#[cfg(target_os = "linux")]
fn processors() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap_or_default();
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor)).collect()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn as_many_threads_as_processors_have_one_each_and_others_have_all() {
        let all = processors();
        let pinned = |threads: usize| -> Vec<Vec<usize>> {
            std::thread::scope(|scope| {
                let pinned = |thread| {
                    scope.spawn(move || {
                        pin(thread, threads);
                        processors()
                    })
                };
                let threads: Vec<_> = (0..threads).map(pinned).collect();
                threads.into_iter().flat_map(std::thread::ScopedJoinHandle::join).collect()
            })
        };
        assert_eq!(pinned(all.len()), all.iter().map(|processor| vec![*processor]).collect::<Vec<_>>());
        assert!(pinned(all.len() + 1).iter().all(|own| *own == all));
    }
}
