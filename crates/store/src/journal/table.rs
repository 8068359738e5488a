//! The recovery decision table: what a start does, for everything that superblocks and journal can look like.
//!
//! It is data. Recovery answers the questions of its columns, finds the one row that matches, and does what the row
//! says; the tests build every combination of damage and hold the outcome against a rule of their own. That
//! no input matches two rows, or none, is tested over all of them; `docs/format.md` shows the same table.

use std::fmt;

/// A question about what was found. The order is that of the table's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The device did not give a superblock's copy or a piece of the ring.
    Unreadable,
    /// A copy is whole and of a newer format.
    Newer,
    /// There is a valid superblock.
    Valid,
    /// There are valid ones of more than one target.
    Mixed,
    /// A copy begins as a superblock and fails a check.
    Hurt,
    /// The superblock is of another cluster than the one asked for.
    Foreign,
    /// The regions are not of the size that the superblock says.
    Misfit,
    /// A header in the ring names a higher generation than the superblock's.
    Ahead,
    /// The good records end below the floor.
    Short,
    /// No record that counts names a superblock.
    Unnamed,
    /// Transactions lie beyond the end of the good records.
    Beyond,
}

/// Columns of the table.
pub const FACTS: usize = 11;

impl Fact {
    /// All, in the order of the columns.
    pub const ALL: [Fact; FACTS] = [
        Fact::Unreadable,
        Fact::Newer,
        Fact::Valid,
        Fact::Mixed,
        Fact::Hurt,
        Fact::Foreign,
        Fact::Misfit,
        Fact::Ahead,
        Fact::Short,
        Fact::Unnamed,
        Fact::Beyond,
    ];

    /// The column's head in `docs/format.md`.
    pub fn name(self) -> &'static str {
        match self {
            Fact::Unreadable => "unreadable",
            Fact::Newer => "newer",
            Fact::Valid => "valid",
            Fact::Mixed => "mixed",
            Fact::Hurt => "hurt",
            Fact::Foreign => "foreign",
            Fact::Misfit => "misfit",
            Fact::Ahead => "ahead",
            Fact::Short => "short",
            Fact::Unnamed => "unnamed",
            Fact::Beyond => "beyond",
        }
    }
}

/// The answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts([bool; FACTS]);

impl Facts {
    /// With one answer more; what was not asked is "no".
    #[must_use]
    pub fn with(mut self, fact: Fact, holds: bool) -> Facts {
        self.0[fact as usize] = holds;
        self
    }

    /// Answers by the bits of a number, for those who go through all of them.
    pub fn from_bits(bits: u32) -> Facts {
        Facts(std::array::from_fn(|i| bits >> i & 1 == 1))
    }
}

/// What a start does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Stop: the device failed, what it holds is unknown.
    StopUnreadable,
    /// Stop: a newer version wrote it.
    StopNewer,
    /// Stop: nothing there was ever a target.
    StopNotFormatted,
    /// Stop: all superblocks are damaged.
    StopNoSuperblock,
    /// Stop: superblocks of two targets.
    StopTwoTargets,
    /// Stop: it belongs to another cluster.
    StopForeignCluster,
    /// Stop: the regions are not those of the target.
    StopWrongRegions,
    /// Stop: the newest superblock is lost.
    StopOldSuperblock,
    /// Stop: durable records are lost.
    StopLost,
    /// Stop: the record that names the superblock is lost.
    StopUnnamed,
    /// Open: everything in the journal counts.
    Open,
    /// Open: what is beyond the end was never acknowledged, and is dropped.
    OpenDropTail,
}

impl Decision {
    /// Whether the target is opened.
    pub fn opens(self) -> bool {
        matches!(self, Decision::Open | Decision::OpenDropTail)
    }

    /// What `docs/format.md` says of it.
    pub fn text(self) -> &'static str {
        match self {
            Decision::StopUnreadable => "stop: the device failed",
            Decision::StopNewer => "stop: upgrade",
            Decision::StopNotFormatted => "stop: not formatted",
            Decision::StopNoSuperblock => "stop: no superblock is left",
            Decision::StopTwoTargets => "stop: superblocks of two targets",
            Decision::StopForeignCluster => "stop: belongs to another cluster",
            Decision::StopWrongRegions => "stop: regions of another size",
            Decision::StopOldSuperblock => "stop: the newest superblock is lost",
            Decision::StopLost => "stop: durable records are lost",
            Decision::StopUnnamed => "stop: the naming record is lost",
            Decision::Open => "open with all records",
            Decision::OpenDropTail => "open, drop the tail",
        }
    }
}

/// What a row asks of a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// It holds.
    Y,
    /// It does not.
    N,
    /// Either.
    O,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// In the order of [`Fact::ALL`].
    pub when: [Want; FACTS],
    /// What is done.
    pub then: Decision,
}

use Want::{N, O, Y};

const fn row(when: [Want; FACTS], then: Decision) -> Row {
    Row { when, then }
}

/// The table. Later questions are asked only where the earlier ones leave them open: a journal is looked at only
/// when one superblock says where it is.
#[rustfmt::skip]
pub const TABLE: [Row; 12] = [
    //  unreadable, newer, valid, mixed, hurt, foreign, misfit, ahead, short, unnamed, beyond
    row([Y, O, O, O, O, O, O, O, O, O, O], Decision::StopUnreadable),
    row([N, Y, O, O, O, O, O, O, O, O, O], Decision::StopNewer),
    row([N, N, N, O, N, O, O, O, O, O, O], Decision::StopNotFormatted),
    row([N, N, N, O, Y, O, O, O, O, O, O], Decision::StopNoSuperblock),
    row([N, N, Y, Y, O, O, O, O, O, O, O], Decision::StopTwoTargets),
    row([N, N, Y, N, O, Y, O, O, O, O, O], Decision::StopForeignCluster),
    row([N, N, Y, N, O, N, Y, O, O, O, O], Decision::StopWrongRegions),
    row([N, N, Y, N, O, N, N, Y, O, O, O], Decision::StopOldSuperblock),
    row([N, N, Y, N, O, N, N, N, Y, O, O], Decision::StopLost),
    row([N, N, Y, N, O, N, N, N, N, Y, O], Decision::StopUnnamed),
    row([N, N, Y, N, O, N, N, N, N, N, N], Decision::Open),
    row([N, N, Y, N, O, N, N, N, N, N, Y], Decision::OpenDropTail),
];

impl Row {
    /// Whether the facts are those of this row.
    pub fn matches(&self, facts: Facts) -> bool {
        self.when.iter().zip(facts.0).all(|(want, holds)| match want {
            Y => holds,
            N => !holds,
            O => true,
        })
    }
}

/// The row of these facts.
///
/// # Panics
/// Never: a test goes through all facts.
pub fn index(facts: Facts) -> usize {
    TABLE.iter().position(|row| row.matches(facts)).expect("every input has a row")
}

/// The table as `docs/format.md` shows it.
pub struct Markdown;

impl fmt::Display for Markdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads: Vec<&str> = Fact::ALL.iter().map(|fact| fact.name()).collect();
        writeln!(f, "| {} | then |", heads.join(" | "))?;
        writeln!(f, "|{}", " --- |".repeat(FACTS + 1))?;
        for row in &TABLE {
            let wants = row.when.map(|want| match want {
                Y => "yes",
                N => "no",
                O => "",
            });
            writeln!(f, "| {} | {} |", wants.join(" | "), row.then.text())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{FACTS, Facts, Markdown, TABLE, index};

    #[test]
    fn every_input_matches_exactly_one_row() {
        let mut reached = [0u32; TABLE.len()];
        for bits in 0..1 << FACTS {
            let facts = Facts::from_bits(bits);
            let rows: Vec<usize> = (0..TABLE.len()).filter(|i| TABLE[*i].matches(facts)).collect();
            assert_eq!(rows.len(), 1, "{facts:?}: rows {rows:?}");
            assert_eq!(index(facts), rows[0]);
            reached[rows[0]] += 1;
        }
        assert!(reached.iter().all(|n| *n > 0), "{reached:?}");
    }

    #[test]
    fn the_format_document_shows_this_table() {
        let doc = include_str!("../../../../docs/format.md");
        let table = Markdown.to_string();
        assert!(doc.contains(&table), "docs/format.md must have this table:\n{table}");
    }
}
