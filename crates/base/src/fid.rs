//! Identities. A fid names an object (and its cobs, one on each target); it is never used twice.
//!
//! A fid is (session, counter): the session is a record in the catalogue that is opened once and
//! never again, so no two gateways ever draw the same fid, and what a dead gateway left behind
//! is found by its session alone (I9a).

use serde::{Deserialize, Serialize};
use std::fmt;

/// A gateway's session with the catalogue. Zero is never given out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// 128-bit identity of an object and of its cobs, ordered by (session, counter).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Fid {
    /// The session that drew it.
    pub session: SessionId,
    /// Its place among the session's fids; zero is never given out.
    pub counter: u64,
}

impl Fid {
    /// The smallest fid of all.
    pub const MIN: Fid = Fid { session: SessionId(0), counter: 0 };
    /// The largest fid of all.
    pub const MAX: Fid = Fid { session: SessionId(u64::MAX), counter: u64::MAX };

    /// The fid `counter` of `session`.
    pub const fn new(session: SessionId, counter: u64) -> Fid {
        Fid { session, counter }
    }

    /// Big-endian bytes: their order is the order of fids, so trees keep a session together.
    pub fn to_key(self) -> [u8; 16] {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&self.session.0.to_be_bytes());
        key[8..].copy_from_slice(&self.counter.to_be_bytes());
        key
    }

    /// The inverse of [`Fid::to_key`].
    pub fn from_key(key: [u8; 16]) -> Fid {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = key;
        Fid {
            session: SessionId(u64::from_be_bytes([a, b, c, d, e, f, g, h])),
            counter: u64::from_be_bytes([i, j, k, l, m, n, o, p]),
        }
    }
}

impl fmt::Display for Fid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{:x}", self.session.0, self.counter)
    }
}

impl fmt::Debug for Fid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::{Fid, SessionId};

    #[test]
    fn key_order_is_fid_order() {
        let fids = [
            Fid::MIN,
            Fid::new(SessionId(1), 256),
            Fid::new(SessionId(1), 257),
            Fid::new(SessionId(256), 0),
            Fid::MAX,
        ];
        for pair in fids.windows(2) {
            assert!(pair[0] < pair[1] && pair[0].to_key() < pair[1].to_key());
            assert_eq!(Fid::from_key(pair[0].to_key()), pair[0]);
        }
    }
}
