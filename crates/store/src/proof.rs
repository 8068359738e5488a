//! What `prove` sees of the store's inside. Built with the feature `proof` alone.

pub use crate::points::{Point, order as order_refusal, seen as reservations};
pub use crate::recovery::{Judged, judged};

use crate::alloc_rows::{self, group_blocks};
use crate::apply::{Halt, Shape};
use crate::balloc::{Balloc, ReadPin, Reservation};
use crate::error::StoreError;
use crate::geometry::{Geometry, JOURNAL_LEN_MIN, Region};
use crate::inline::{FULL_PAUSE, PATIENCE};
use crate::limits::Limits;
use crate::stage::Stage;
use crate::store::Store;
use crate::tree::{CacheStats, Forest, TreeLimits};
use crate::tx::Extent;
use cobalt_base::Lsn;
use cobalt_dma::Arena;
use cobalt_reactor::Ctx;
use std::cell::RefCell;
use std::rc::Rc;
use uuid::Uuid;

/// Refused write-outs, at least, of a host that stays full.
pub const REFUSALS_MIN: u64 = (PATIENCE.as_millis() / FULL_PAUSE.as_millis()) as u64;

/// What an open target has met, beyond its counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub cache: CacheStats,
    /// Times that the journal began its ring anew.
    pub wraps: u64,
    /// Reservations that waited for journal space.
    pub journal_waits: u64,
    /// Groups whose free extents were dropped from memory for others.
    pub groups_dropped: u64,
    /// Reservations that left the group they began in.
    pub groups_left: u64,
}

/// See [`Stats`].
pub fn stats(store: &Store) -> Stats {
    let core = &store.0;
    let (groups_dropped, groups_left) = core.balloc.met();
    Stats {
        cache: core.forest.cache_stats(),
        wraps: core.journal.head() / core.journal.len,
        journal_waits: core.journal.waits(),
        groups_dropped,
        groups_left,
    }
}

/// Whether no background work is left.
pub fn is_idle(store: &Store) -> bool {
    store.is_idle()
}

/// The last transaction that recovery found: what was before it survived, what was not is void.
pub fn recovered(store: &Store) -> Lsn {
    Lsn(store.0.superblock.borrow().epoch_start.0 - 1)
}

/// The allocator over a forest of its own: reservations and transactions without the rest of a store.
pub struct Allocator {
    forest: Rc<Forest>,
    balloc: Rc<Balloc>,
    shape: Shape,
    limits: Limits,
    let_go: Rc<RefCell<Vec<Extent>>>,
}

/// Blocks that are reserved.
pub struct Reserved(Rc<Reservation>);

/// See [`Allocator::pin`].
pub struct Pinned {
    _pin: ReadPin,
}

impl Reserved {
    pub fn extents(&self) -> Vec<Extent> {
        self.0.extents().to_vec()
    }
}

impl Allocator {
    /// All of `blocks` are free.
    ///
    /// # Errors
    /// Those of reading the summaries.
    pub async fn new(
        ctx: &Ctx,
        meta: &Region,
        arena: &Arena,
        blocks: u64,
        limits: Limits,
    ) -> Result<Allocator, StoreError> {
        let geometry = Geometry::plan(meta.len, 4096, JOURNAL_LEN_MIN)
            .map_err(|e| StoreError::Invalid(e.to_string()))?;
        let trees = TreeLimits { cache_bytes: limits.node_cache, ..TreeLimits::tiny() };
        let forest = Rc::new(Forest::create(ctx, meta, arena, geometry, Uuid::from_u128(7), trees));
        let shape = Shape { data_blocks: blocks, group_blocks: group_blocks(blocks), row_max: 1000 };
        let balloc = Rc::new(Balloc::open(forest.clone(), shape, &limits).await?);
        Ok(Allocator { forest, balloc, shape, limits, let_go: Rc::default() })
    }

    /// What a start does: the allocator that the trees give.
    ///
    /// # Errors
    /// Those of reading the summaries.
    pub async fn reopen(self) -> Result<Allocator, StoreError> {
        let balloc = Rc::new(Balloc::open(self.forest.clone(), self.shape, &self.limits).await?);
        Ok(Allocator { balloc, let_go: Rc::default(), ..self })
    }

    /// Blocks in a group.
    pub fn group_blocks(&self) -> u64 {
        self.shape.group_blocks
    }

    /// Reserves.
    ///
    /// # Errors
    /// Those of a store's reservation.
    pub async fn reserve(&self, blocks: u64, goal: Option<u64>) -> Result<Reserved, StoreError> {
        self.balloc.reserve(blocks, goal, || Ok(())).await.map(Reserved)
    }

    /// One transaction, durable and applied: `take` is mapped, `give` is freed. Gives what nothing holds any more.
    ///
    /// # Errors
    /// Those of reading the trees; nothing was changed then.
    pub async fn commit(&self, take: &[Reserved], give: Vec<Extent>) -> Result<Vec<Extent>, StoreError> {
        let _epoch = self.forest.epoch();
        let stage = Stage::holding(self.forest.clone(), 1);
        let taken: Vec<Extent> = take.iter().flat_map(Reserved::extents).collect();
        loop {
            let attempt = || -> Result<(), Halt> {
                alloc_rows::settle(&stage, self.shape, &taken, &give)?;
                Ok(stage.touch_new()?)
            };
            match attempt() {
                Ok(()) => break,
                Err(Halt::Miss(miss)) => {
                    stage.rollback();
                    self.forest.load_held(miss).await?;
                }
                Err(Halt::Corrupt(corrupt)) => return Err(corrupt.into()),
                Err(Halt::Refused(error)) => return Err(error),
            }
        }
        stage.mutate().map_err(|miss| StoreError::Invalid(format!("{miss:?}")))?;
        take.iter().for_each(|reserved| reserved.0.consume());
        Ok(self.balloc.free(give))
    }

    /// Blocks that nothing holds may be handed out again.
    pub fn reusable(&self, extents: &[Extent]) {
        self.balloc.reusable(extents);
    }

    /// What is mapped now is not handed out while this lives.
    pub fn pin(&self) -> Pinned {
        let let_go = self.let_go.clone();
        Pinned { _pin: self.balloc.pin(Rc::new(move |extents| let_go.borrow_mut().extend(extents))) }
    }

    /// What dropped pins were the last to hold.
    pub fn let_go(&self) -> Vec<Extent> {
        self.let_go.take()
    }

    /// Takes free blocks out for a deallocation.
    ///
    /// # Errors
    /// Those of reading the trees.
    pub async fn withdraw(&self, start: u64, end: u64) -> Result<Option<Extent>, StoreError> {
        self.balloc.withdraw(start, end).await
    }

    /// Blocks that may be handed out, and those that are held.
    pub fn counts(&self) -> (u64, u64) {
        self.balloc.counts()
    }

    /// Groups dropped from memory, reservations that left their first group, node reads, evictions.
    pub fn met(&self) -> [u64; 4] {
        let (dropped, left) = self.balloc.met();
        let cache = self.forest.cache_stats();
        [dropped, left, cache.reads, cache.evictions]
    }

    /// Writes the trees, so that their nodes may leave the memory.
    ///
    /// # Errors
    /// Those of the device.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        let frozen = self.forest.freeze();
        self.forest.write(&frozen, |_| None).await?;
        self.forest.release(frozen);
        Ok(())
    }
}
