//! Lists of which most have one entry, or few: they lie where they are used, and cost no allocation.

use crate::tx::Extent;
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use smallvec::{Array, SmallVec};
use std::fmt;
use std::marker::PhantomData;

/// Pieces of the data region.
pub(crate) type Pieces = SmallVec<[Extent; 1]>;
/// Checksums of chunks, one after the other.
pub(crate) type Crcs = SmallVec<[u32; 4]>;

/// As any list is encoded.
pub(crate) fn serialize<A, S>(list: &SmallVec<A>, to: S) -> Result<S::Ok, S::Error>
where
    A: Array<Item: Serialize>,
    S: Serializer,
{
    to.collect_seq(list)
}

/// Takes no more memory than there are entries, whatever the encoding says of their count.
pub(crate) fn deserialize<'de, A, D>(from: D) -> Result<SmallVec<A>, D::Error>
where
    A: Array<Item: Deserialize<'de>>,
    D: Deserializer<'de>,
{
    struct Take<A>(PhantomData<A>);
    impl<'de, A: Array<Item: Deserialize<'de>>> Visitor<'de> for Take<A> {
        type Value = SmallVec<A>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }
        fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<SmallVec<A>, S::Error> {
            let mut out = SmallVec::new();
            while let Some(entry) = list.next_element()? {
                out.push(entry);
            }
            Ok(out)
        }
    }
    from.deserialize_seq(Take(PhantomData))
}
