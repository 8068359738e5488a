//! Planted bugs. A proof that finds nothing proves nothing until it has found these: each is a mistake that a store
//! could make, switched on at run time, in builds with the feature `proof` alone. Elsewhere [`planted`] is `false` as a
//! constant, and nothing of it is compiled.

#[cfg(feature = "proof")]
use std::cell::Cell;
#[cfg(feature = "proof")]
use std::sync::atomic::{AtomicU8, Ordering};

/// A mistake, by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Canary {
    /// A write is answered before its data are flushed.
    ReplyBeforeFlush,
    /// Flushes of the data region are left out.
    NoFlush,
    /// Freed blocks are reusable before the transaction that frees them is durable.
    FreeBeforeDurable,
    /// A node is taken without comparing it with the checksum that its parent holds.
    NoParentChecksum,
    /// The checkpoint writes the superblock before the nodes that it refers to are flushed.
    SuperblockBeforeNodes,
    /// Recovery and the journal's writer know no `durable_lsn`.
    NoDurableLsn,
    /// A group is applied and visible before its record is durable.
    ApplyBeforeDurable,
    /// Conditions are judged against what is applied, without what is pending.
    ConditionOnApplied,
    /// The collector takes what a session owns that it has not fenced.
    CollectorWithoutFence,
    /// The extent is committed before its bytes were pulled and written, as the seed draws it.
    SeedOrder,
    /// A checkpoint reuses the ring and the old nodes before the record that names it is durable.
    ReuseBeforeNamed,
    /// Recovery does not flush first: what a dead process left in the cache passes for durable.
    NoFlushAtRecovery,
    /// A write is committed while its bytes are still on their way to the device.
    CommitBeforeData,
    /// A flush that failed is tried again, and what the second one says is believed.
    FlushRetried,
    /// Bytes are handed out without comparing them with the checksums of the extent map.
    ReadUnchecked,
    /// Freed blocks are reused while a read still looks at them.
    ReuseUnderRead,
    /// A write that is given up gives its blocks back while the device still writes them.
    ReuseUnderWrite,
    /// A deleted cob leaves no tombstone.
    NoTombstone,
    /// A refusal is answered before what it was judged against is durable.
    RefusalBeforeDurable,
    /// The collector sweeps a target where the session is not fenced.
    SweepWithoutFence,
    /// NVMe command identifiers carry no generation: a late completion passes for the next command's.
    NvmeNoGeneration,
    /// An NVMe command's memory goes back when its abort is answered.
    NvmeFreedByAbort,
    /// An NVMe flush that failed, or was lost in a reset, is issued again.
    NvmeFlushRetried,
    /// After a reset of an NVMe controller memory is used again without proof that the device has let go of it.
    NvmeReuseWithoutProof,
    /// Entries of an NVMe completion queue are believed whatever their phase bit says.
    NvmeNoPhase,
}

impl Canary {
    pub const ALL: [Canary; 25] = [
        Canary::ReplyBeforeFlush,
        Canary::NoFlush,
        Canary::FreeBeforeDurable,
        Canary::NoParentChecksum,
        Canary::SuperblockBeforeNodes,
        Canary::NoDurableLsn,
        Canary::ApplyBeforeDurable,
        Canary::ConditionOnApplied,
        Canary::CollectorWithoutFence,
        Canary::SeedOrder,
        Canary::ReuseBeforeNamed,
        Canary::NoFlushAtRecovery,
        Canary::CommitBeforeData,
        Canary::FlushRetried,
        Canary::ReadUnchecked,
        Canary::ReuseUnderRead,
        Canary::ReuseUnderWrite,
        Canary::NoTombstone,
        Canary::RefusalBeforeDurable,
        Canary::SweepWithoutFence,
        Canary::NvmeNoGeneration,
        Canary::NvmeFreedByAbort,
        Canary::NvmeFlushRetried,
        Canary::NvmeReuseWithoutProof,
        Canary::NvmeNoPhase,
    ];
}

impl std::str::FromStr for Canary {
    type Err = String;

    fn from_str(name: &str) -> Result<Canary, String> {
        let known = Canary::ALL.into_iter().find(|canary| format!("{canary:?}") == name);
        known.ok_or_else(|| format!("no canary is called {name}; there are {:?}", Canary::ALL))
    }
}

#[cfg(feature = "proof")]
thread_local! {
    static PLANTED: Cell<Option<Canary>> = const { Cell::new(None) };
}

/// 1 + the mistake of all threads.
#[cfg(feature = "proof")]
static EVERYWHERE: AtomicU8 = AtomicU8::new(0);

/// Whether this thread's store makes the mistake.
#[cfg(feature = "proof")]
pub fn planted(canary: Canary) -> bool {
    PLANTED.get() == Some(canary) || EVERYWHERE.load(Ordering::Relaxed) == canary as u8 + 1
}

/// Whether this thread's store makes the mistake: never, in a build that is not a proof's.
#[cfg(not(feature = "proof"))]
#[inline(always)]
pub const fn planted(_: Canary) -> bool {
    false
}

/// Plants a mistake in this thread, or takes it out.
#[cfg(feature = "proof")]
pub fn plant(canary: Option<Canary>) {
    PLANTED.set(canary);
}

/// Plants a mistake in all threads, for good.
#[cfg(feature = "proof")]
pub fn plant_everywhere(canary: Canary) {
    EVERYWHERE.store(canary as u8 + 1, Ordering::Relaxed);
}
