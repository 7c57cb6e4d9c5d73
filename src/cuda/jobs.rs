//! Work shared out among threads. Shared by the build script and the library.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::{iter, thread};

/// `work` on each job, by so many threads of its own; results are in the jobs' order. Jobs begin in
/// their order, too: the longest should come first, lest its end be waited for.
///
/// Not by rayon: a worker of rayon's that waits for results runs whatever else is to be done
/// meanwhile, which may want the very lock that it holds.
pub fn in_parallel<J: Sync, R: Send>(
    jobs: &[J],
    threads: usize,
    work: impl Fn(&J) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let take_jobs = || {
        let indices = iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        let done = indices.map_while(|index| jobs.get(index).map(|job| (index, work(job))));
        done.collect::<Vec<_>>()
    };
    let mut results: Vec<_> = thread::scope(|scope| {
        let threads = threads.max(1).min(jobs.len());
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(take_jobs)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker panicked")).collect()
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::time::Duration;

    #[test]
    fn every_job_is_done_once_and_results_are_in_order() {
        let jobs: Vec<u64> = (0..50).collect();
        for threads in [0, 1, 3, 100] {
            let squares = in_parallel(&jobs, threads, |job| job * job);
            assert_eq!(squares, jobs.iter().map(|job| job * job).collect::<Vec<_>>());
        }
        assert!(in_parallel(&[], 4, |(): &()| ()).is_empty());
    }

    /// As GPUs are opened side by side on rayon's threads, whose kernels are compiled under a lock.
    #[test]
    fn who_waits_for_results_does_nothing_else_meanwhile() {
        thread_local!(static HOLDS_LOCK: Cell<bool> = const { Cell::new(false) });
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let open = || {
            assert!(!HOLDS_LOCK.replace(true), "this thread would wait for itself");
            in_parallel(&[(); 8], 2, |()| thread::sleep(Duration::from_millis(2)));
            HOLDS_LOCK.set(false);
        };
        // One after the other, so that a thread has time to begin waiting before there is more to do.
        pool.in_place_scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|_| open());
                thread::sleep(Duration::from_millis(1));
            }
        });
    }
}
