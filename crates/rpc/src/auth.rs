//! Who a process is.

use crate::ClusterSecret;
use std::cell::Cell;
use std::rc::Rc;

/// A process as its peers know it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Identity {
    /// Its name in the configuration, 1 to 64 bytes.
    pub name: String,
    /// Rises with every start of the process: peers refuse an older one than they have seen.
    pub incarnation: u64,
}

/// What a process proves itself with. One per process; clones share it.
#[derive(Clone)]
pub struct Auth(Rc<Inner>);

struct Inner {
    identity: Identity,
    secret: ClusterSecret,
    epoch: Cell<u64>,
}

impl Auth {
    /// The process `identity` of the cluster that shares `secret`.
    pub fn new(identity: Identity, secret: ClusterSecret) -> Auth {
        Auth(Rc::new(Inner { identity, secret, epoch: Cell::new(0) }))
    }

    /// Who this process is.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// The epoch that requests carry from now on; it never falls.
    pub fn set_epoch(&self, epoch: u64) {
        self.0.epoch.set(self.0.epoch.get().max(epoch));
    }

    /// The epoch that requests carry.
    pub fn epoch(&self) -> u64 {
        self.0.epoch.get()
    }

    pub(crate) fn secret(&self) -> &ClusterSecret {
        &self.0.secret
    }
}
