//! The proof that the device reaches memory no more (I7), and the way down.

use super::{Controller, Fault, Life};
use crate::admin;
use crate::error::NvmeError;
use crate::function::Function;
use crate::spec::registers::{self, Cap, Csts, cc};
#[cfg(feature = "proof")]
use cobalt_base::canary::{Canary, planted};
use std::time::Duration;

/// What proves that nothing of ours is reached any more. Only the ways below make one.
#[derive(Debug)]
pub struct DmaStopped {
    /// Which of them.
    pub by: StoppedBy,
}

/// In the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoppedBy {
    /// CSTS.RDY was seen at zero: a disabled controller reaches no memory (Base 3.5.3).
    Disabled,
    /// The function was reset.
    FunctionReset,
    /// It may not master the bus.
    BusMasterOff,
    /// The IOMMU translates nothing for it.
    Unmapped,
}

impl StoppedBy {
    /// Whether the controller can be brought up again.
    pub fn can_go_on(self) -> bool {
        matches!(self, StoppedBy::Disabled | StoppedBy::FunctionReset)
    }
}

impl<F: Function> Controller<F> {
    /// A controller in an unknown state, stopped.
    pub(super) async fn quiesce(&self, cap: Cap) -> Result<DmaStopped, NvmeError> {
        let enabled = self.function.read32(registers::CC) & cc::EN != 0;
        let csts = Csts(self.function.read32(registers::CSTS));
        if enabled && !csts.ready() && !csts.fatal() {
            // Someone has just enabled it; what happens when that is taken back at once is undefined (Base 3.1.3.5).
            let _ = self.await_ready(cap, true).await;
        }
        let stopped = self.stop_dma().await;
        stopped.filter(|stopped| stopped.by.can_go_on()).ok_or_else(|| NvmeError::NotReady {
            controller: self.name(),
            wanted: "disabled, not even by a function reset,",
            seconds: cap.timeout().max(self.limits.ready_time).as_secs_f64(),
            csts: self.function.read32(registers::CSTS),
        })
    }

    /// Stops the device's access to memory by the first way that works. `None`: nothing proves it.
    pub(super) async fn stop_dma(&self) -> Option<DmaStopped> {
        self.inner.borrow_mut().enabled = false;
        #[cfg(feature = "proof")]
        if planted(Canary::NvmeReuseWithoutProof) {
            return Some(DmaStopped { by: StoppedBy::Disabled });
        }
        if self.disable().await {
            return Some(DmaStopped { by: StoppedBy::Disabled });
        }
        // Of one that is not there nothing else is to be had, and its reset alone takes the system a minute.
        let there = !self.absent();
        let fits = |result: std::io::Result<()>, what: &str| match result {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(controller = self.function.name(), %error, "{what} failed");
                false
            }
        };
        if there && fits(self.function.reset(&self.ctx).await, "a function reset") && self.disable().await {
            return Some(DmaStopped { by: StoppedBy::FunctionReset });
        }
        if there && fits(self.function.set_bus_master(&self.ctx, false).await, "switching bus mastering off")
        {
            return Some(DmaStopped { by: StoppedBy::BusMasterOff });
        }
        if fits(self.function.unmap_all(&self.ctx).await, "unmapping the device's memory") {
            return Some(DmaStopped { by: StoppedBy::Unmapped });
        }
        None
    }

    /// Clears CC.EN; true when CSTS.RDY followed.
    async fn disable(&self) -> bool {
        let cap = Cap(self.function.read64(registers::CAP));
        if self.absent() {
            self.inner.borrow_mut().raise(Fault::Gone);
            return false;
        }
        self.function.write32(registers::CC, cc::ENTRY_SIZES);
        self.await_ready(cap, false).await.is_ok()
    }

    /// Lets running operations end, shuts the controller down (CC.SHN, Base 3.6.1) and disables it. Its memory goes back.
    ///
    /// # Errors
    /// It is not proven that the device has stopped; its memory is kept then.
    pub async fn close(&self) -> Result<(), NvmeError> {
        // A reset that runs comes to its end first: it would go on after this.
        while self.life() == Life::Starting || self.life() == Life::Ready && self.in_flight() > 0 {
            self.ctx.sleep(Duration::from_millis(1)).await;
        }
        let life = std::mem::replace(&mut self.inner.borrow_mut().life, Life::Closed);
        match life {
            Life::Closed => return Ok(()),
            // Given up before, with whatever proof there was.
            Life::Failed(_) | Life::Gone => {
                let stopped = self.inner.borrow_mut().stopped.take();
                return self.set_stopped(stopped);
            }
            Life::Starting | Life::Ready => {}
        }
        self.detach_interrupt().await;
        self.shut_down().await;
        let stopped = self.stop_dma().await;
        let closed = self.set_stopped(stopped);
        self.function.release(&self.ctx).await;
        closed
    }

    /// Announces the end, and waits for the controller to have written back what its cache holds.
    async fn shut_down(&self) {
        let announced = Duration::from_micros(u64::from(self.inner.borrow().identity.shutdown_us));
        let (begun, time) = (self.ctx.now(), announced.max(self.limits.shutdown_time));
        self.inner.borrow_mut().enabled = false;
        self.function.write32(registers::CC, cc::ENTRY_SIZES | cc::EN | cc::SHN_NORMAL);
        while !Csts(self.function.read32(registers::CSTS)).shutdown_complete() {
            if self.ctx.now() - begun >= time {
                tracing::warn!(
                    controller = self.function.name(),
                    "the controller does not finish its shutdown: it counts an unsafe one"
                );
                return;
            }
            self.ctx.sleep(Duration::from_millis(1)).await;
        }
    }

    /// Keeps the proof; without one all memory is kept for ever.
    pub(super) fn set_stopped(&self, stopped: Option<DmaStopped>) -> Result<(), NvmeError> {
        let mut inner = self.inner.borrow_mut();
        inner.admin_slots = admin::slots(); // Who waits hears that nobody answers.
        let kept = inner.queues.is_none(); // A reset had no proof, and gave all memory up.
        if stopped.is_none() {
            inner.leak();
        }
        let proven = stopped.is_some() && !kept;
        inner.stopped = stopped;
        if !proven {
            return Err(self
                .unfit("nothing proves that it has stopped: the memory that it reached is not used again"));
        }
        Ok(())
    }
}
