//! Sizes in bytes as people write them: `8GiB`, `64KiB`, `4096`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A size in bytes. Parses `8GiB`, `1.5MiB`, `10MB`, `4096`; prints the largest exact binary unit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ByteSize(pub u64);

/// A size that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is not a size: write a number with B, KiB, MiB, GiB, TiB, KB, MB, GB or TB, as in `8GiB`")]
pub struct BadSize(String);

const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = BadSize;
    fn from_str(text: &str) -> Result<ByteSize, BadSize> {
        let bad = || BadSize(text.to_owned());
        let text = text.trim();
        let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit = unit.trim();
        let scale = match unit {
            "" => 1,
            _ => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(bad)?.1,
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(scale).map(ByteSize).ok_or_else(bad);
        }
        let (whole, fraction) = number.split_once('.').ok_or_else(bad)?;
        let whole: u64 = whole.parse().map_err(|_| bad())?;
        let digits = u32::try_from(fraction.len()).map_err(|_| bad())?;
        let parts: u64 = fraction.parse().map_err(|_| bad())?;
        let fraction = u128::from(parts) * u128::from(scale) / 10u128.checked_pow(digits).ok_or_else(bad)?;
        let bytes = u128::from(whole) * u128::from(scale) + fraction;
        u64::try_from(bytes).map(ByteSize).map_err(|_| bad())
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = UNITS
            .iter()
            .find(|(n, s)| n.len() == 3 && self.0 >= *s && self.0.is_multiple_of(*s))
            .unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / scale)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<ByteSize, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::ByteSize;

    #[test]
    fn sizes_read_as_people_write_them() {
        for (text, bytes) in
            [("8GiB", 8 << 30), ("1.5MiB", 3 << 19), ("4096", 4096), ("10mb", 10_000_000), ("64 KiB", 65_536)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for bad in ["", "GiB", "-1", "1.GiB", "8Gib/s", "99999999999TiB", "1.1.1", "0x10"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        assert_eq!(ByteSize(8 << 30).to_string(), "8GiB");
        assert_eq!(ByteSize(4097).to_string(), "4097B");
    }
}
