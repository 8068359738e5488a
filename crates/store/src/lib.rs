//! A target's storage engine: journal, trees, allocator, catalogues, recovery.

pub mod checkpoint;
pub mod geometry;
pub mod superblock;
pub mod tree;
