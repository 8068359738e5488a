//! `2+1`: how many data and parity units a group has.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// N data and K parity units per group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutSpec {
    /// N, 1 to 16.
    pub data: u8,
    /// K, 0 to 8. 0 keeps no redundancy.
    pub parity: u8,
}

/// A layout that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a layout: write data and parity units, as in `2+1` (1 to 16, and 0 to 8)")]
pub struct BadLayout(String);

impl LayoutSpec {
    /// Most data units.
    pub const DATA_MAX: u8 = 16;
    /// Most parity units.
    pub const PARITY_MAX: u8 = 8;

    /// Targets that a group needs.
    pub fn width(self) -> usize {
        usize::from(self.data) + usize::from(self.parity)
    }
}

impl Default for LayoutSpec {
    fn default() -> LayoutSpec {
        LayoutSpec { data: 2, parity: 1 }
    }
}

impl FromStr for LayoutSpec {
    type Err = BadLayout;
    fn from_str(text: &str) -> Result<LayoutSpec, BadLayout> {
        let bad = || BadLayout(text.to_owned());
        let (data, parity) = text.trim().split_once('+').ok_or_else(bad)?;
        let data = data.parse().map_err(|_| bad())?;
        let parity = parity.parse().map_err(|_| bad())?;
        if data == 0 || data > Self::DATA_MAX || parity > Self::PARITY_MAX {
            return Err(bad());
        }
        Ok(LayoutSpec { data, parity })
    }
}

impl fmt::Display for LayoutSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

impl Serialize for LayoutSpec {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LayoutSpec {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<LayoutSpec, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}
