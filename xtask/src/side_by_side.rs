//! The same work on several things, some of them at a time.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use kit::signals;

/// Does so on all of them, `jobs` at a time; the results, in their order. After a signal that asks
/// to end, nothing more is begun, and nothing comes of the rest.
pub fn side_by_side<T: Sync, R: Send>(
    things: &[T],
    jobs: usize,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while !signals::caught() {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some(thing) = things.get(n) else { break };
                    let result = work(thing);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((n, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(n, _)| *n);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_each_is_told_in_their_order_and_each_is_done_once() {
        let things: Vec<u32> = (0..50).collect();
        for jobs in [1, 2, 7, 60] {
            let squares = side_by_side(&things, jobs, |n| {
                // The first ones end last.
                thread::sleep(std::time::Duration::from_micros(u64::from(50 - n)));
                n * n
            });
            assert_eq!(squares, things.iter().map(|n| n * n).collect::<Vec<_>>());
        }
    }
}
