//! Freed blocks are given back to the device some time later, in runs as long as they can be had.
//!
//! A hole is dear: a file system stops all other writes of a file while it makes one, and has to find room
//! again for the next write there. Most freed blocks are written again soon, and many that are freed one by one lie
//! side by side. So they are reusable at once, and only those that stay free for a while are deallocated; for
//! that moment they are held like blocks that a transaction has reserved (I3).

use crate::geometry::Region;
use crate::store::Core;
use crate::tx::Extent;
use cobalt_base::BLOCK_SIZE;
use cobalt_reactor::sync::Notify;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Runs that are remembered; what is freed beyond them is deallocated at once.
const RUNS_MAX: usize = 1 << 16;
/// Runs that a target which closes still deallocates. The others are when they are freed the next time.
const RUNS_AT_CLOSE: usize = 1024;
/// Pause between two deallocations: the writes that they stop go on.
const PAUSE: Duration = Duration::from_millis(1);

/// Start of a run of blocks, and its end.
type Runs = BTreeMap<u64, u64>;

/// Blocks that are to be deallocated if they stay free.
#[derive(Default)]
pub(crate) struct Trims {
    /// Freed since the last turn, and before it.
    ages: RefCell<[Runs; 2]>,
    /// Told when there is something, and when the target ends.
    pub(crate) some: Notify,
    /// A turn's runs are being deallocated.
    running: Cell<bool>,
}

impl Trims {
    /// Remembers freed blocks. False when there are too many.
    fn add(&self, extents: &[Extent]) -> bool {
        let [young, old] = &mut *self.ages.borrow_mut();
        let full = young.len() + old.len() + extents.len() > RUNS_MAX;
        if !full {
            extents.iter().for_each(|e| join(young, e.start, e.start + u64::from(e.blocks)));
            self.some.notify_all();
        }
        !full
    }

    fn is_empty(&self) -> bool {
        self.ages.borrow().iter().all(Runs::is_empty)
    }

    /// Whether nothing is left to deallocate.
    #[cfg(any(test, feature = "proof"))]
    pub(crate) fn is_idle(&self) -> bool {
        self.is_empty() && !self.running.get()
    }

    /// Those that have their time; the others grow older.
    fn turn(&self) -> Runs {
        let [young, old] = &mut *self.ages.borrow_mut();
        std::mem::replace(old, std::mem::take(young))
    }
}

/// Adds a run, which may touch or overlap others.
fn join(runs: &mut Runs, mut start: u64, mut end: u64) {
    while let Some((&from, &until)) = runs.range(..=end).next_back().filter(|(_, until)| **until >= start) {
        runs.remove(&from);
        (start, end) = (start.min(from), end.max(until));
    }
    runs.insert(start, end);
}

impl Core {
    /// Blocks that nothing holds any more: reusable, and deallocated on the device some time later.
    pub(crate) fn release_blocks(&self, extents: Vec<Extent>) {
        if extents.is_empty() {
            return;
        }
        let trim = self.limits.trim && self.regions.data.device.identify().deallocate;
        if !trim || self.trims.add(&extents) {
            self.balloc.reusable(&extents);
            return;
        }
        self.count(|c| c.trims += extents.len() as u64);
        let (balloc, data) = (self.balloc.clone(), self.regions.data.clone());
        drop(self.ctx.spawn(async move {
            for extent in &extents {
                deallocate(&data, *extent).await;
            }
            balloc.reusable(&extents);
        }));
    }

    /// Deallocates what stayed free. Ends with the target.
    pub(crate) async fn trim_loop(self: Rc<Core>) {
        while self.may_write().is_ok() {
            if self.trims.is_empty() {
                self.trims.some.notified().await;
                continue;
            }
            let ended = async {
                while self.may_write().is_ok() {
                    self.trims.some.notified().await;
                }
            };
            if self.ctx.timeout(self.limits.trim_after, ended).await.is_ok() {
                return; // `close` has its own turn.
            }
            self.trims.running.set(true);
            for (start, end) in self.trims.turn() {
                if self.may_write().is_err() {
                    break;
                }
                self.trim(start, end).await;
            }
            self.trims.running.set(false);
        }
    }

    /// What a target that closes deallocates.
    pub(crate) async fn trim_at_close(&self) {
        let mut runs = self.trims.turn();
        runs.append(&mut self.trims.turn());
        for (start, end) in runs.into_iter().take(RUNS_AT_CLOSE) {
            self.trim(start, end).await;
        }
    }

    /// Deallocates what is free of a run.
    async fn trim(&self, start: u64, end: u64) {
        let mut at = start;
        while at < end && self.is_well().is_ok() {
            match self.balloc.withdraw(at, end).await {
                Ok(Some(extent)) => {
                    at = extent.start + u64::from(extent.blocks);
                    self.count(|c| c.trims += 1);
                    // On a task of its own: whoever is given up while the device works, the blocks come back.
                    let (balloc, data) = (self.balloc.clone(), self.regions.data.clone());
                    let work = self.ctx.spawn(async move {
                        deallocate(&data, extent).await;
                        balloc.reusable(&[extent]);
                    });
                    work.await;
                    if self.may_write().is_ok() {
                        self.ctx.sleep(PAUSE).await;
                    }
                }
                Ok(None) => at = self.balloc.group_end(at),
                Err(error) => {
                    self.judge_error(error);
                    return;
                }
            }
        }
    }
}

async fn deallocate(data: &Region, extent: Extent) {
    let (at, len) = (extent.start * BLOCK_SIZE, u64::from(extent.blocks) * BLOCK_SIZE);
    if let Err(error) = data.deallocate(at, len).await {
        tracing::warn!(%error, "a freed range could not be deallocated; it is reused all the same");
    }
}

#[cfg(test)]
mod tests {
    use super::{Runs, Trims, join};
    use crate::tx::Extent;

    #[test]
    fn runs_that_touch_or_overlap_become_one() {
        let mut runs = Runs::new();
        for (start, end) in [(10, 20), (30, 40), (50, 60), (20, 25), (8, 10), (24, 31), (12, 14)] {
            join(&mut runs, start, end);
        }
        assert_eq!(runs.into_iter().collect::<Vec<_>>(), [(8, 40), (50, 60)]);
    }

    #[test]
    fn a_run_waits_for_one_whole_turn() {
        let trims = Trims::default();
        assert!(trims.add(&[Extent { start: 7, blocks: 2 }]));
        assert!(trims.turn().is_empty() && !trims.is_empty());
        assert!(trims.add(&[Extent { start: 9, blocks: 1 }]));
        assert_eq!(trims.turn().into_iter().collect::<Vec<_>>(), [(7, 9)]);
        assert_eq!(trims.turn().into_iter().collect::<Vec<_>>(), [(9, 10)]);
        assert!(trims.is_empty());
    }
}
