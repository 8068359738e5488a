//! What a client must be told: who it is, whom it talks to, and how it lays objects out.

use crate::Limits;
use cobalt_rpc::Peer;
use cobalt_rpc::proto::record::Layout;

/// Units per group and their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutConfig {
    /// N: data units per group, at least 1.
    pub data_units: u8,
    /// K: parity units per group; 0 for none.
    pub parity_units: u8,
    /// Largest unit in bytes: a power of two, from 4 KiB to 1 MiB. Small objects have smaller ones.
    pub unit_size: u32,
}

impl Default for LayoutConfig {
    fn default() -> LayoutConfig {
        LayoutConfig { data_units: 2, parity_units: 1, unit_size: 1 << 20 }
    }
}

impl LayoutConfig {
    /// N+K: targets that a group needs.
    pub fn width(&self) -> usize {
        usize::from(self.data_units) + usize::from(self.parity_units)
    }

    /// Bytes per unit of an object of `size` bytes, the size unknown when it streams.
    pub fn unit_for(&self, size: Option<u64>) -> u32 {
        let Some(size) = size else { return self.unit_size };
        let each = size.div_ceil(u64::from(self.data_units)).next_power_of_two().max(4096);
        u32::try_from(each).map_or(self.unit_size, |each| each.min(self.unit_size))
    }

    /// As it is recorded for an object of `size` bytes that is placed by pool version `pool`.
    pub fn layout_for(&self, size: Option<u64>, pool: u32) -> Layout {
        Layout {
            data_units: self.data_units,
            parity_units: self.parity_units,
            unit_size: self.unit_for(size),
            pool,
        }
    }
}

/// A process of the cluster, this one too. Its [`Peer`] is named as the configuration and the pool name the process.
#[derive(Clone)]
pub struct PeerConfig {
    /// Calls it.
    pub peer: Peer,
    /// Where it listens, for people; how to get there is the peer's affair.
    pub address: String,
    /// Whether it may hold the catalogue.
    pub cas: bool,
}

/// Everything a client is told at its start.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The process that this client lives in, as the configuration names it.
    pub process: String,
    /// How new objects are laid out.
    pub layout: LayoutConfig,
    /// Its limits.
    pub limits: Limits,
}
