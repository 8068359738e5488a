//! Who leads. One replica leads always; behind the same question comes Raft.

/// Says whether this replica may answer.
pub trait Leadership {
    /// Whether this replica leads now.
    ///
    /// # Errors
    /// The name of a replica that may, where one is known.
    fn lead(&self) -> Result<(), Option<String>>;
}

/// The only replica: it leads from its start to its end.
pub struct SoleReplica;

impl Leadership for SoleReplica {
    fn lead(&self) -> Result<(), Option<String>> {
        Ok(())
    }
}
