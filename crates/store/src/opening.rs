//! A target is opened: recovered, then its background work begins.

use crate::apply::Shape;
use crate::balloc::Balloc;
use crate::chore::Chore;
use crate::data::Flusher;
use crate::error::OpenError;
use crate::inline::Unwritten;
use crate::journal::ring::Journal;
use crate::limits::Limits;
use crate::options::OpenOptions;
use crate::recovery;
use crate::region::Regions;
use crate::store::{Applied, Core, Store};
use crate::superblock::Superblock;
use crate::tree::Forest;
use crate::trim::Trims;
use cobalt_base::Lsn;
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::Ctx;
use cobalt_reactor::sync::{Notify, Semaphore};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

/// What recovery hands to the open target.
pub(crate) struct Parts {
    pub forest: Rc<Forest>,
    pub balloc: Balloc,
    pub journal: Journal,
    pub superblock: Superblock,
    pub shape: Shape,
    pub chores: VecDeque<Chore>,
    pub unwritten: Unwritten,
}

impl Store {
    /// Opens a target: recovers it, then starts its background work.
    ///
    /// # Errors
    /// [`OpenError`], a verdict that says what to do.
    pub async fn open(
        ctx: Ctx,
        regions: Regions,
        arena: Arena,
        options: OpenOptions,
    ) -> Result<Store, OpenError> {
        let meta_arena = match &options.meta_arena {
            Some(arena) => arena.clone(),
            None => own_arena(&options.limits)?,
        };
        let parts = recovery::recover(&ctx, &regions, &meta_arena, &options).await?;
        let generation = parts.superblock.generation;
        let store = Store(Core::new(ctx, regions, [arena, meta_arena], options, parts));
        if store.0.read_only {
            return Ok(store);
        }
        let core = &store.0;
        let mut opening = Opening(Some(core.clone()));
        drop(core.ctx.spawn(core.clone().commit_loop()));
        // The superblock that recovery wrote is named before anything is reused.
        if core.journal.has_room_to_spare() {
            core.name_generation(generation).await?;
        } else {
            core.fold().await?;
        }
        drop(core.ctx.spawn(core.clone().checkpoint_loop()));
        drop(core.ctx.spawn(core.clone().chore_loop()));
        drop(core.ctx.spawn(core.clone().trim_loop()));
        drop(core.ctx.spawn(core.clone().write_out_loop()));
        opening.0 = None;
        Ok(store)
    }
}

impl Core {
    pub(crate) fn new(
        ctx: Ctx,
        regions: Regions,
        [arena, meta_arena]: [Arena; 2],
        options: OpenOptions,
        parts: Parts,
    ) -> Rc<Core> {
        let Parts { forest, balloc, journal, superblock, shape, chores, unwritten } = parts;
        let limits = options.limits;
        let ctg_tx = (limits.ctg_tx.min(journal.len / 16) as usize).max(4096);
        let applied = Applied {
            lsn: Lsn(journal.next_lsn.get() - 1),
            position: journal.head(),
            chain: journal.chain.get(),
        };
        let ctx_random = ctx.random_u64();
        Rc::new_cyclic(|core: &Weak<Core>| Core {
            release: {
                let core = core.clone();
                Rc::new(move |extents| {
                    if let Some(core) = core.upgrade() {
                        core.release_blocks(extents);
                    }
                })
            },
            flusher: Flusher::new(ctx.clone(), regions.data.clone()),
            reads: Semaphore::new(limits.reads),
            ctx,
            arena,
            meta_arena,
            regions,
            shape,
            forest,
            balloc: Rc::new(balloc),
            journal: Rc::new(journal),
            superblock: RefCell::new(superblock),
            read_only: options.read_only,
            ctg_tx,
            applied: Cell::new(applied),
            since_freeze: Cell::new(1),
            stamped: Cell::new(applied.position),
            queue: RefCell::default(),
            parked: RefCell::default(),
            arrived: Notify::default(),
            group_done: Notify::default(),
            stop: Cell::new(false),
            committer_done: Cell::new(false),
            failed: RefCell::default(),
            closed: Cell::new(false),
            chores: RefCell::new(chores),
            chore: Notify::default(),
            chore_running: Cell::new(false),
            checkpoint_wanted: Cell::new(false),
            checkpoint_running: Cell::new(false),
            folding: Cell::new(false),
            checkpoint_done: Notify::default(),
            trims: Trims::default(),
            unwritten: Rc::new(unwritten),
            // Somewhere: a proof of one target's transaction is none of another's.
            next_tx: Cell::new(ctx_random >> 1),
            unfenced: Cell::default(),
            counters: Cell::default(),
            limits,
        })
    }
}

/// A start that is given up half-way leaves no task behind that could still write.
struct Opening(Option<Rc<Core>>);

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(core) = &self.0 {
            core.fail("its start was given up");
        }
    }
}

fn own_arena(limits: &Limits) -> Result<Arena, OpenError> {
    let limit = usize::try_from(limits.meta_arena).unwrap_or(usize::MAX);
    Arena::new(ArenaConfig { limit })
        .map_err(|e| OpenError::Limits { why: format!("no memory for the meta region's I/O: {e}") })
}
