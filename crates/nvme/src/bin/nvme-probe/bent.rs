//! A controller held through VFIO, seen with fewer queue entries than it has, or with an arena of which the driver believes
//! that it is mapped.

use cobalt_dma::Arena;
use cobalt_nvme::spec::registers::CAP;
use cobalt_nvme::vfio::VfioFunction;
use cobalt_nvme::{Function, Iova};
use cobalt_reactor::Ctx;
use std::io;
use std::os::fd::RawFd;

/// Within what the IOMMU translates, and far from what is mapped: mappings begin at the lowest address.
const UNMAPPED: Iova = Iova(1 << 38);
/// CAP.MQES.
const ENTRIES: u64 = 0xffff;

/// The function, and what is told of it.
pub struct Bent {
    pub function: VfioFunction,
    /// Most entries of a queue.
    pub entries: Option<u64>,
    /// The arena that the device does not reach.
    pub unmapped: Arena,
}

impl Function for Bent {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn bar_len(&self) -> usize {
        self.function.bar_len()
    }

    fn read32(&self, offset: usize) -> u32 {
        self.function.read32(offset)
    }

    fn read64(&self, offset: usize) -> u64 {
        let value = self.function.read64(offset);
        match self.entries {
            Some(entries) if offset == CAP => value & !ENTRIES | (entries - 1) & ENTRIES,
            _ => value,
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        self.function.write32(offset, value);
    }

    fn write64(&self, offset: usize, value: u64) {
        self.function.write64(offset, value);
    }

    fn removed(&self) -> bool {
        self.function.removed()
    }

    async fn map(&self, ctx: &Ctx, arena: &Arena) -> io::Result<Iova> {
        if arena.region() == self.unmapped.region() {
            return Ok(UNMAPPED);
        }
        self.function.map(ctx, arena).await
    }

    async fn unmap_all(&self, ctx: &Ctx) -> io::Result<()> {
        self.function.unmap_all(ctx).await
    }

    async fn reset(&self, ctx: &Ctx) -> io::Result<()> {
        self.function.reset(ctx).await
    }

    async fn set_bus_master(&self, ctx: &Ctx, on: bool) -> io::Result<()> {
        self.function.set_bus_master(ctx, on).await
    }

    async fn arm_interrupt(&self, ctx: &Ctx) -> io::Result<RawFd> {
        self.function.arm_interrupt(ctx).await
    }

    async fn disarm_interrupt(&self, ctx: &Ctx) -> io::Result<()> {
        self.function.disarm_interrupt(ctx).await
    }

    async fn release(&self, ctx: &Ctx) {
        self.function.release(ctx).await;
    }
}
