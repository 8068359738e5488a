//! The numbered steps of the write path (architecture, section 2). Code passes each one through
//! [`crate::Ctx::step`]: the binary counts them and can halt there, the simulator can crash there.

/// A step of the write path, in its order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Step {
    HttpPut = 1,
    Split = 2,
    Parity = 3,
    SendUnits = 4,
    TxOpen = 5,
    CobLookup = 6,
    Balloc = 7,
    Extmap = 8,
    TxClose = 9,
    Pull = 10,
    DataWrite = 11,
    DataStable = 12,
    JournalWrite = 13,
    Publish = 14,
    HttpReply = 15,
    /// Later: the checkpoint writes dirty tree nodes.
    Checkpoint = 16,
}

impl Step {
    /// All steps in order.
    pub const ALL: [Step; 16] = [
        Step::HttpPut,
        Step::Split,
        Step::Parity,
        Step::SendUnits,
        Step::TxOpen,
        Step::CobLookup,
        Step::Balloc,
        Step::Extmap,
        Step::TxClose,
        Step::Pull,
        Step::DataWrite,
        Step::DataStable,
        Step::JournalWrite,
        Step::Publish,
        Step::HttpReply,
        Step::Checkpoint,
    ];

    /// The step's number in the table.
    pub fn number(self) -> u8 {
        self as u8
    }
}
