//! A controller held through VFIO, as the driver sees it. What goes to the system runs on the control thread; only registers
//! are touched from the reactor.

use super::address::PciAddress;
use super::bar::Bar;
use super::error::VfioError;
use super::handle::{Description, Handle, Notice};
use super::iova::IovaSpace;
use crate::function::{Function, Iova};
use cobalt_dma::Arena;
use cobalt_reactor::Ctx;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

/// Mappings begin at a hugepage's boundary, so that the IOMMU can translate 2 MiB at a time.
const ALIGN: u64 = 2 << 20;
/// Pause between two attempts at a group that is held.
const HELD_PAUSE: Duration = Duration::from_millis(50);

/// How to treat a controller that another process holds.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// How long to wait for it. The kernel lets go of a killed process's device when it has been reset.
    pub time: Duration,
    /// Not for one that lives.
    pub refuse_living: bool,
}

/// What must be given up away from the reactor.
struct Held {
    bar: Bar,
    handle: Arc<Handle>,
    /// Attached to vector 0 only while the reactor parks.
    interrupt: Arc<EventFd>,
    /// Written when the device is asked for, or the bus reports an error.
    notice: EventFd,
    /// What the device reaches: outlives the handle, whose end takes all mappings away.
    mapped: RefCell<Vec<(u64, u64, Arena)>>,
}

/// A controller held through VFIO.
pub struct VfioFunction {
    name: String,
    ctx: Ctx,
    /// None once it was given up.
    held: RefCell<Option<Held>>,
    space: RefCell<IovaSpace>,
    removed: Cell<bool>,
}

impl VfioFunction {
    /// Takes a controller. `memory` bytes will be mapped for it: the figure of the advice when the user may not.
    ///
    /// # Errors
    /// [`VfioError`], which says what to do.
    pub async fn open(
        ctx: &Ctx,
        address: PciAddress,
        memory: u64,
        wait: Wait,
    ) -> Result<VfioFunction, VfioError> {
        let until = ctx.now() + wait.time;
        let (held, found) = loop {
            match ctx.blocking(move || take(address, memory)).await {
                Err(VfioError::Held { known, .. }) if ctx.now() < until && !(known && wait.refuse_living) => {
                    ctx.sleep(HELD_PAUSE).await;
                }
                taken => break taken?,
            }
        };
        Ok(VfioFunction {
            name: address.to_string(),
            ctx: ctx.clone(),
            held: RefCell::new(Some(held)),
            space: RefCell::new(IovaSpace::new(&found.ranges)),
            removed: Cell::new(false),
        })
    }

    /// Something of what is held; `gone` once it was given up.
    fn with<T>(&self, gone: T, of: impl FnOnce(&Held) -> T) -> T {
        self.held.borrow().as_ref().map_or(gone, of)
    }

    fn handle(&self) -> io::Result<Arc<Handle>> {
        self.with(Err(given_up()), |held| Ok(held.handle.clone()))
    }

    /// A range is nobody's any more.
    fn unmapped(&self, iova: u64, len: u64) {
        self.with((), |held| held.mapped.borrow_mut().retain(|(at, ..)| *at != iova));
        self.space.borrow_mut().give(iova, len);
    }

    /// Runs a call on the control thread.
    async fn call<T: Send + 'static>(
        &self,
        ctx: &Ctx,
        call: impl FnOnce(&Handle) -> Result<T, VfioError> + Send + 'static,
    ) -> io::Result<T> {
        let handle = self.handle()?;
        ctx.blocking(move || call(&handle)).await.map_err(io::Error::other)
    }
}

fn given_up() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "it was given up")
}

fn take(address: PciAddress, memory: u64) -> Result<(Held, Description), VfioError> {
    let system = VfioError::system;
    let (handle, found) = Handle::open(address, memory)?;
    let event =
        || EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(io::Error::from);
    let interrupt = Arc::new(event().map_err(system(address, "making an eventfd for"))?);
    let notice = event().map_err(system(address, "making an eventfd for"))?;
    handle.set_notice(Notice::Request, notice.as_fd())?;
    // Not every function reports errors; what is gone shows in its registers, too.
    if let Err(error) = handle.set_notice(Notice::Error, notice.as_fd()) {
        tracing::debug!(%address, %error, "no notice of bus errors");
    }
    if found.vectors > 0 {
        handle.enable_vectors(1)?;
    }
    let bar = handle.registers()?;
    let held = Held { bar, handle: Arc::new(handle), interrupt, notice, mapped: RefCell::default() };
    Ok((held, found))
}

impl Function for VfioFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn bar_len(&self) -> usize {
        self.with(0, |held| held.bar.len())
    }

    fn read32(&self, offset: usize) -> u32 {
        self.with(u32::MAX, |held| held.bar.read32(offset))
    }

    fn read64(&self, offset: usize) -> u64 {
        self.with(u64::MAX, |held| held.bar.read64(offset))
    }

    fn write32(&self, offset: usize, value: u32) {
        self.with((), |held| held.bar.write32(offset, value));
    }

    fn write64(&self, offset: usize, value: u64) {
        self.with((), |held| held.bar.write64(offset, value));
    }

    fn removed(&self) -> bool {
        if !self.removed.get() && self.with(true, |held| held.bar.lost() || held.notice.read().is_ok()) {
            self.removed.set(true);
        }
        self.removed.get()
    }

    async fn map(&self, ctx: &Ctx, arena: &Arena) -> io::Result<Iova> {
        let (base, len) = arena.region();
        let (base, len) = (base as usize, len as u64);
        let address = self.handle()?.address();
        let iova = self.space.borrow_mut().take(len, ALIGN);
        let iova = iova.ok_or_else(|| io::Error::other(VfioError::NoAddresses { address, len }))?;
        // Held from before the device may reach it, whatever becomes of the caller.
        self.with((), |held| held.mapped.borrow_mut().push((iova, len, arena.clone())));
        let mapped = self
            .call(ctx, move |handle| {
                // SAFETY: `mapped` keeps the arena until `unmap` has succeeded or the handle has ended; its bytes belong to
                // buffers, of which the driver lends the device only those of running commands.
                #[expect(unsafe_code)]
                unsafe {
                    handle.map(base, len, iova)
                }
            })
            .await;
        if mapped.is_err() {
            self.unmapped(iova, len);
        }
        mapped.map(|()| Iova(iova))
    }

    async fn unmap_all(&self, ctx: &Ctx) -> io::Result<()> {
        loop {
            let last = |held: &Held| held.mapped.borrow().last().map(|(iova, len, _)| (*iova, *len));
            let Some((iova, len)) = self.with(Err(given_up()), |held| Ok(last(held)))? else { return Ok(()) };
            self.call(ctx, move |handle| handle.unmap(iova, len)).await?;
            self.unmapped(iova, len);
        }
    }

    async fn reset(&self, ctx: &Ctx) -> io::Result<()> {
        self.call(ctx, Handle::reset).await
    }

    async fn set_bus_master(&self, ctx: &Ctx, on: bool) -> io::Result<()> {
        match self.call(ctx, move |handle| handle.set_bus_master(on)).await? {
            true => Ok(()),
            false => Err(io::Error::other("the function does not obey")),
        }
    }

    async fn arm_interrupt(&self, ctx: &Ctx) -> io::Result<RawFd> {
        let event = self.with(Err(given_up()), |held| Ok(held.interrupt.clone()))?;
        let fd = event.as_raw_fd();
        self.call(ctx, move |handle| {
            let _ = event.read(); // What came before is not news.
            handle.set_vector(0, Some(event.as_fd()))
        })
        .await?;
        Ok(fd)
    }

    async fn disarm_interrupt(&self, ctx: &Ctx) -> io::Result<()> {
        self.call(ctx, |handle| handle.set_vector(0, None)).await
    }

    async fn release(&self, ctx: &Ctx) {
        let held = self.held.borrow_mut().take();
        if let Some(held) = held {
            ctx.blocking(move || held.close()).await;
        }
    }
}

impl Held {
    /// Closing resets the device, and waits for it. The registers go first: while they are mapped the device stays open. The
    /// memory goes last.
    fn close(self) {
        let Held { bar, handle, interrupt, notice, mapped } = self;
        drop(bar);
        drop(handle);
        drop((interrupt, notice, mapped));
    }
}

impl Drop for VfioFunction {
    /// On the control thread, or here when the reactor ends with this.
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        let ctx = self.ctx.clone();
        drop(self.ctx.spawn(async move { ctx.blocking(move || held.close()).await }));
    }
}
