//! What the driver sees of a controller: one PCI function with registers, memory that it may reach, and interrupts.
//! VFIO implements it for disks, the software controller for proofs.

use cobalt_dma::Arena;
use cobalt_reactor::Ctx;
use std::io;
use std::os::fd::RawFd;

/// An address as the device uses it, translated by the IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Iova(pub u64);

impl Iova {
    /// The address `bytes` further on.
    pub fn offset(self, bytes: usize) -> Iova {
        Iova(self.0 + bytes as u64)
    }
}

/// A PCI function. Register accesses are volatile, whole, and never block; they read all ones once the device is gone.
///
/// The calls that are `async` go to the system and may block: an implementation runs them on the control thread.
pub trait Function: 'static {
    /// What it is, for messages and `status`: `0000:03:00.0`.
    fn name(&self) -> &str;
    /// Bytes of BAR0 that can be reached.
    fn bar_len(&self) -> usize;
    /// Reads the register at byte `offset` of BAR0.
    fn read32(&self, offset: usize) -> u32;
    /// As [`Function::read32`], of 64 bits.
    fn read64(&self, offset: usize) -> u64;
    /// Writes the register at byte `offset` of BAR0; what memory held before is visible to the device first.
    fn write32(&self, offset: usize, value: u32);
    /// As [`Function::write32`], of 64 bits.
    fn write64(&self, offset: usize, value: u64);
    /// Whether the system says that the device is gone, or asks for it.
    fn removed(&self) -> bool;

    /// Makes all of an arena reachable for the device, at consecutive addresses from the one that is returned.
    fn map(&self, ctx: &Ctx, arena: &Arena) -> impl Future<Output = io::Result<Iova>>;
    /// Takes all mappings back: nothing of this process is reachable any more.
    fn unmap_all(&self, ctx: &Ctx) -> impl Future<Output = io::Result<()>>;
    /// Resets the function (FLR). The controller is disabled afterwards.
    fn reset(&self, ctx: &Ctx) -> impl Future<Output = io::Result<()>>;
    /// Allows or forbids the device to reach memory at all; done when a read of the setting says so.
    fn set_bus_master(&self, ctx: &Ctx, on: bool) -> impl Future<Output = io::Result<()>>;
    /// The descriptor that becomes readable with each interrupt of vector 0 from here on, until `disarm`.
    fn arm_interrupt(&self, ctx: &Ctx) -> impl Future<Output = io::Result<RawFd>>;
    /// Ends that.
    fn disarm_interrupt(&self, ctx: &Ctx) -> impl Future<Output = io::Result<()>>;
    /// Gives the function up: when this ends its descriptors are closed, so that others may have it. Registers read all ones from
    /// here on, and every call fails. It proves nothing: memory that the device may reach is not used again.
    fn release(&self, ctx: &Ctx) -> impl Future<Output = ()>;
}
