//! The kinds of findings. Their names are for programs: they stay, and new ones may come.

use std::fmt;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingKind {
    /// A copy of a superblock is damaged, missing or older than its twin. The next start writes it anew.
    SuperblockCopy,
    /// The journal names a newer superblock than any that is there.
    SuperblockLost,
    /// Records that were durable are gone or damaged.
    JournalLost,
    /// No record names a superblock.
    JournalUnnamed,
    /// The trees refuse a durable record, or it cannot be read as one.
    JournalRedo,
    /// The bitmap of node blocks is damaged or does not match the trees.
    NodeBitmap,
    /// A node is not the one that its referrer names, or breaks a rule of its format.
    Node,
    /// The device does not give a node.
    NodeUnreadable,
    /// Two pointers lead to one node.
    NodeShared,
    /// Keys of a node lie outside of the range that its parent gives it.
    NodeRange,
    /// A row that this version does not write.
    UnknownRow,
    /// A cob's row is damaged.
    CobRow,
    /// A fid is both alive and dead, or alive and deleted.
    CobTwice,
    /// A cob's row and its extents do not have the same number of blocks.
    CobBlocks,
    /// A cob's extents reach beyond its size.
    CobSize,
    /// The count of cobs is wrong.
    CobCount,
    /// A fence's row is damaged, or two fences overlap.
    FenceRow,
    /// The parts of a row of the extent map do not agree.
    ExtentRow,
    /// Extents of a cob that does not exist.
    ExtentOrphan,
    /// Extents of an earlier cob of the same fid.
    ExtentGeneration,
    /// Two rows of the extent map hold the same bytes of a cob.
    ExtentOverlap,
    /// A row of the allocator is damaged.
    FreeRow,
    /// A group's count of free blocks is wrong.
    GroupCount,
    /// The superblock's count of free blocks is wrong.
    FreeCount,
    /// A data block has two owners: cobs, or a cob and free space.
    BlockTwice,
    /// A data block is neither free nor of a cob.
    BlockLost,
    /// A catalogue row has no catalogue.
    CtgRow,
    /// A chunk of data is not what was written.
    Data,
    /// The device does not give a chunk of data.
    DataUnreadable,
}

impl FindingKind {
    /// All of them.
    pub const ALL: [FindingKind; 29] = [
        FindingKind::SuperblockCopy,
        FindingKind::SuperblockLost,
        FindingKind::JournalLost,
        FindingKind::JournalUnnamed,
        FindingKind::JournalRedo,
        FindingKind::NodeBitmap,
        FindingKind::Node,
        FindingKind::NodeUnreadable,
        FindingKind::NodeShared,
        FindingKind::NodeRange,
        FindingKind::UnknownRow,
        FindingKind::CobRow,
        FindingKind::CobTwice,
        FindingKind::CobBlocks,
        FindingKind::CobSize,
        FindingKind::CobCount,
        FindingKind::FenceRow,
        FindingKind::ExtentRow,
        FindingKind::ExtentOrphan,
        FindingKind::ExtentGeneration,
        FindingKind::ExtentOverlap,
        FindingKind::FreeRow,
        FindingKind::GroupCount,
        FindingKind::FreeCount,
        FindingKind::BlockTwice,
        FindingKind::BlockLost,
        FindingKind::CtgRow,
        FindingKind::Data,
        FindingKind::DataUnreadable,
    ];

    /// The name for programs. It never changes.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::SuperblockCopy => "superblock-copy",
            FindingKind::SuperblockLost => "superblock-lost",
            FindingKind::JournalLost => "journal-lost",
            FindingKind::JournalUnnamed => "journal-unnamed",
            FindingKind::JournalRedo => "journal-redo",
            FindingKind::NodeBitmap => "node-bitmap",
            FindingKind::Node => "node",
            FindingKind::NodeUnreadable => "node-unreadable",
            FindingKind::NodeShared => "node-shared",
            FindingKind::NodeRange => "node-range",
            FindingKind::UnknownRow => "unknown-row",
            FindingKind::CobRow => "cob-row",
            FindingKind::CobTwice => "cob-twice",
            FindingKind::CobBlocks => "cob-blocks",
            FindingKind::CobSize => "cob-size",
            FindingKind::CobCount => "cob-count",
            FindingKind::FenceRow => "fence-row",
            FindingKind::ExtentRow => "extent-row",
            FindingKind::ExtentOrphan => "extent-orphan",
            FindingKind::ExtentGeneration => "extent-generation",
            FindingKind::ExtentOverlap => "extent-overlap",
            FindingKind::FreeRow => "free-row",
            FindingKind::GroupCount => "group-count",
            FindingKind::FreeCount => "free-count",
            FindingKind::BlockTwice => "block-twice",
            FindingKind::BlockLost => "block-lost",
            FindingKind::CtgRow => "ctg-row",
            FindingKind::Data => "data",
            FindingKind::DataUnreadable => "data-unreadable",
        }
    }

    /// Whether a target cannot serve all that it holds with it. What is not fatal mends itself at the next start.
    pub fn is_fatal(self) -> bool {
        self != FindingKind::SuperblockCopy
    }
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::FindingKind;
    use std::collections::BTreeSet;

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        let names: BTreeSet<_> = FindingKind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), FindingKind::ALL.len());
        let kinds: BTreeSet<_> = FindingKind::ALL.iter().collect();
        assert_eq!(kinds.len(), FindingKind::ALL.len());
    }
}
