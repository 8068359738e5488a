//! Where the bodies of different requests meet to be hashed side by side.
//!
//! A body hands in each unit when it is full, and gets it back hashed. A task takes what has come together; while it works,
//! more comes together.

use super::md5::{LANES, Md5, update_all};
use cobalt_dma::Buf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{mpsc, oneshot};

/// Fewer bytes are not worth the way.
const WORTH: usize = 64 << 10;
/// Units that wait for a task; who comes then waits before the queue.
const WAITING_MAX: usize = 64;
/// HTTP threads to a task: with full lanes it hashes as much as these take in.
const THREADS_PER_TASK: usize = 2;

/// The way to the tasks that hash.
#[derive(Clone)]
pub struct Hasher {
    tasks: Arc<[mpsc::Sender<Job>]>,
    turn: Arc<AtomicUsize>,
}

struct Job {
    md5: Md5,
    buf: Buf,
    done: oneshot::Sender<(Md5, Buf)>,
}

impl Hasher {
    /// Starts as many tasks as are good for `threads` HTTP threads. They end with the last clone.
    pub fn start(runtime: &tokio::runtime::Handle, threads: usize) -> Hasher {
        let task = |_| {
            let (sender, jobs) = mpsc::channel(WAITING_MAX);
            runtime.spawn(work(jobs));
            sender
        };
        let tasks = (0..threads.div_ceil(THREADS_PER_TASK).max(1)).map(task).collect();
        Hasher { tasks, turn: Arc::default() }
    }

    /// Adds the buffer's bytes to the digest. None when the process ends.
    pub async fn add(&self, mut md5: Md5, buf: Buf) -> Option<(Md5, Buf)> {
        if buf.len() < WORTH {
            md5.update(&buf);
            return Some((md5, buf));
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let (done, hashed) = oneshot::channel();
        self.tasks[turn % self.tasks.len()].send(Job { md5, buf, done }).await.ok()?;
        hashed.await.ok()
    }
}

async fn work(mut waiting: mpsc::Receiver<Job>) {
    while let Some(first) = waiting.recv().await {
        // The other bodies of this thread go first: what they hand in is hashed in the same pass.
        tokio::task::yield_now().await;
        let mut jobs = vec![first];
        while jobs.len() < LANES
            && let Ok(job) = waiting.try_recv()
        {
            jobs.push(job);
        }
        update_all(jobs.iter_mut().map(|job| (&mut job.md5, &job.buf[..])));
        for Job { md5, buf, done } in jobs {
            let _ = done.send((md5, buf)); // The client may have gone away.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Hasher, Md5};
    use cobalt_dma::{Arena, ArenaConfig};
    use futures::future::join_all;
    use md5::Digest;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn bodies_that_come_together_get_their_own_digests_and_buffers() {
        let arena = Arena::new(ArenaConfig { limit: 32 << 20 }).unwrap();
        let hasher = Hasher::start(&tokio::runtime::Handle::current(), 3);
        let bodies = (0..11u8).map(|number| {
            let (arena, hasher) = (arena.clone(), hasher.clone());
            tokio::spawn(async move {
                let (mut md5, mut all) = (Md5::default(), md5::Md5::new());
                for turn in 0..6u8 {
                    let mut buf = arena.alloc(1 << 18).await;
                    buf.set_len(usize::from(turn % 3 + 1) * 70_000 + usize::from(number));
                    buf.fill(number * 16 + turn);
                    all.update(&buf[..]);
                    let len = buf.len();
                    let (next, buf) = hasher.add(md5, buf).await.unwrap();
                    assert!(buf.len() == len && buf.iter().all(|b| *b == number * 16 + turn));
                    md5 = next;
                }
                assert_eq!(md5.finish(), <[u8; 16]>::from(all.finalize()), "body {number}");
            })
        });
        for done in join_all(bodies.collect::<Vec<_>>()).await {
            done.unwrap();
        }
    }

    #[tokio::test]
    async fn a_body_that_goes_away_takes_nothing_with_it() {
        let arena = Arena::new(ArenaConfig { limit: 8 << 20 }).unwrap();
        let hasher = Hasher::start(&tokio::runtime::Handle::current(), 3);
        let (a, b) = (arena.alloc(1 << 20).await, arena.alloc(1 << 20).await);
        let gone = hasher.clone();
        let task = tokio::spawn(async move { gone.add(Md5::default(), a).await });
        tokio::task::yield_now().await;
        task.abort();
        assert!(hasher.add(Md5::default(), b).await.is_some());
    }
}
