//! A namespace as a block device.

use crate::controller::{Controller, Identity, Life};
use crate::error::NvmeError;
use crate::function::Function;
use crate::memory::PAGE;
use crate::spec::identify::{IdentifyController, IdentifyNamespace, command_set};
use cobalt_bdev::{Bdev, Identify, Io, IoError};
use std::rc::Rc;

/// What the driver knows of a namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    pub nsid: u32,
    /// Bytes of a logical block, as a power of two.
    pub block_shift: u32,
    /// Bytes that can be used: whole pages.
    pub size: u64,
    /// Bytes that are written whole or not at all when the power fails.
    pub atomic_write: u32,
    /// Globally unique, where it has one: NGUID, else EUI-64, in hex.
    pub unique: Option<String>,
    /// What every byte of a deallocated block reads as, where it promises that (DLFEAT).
    pub deallocated: Option<u8>,
    /// Why it cannot be used.
    pub refused: Option<String>,
    /// Writes that completed, not durable by themselves.
    pub(crate) written: u64,
    /// How many of them the last flush that succeeded had seen.
    pub(crate) flushed: u64,
}

impl Namespace {
    /// From what the namespace says of itself.
    pub(crate) fn new(
        nsid: u32,
        controller: &IdentifyController,
        data: &IdentifyNamespace,
        descriptors: &[u8],
    ) -> Namespace {
        let format = data.format();
        let shift = u32::from(format.lbads);
        let refused = match (command_set(descriptors), format.ms.get(), shift) {
            (2, ..) => Some("is zoned: it cannot be overwritten in place".to_owned()),
            (0, 0, 9..=12) => None,
            (0, 0, _) => Some(format!("has logical blocks of 2^{shift} bytes, not of 512 to 4096")),
            (0, bytes, _) => Some(format!(
                "has {bytes} bytes of metadata with each block: format it without (nvme format --ms=0)"
            )),
            (set, ..) => Some(format!("speaks command set {set}, not NVM")),
        };
        let shift = shift.clamp(9, 12);
        let size = data.nsze.get().saturating_mul(1 << shift) / PAGE as u64 * PAGE as u64;
        let blocks = match data.nsfeat & 2 {
            0 => controller.awupf.get(),
            _ => data.nawupf.get(),
        };
        let atomic_write = (u32::from(blocks) + 1).saturating_mul(1 << shift);
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let known = |bytes: &[u8]| bytes.iter().any(|b| *b != 0).then(|| hex(bytes));
        let deallocated = match data.dlfeat & 7 {
            1 => Some(0),
            2 => Some(0xff),
            _ => None,
        };
        let unique = known(&data.nguid).or_else(|| known(&data.eui64));
        Namespace {
            nsid,
            block_shift: shift,
            size,
            atomic_write,
            unique,
            deallocated,
            refused,
            written: 0,
            flushed: 0,
        }
    }

    /// Whether it is still the same after a reset.
    pub(crate) fn same(&self, other: &Namespace) -> bool {
        (self.nsid, self.block_shift, self.size, &self.unique, &self.refused)
            == (other.nsid, other.block_shift, other.size, &other.unique, &other.refused)
    }
}

/// A namespace of a controller, as a backend.
pub struct NvmeBdev<F: Function> {
    controller: Rc<Controller<F>>,
    ns: usize,
    identify: Identify,
}

impl<F: Function> Controller<F> {
    /// Its namespaces, those that cannot be used among them.
    pub fn namespaces(&self) -> Vec<Namespace> {
        self.inner.borrow().namespaces.clone()
    }

    /// Namespace `nsid` as a block device. Blocks are the controller's pages of 4 KiB, whatever its logical blocks are:
    /// memory is pointed to page by page.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    pub fn namespace(self: &Rc<Self>, nsid: u32) -> Result<NvmeBdev<F>, NvmeError> {
        let inner = self.inner.borrow();
        let found = inner.namespaces.iter().position(|ns| ns.nsid == nsid);
        let Some(ns) = found else {
            let ids: Vec<_> = inner.namespaces.iter().map(|ns| ns.nsid.to_string()).collect();
            return Err(NvmeError::NoNamespace { controller: self.name(), nsid, there: ids.join(", ") });
        };
        let space = &inner.namespaces[ns];
        if let Some(why) = &space.refused {
            return Err(NvmeError::Namespace { controller: self.name(), nsid, why: why.clone() });
        }
        let Identity { transfer_max, volatile_cache, deallocates, .. } = inner.identity;
        let identify = Identify {
            backend: format!("nvme {}/{nsid}", self.function.name()),
            size: space.size,
            block_size: PAGE as u32,
            volatile_cache,
            atomic_write: space.atomic_write,
            depth: inner.slots.len() as u32,
            transfer_max: u32::try_from(transfer_max).unwrap_or(u32::MAX),
            deallocate: deallocates,
        };
        Ok(NvmeBdev { controller: self.clone(), ns, identify })
    }
}

impl<F: Function> NvmeBdev<F> {
    /// Its controller.
    pub fn controller(&self) -> &Rc<Controller<F>> {
        &self.controller
    }
}

impl<F: Function> Bdev for NvmeBdev<F> {
    fn identify(&self) -> &Identify {
        &self.identify
    }

    fn submit(&self, io: Io) {
        self.controller.submit(self.ns, io);
    }

    /// As the next operation would be answered.
    fn lost(&self) -> Option<String> {
        match self.controller.life() {
            Life::Starting | Life::Ready => None,
            Life::Failed(why) => Some(why),
            Life::Gone | Life::Closed => Some(IoError::Gone.to_string()),
        }
    }
}
