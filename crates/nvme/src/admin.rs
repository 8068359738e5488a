//! Admin commands: few, each with a name for its errors, answered through the admin queue pair.

use crate::controller::{Controller, Fault, Life};
use crate::error::NvmeError;
use crate::function::Function;
use crate::limits::ADMIN_SLOTS;
use crate::memory::PAGE;
use crate::spec::command::feature;
use crate::spec::log::LogPage;
use crate::spec::{Command, Completion, admin};
use cobalt_base::Nanos;
use cobalt_reactor::sync::{OneSender, Permit, oneshot};

/// Who waits for an admin command.
pub enum AdminWork {
    /// With the right to the controller's page, where the command fills it: nobody else gets that before the controller is done.
    Answer(OneSender<(Completion, Option<Permit>)>, Option<Permit>),
    /// Of the I/O command in this slot; that command's own completion is what counts.
    Abort(#[cfg_attr(not(feature = "proof"), expect(dead_code, reason = "only a planted bug looks"))] u8),
    /// Answered when something happens.
    AsyncEvent,
}

/// A place in the admin queue.
#[derive(Default)]
pub struct AdminSlot {
    pub generation: u8,
    pub work: Option<AdminWork>,
    /// When the controller is reset for want of an answer.
    pub due: Option<Nanos>,
}

/// A free admin slot's command identifier, taken for `work`.
pub fn take_slot(slots: &mut [AdminSlot], work: AdminWork, due: Option<Nanos>) -> Option<u16> {
    let (n, slot) = slots.iter_mut().enumerate().find(|(_, slot)| slot.work.is_none())?;
    slot.generation = slot.generation.wrapping_add(1);
    (slot.work, slot.due) = (Some(work), due);
    Some(u16::from(slot.generation) << 8 | n as u16)
}

/// All admin slots, free.
pub fn slots() -> Vec<AdminSlot> {
    (0..ADMIN_SLOTS).map(|_| AdminSlot::default()).collect()
}

impl<F: Function> Controller<F> {
    /// Runs an admin command.
    ///
    /// # Errors
    /// Its status; no answer in time, which resets the controller.
    pub(crate) async fn admin(&self, name: &'static str, command: Command) -> Result<Completion, NvmeError> {
        Ok(self.run(name, command, None).await?.0)
    }

    async fn run(
        &self,
        name: &'static str,
        mut command: Command,
        page: Option<Permit>,
    ) -> Result<(Completion, Option<Permit>), NvmeError> {
        let time = self.limits.admin_time;
        let timed_out =
            || NvmeError::TimedOut { controller: self.name(), command: name, seconds: time.as_secs_f64() };
        let (answer, mut receiver) = oneshot();
        {
            let mut inner = self.inner.borrow_mut();
            let cid = take_slot(&mut inner.admin_slots, AdminWork::Answer(answer, page), None);
            let cid = cid.ok_or_else(|| self.unfit("too many admin commands at a time"))?;
            command.cid = cid.into();
            let queues = inner.queues.as_mut().ok_or_else(timed_out)?;
            queues.admin.push(&command);
        }
        let until = self.ctx.now() + time;
        loop {
            let look = (self.ctx.now() + self.limits.health_every).min(until);
            match self.ctx.timeout_at(look, &mut receiver).await {
                Ok(Some((completion, page))) if completion.status().ok() => return Ok((completion, page)),
                Ok(Some((completion, _))) => {
                    let status = completion.status();
                    return Err(NvmeError::Command { controller: self.name(), command: name, status });
                }
                Ok(None) => return Err(timed_out()),
                Err(_) if self.ctx.now() >= until => {
                    self.fault(Fault::AdminTimeout(name));
                    return Err(timed_out());
                }
                // While it is brought up, nobody else looks.
                Err(_) => {
                    if let Some(fault) = self.health() {
                        self.fault(fault);
                        return Err(self.unfit(format!("{name} is not answered: {fault:?}")));
                    }
                }
            }
        }
    }

    /// Runs an admin command of a bring-up that fills the controller's page, and copies that.
    async fn admin_page(&self, name: &'static str, command: Command) -> Result<Vec<u8>, NvmeError> {
        let page = self.page.acquire(1).await;
        self.fill_page(name, command, page).await
    }

    /// The same of a controller in use. One that is being reset has its page for itself: a command that hangs here would keep it
    /// from whoever resets.
    async fn admin_page_in_use(&self, name: &'static str, command: Command) -> Result<Vec<u8>, NvmeError> {
        let ready = || match self.life() {
            Life::Ready => Ok(()),
            life => Err(self.unfit(format!("it cannot be asked: it is {life}"))),
        };
        ready()?;
        let page = self.page.acquire(1).await;
        ready()?;
        self.fill_page(name, command, page).await
    }

    async fn fill_page(
        &self,
        name: &'static str,
        mut command: Command,
        page: Permit,
    ) -> Result<Vec<u8>, NvmeError> {
        // Without a proof that it has stopped, its queues and this page are given up.
        let given_up = || self.unfit("it cannot be stopped");
        {
            let inner = self.inner.borrow();
            let queues = inner.queues.as_ref().ok_or_else(given_up)?;
            // What the device does not fill reads as zero.
            for at in (0..PAGE).step_by(8) {
                queues.page.write64(at, 0);
            }
            command.prp1 = queues.page.iova().0.into();
        }
        let _page = self.run(name, command, Some(page)).await?;
        let inner = self.inner.borrow();
        let queues = inner.queues.as_ref().ok_or_else(given_up)?;
        Ok((0..PAGE).step_by(4).flat_map(|at| queues.page.read32(at).to_le_bytes()).collect())
    }

    /// Identify.
    pub(crate) async fn identify_data(
        &self,
        name: &'static str,
        cns: u32,
        nsid: u32,
    ) -> Result<Vec<u8>, NvmeError> {
        let mut command = Command::new(admin::IDENTIFY, nsid);
        command.cdw10 = cns.into();
        self.admin_page(name, command).await
    }

    /// The value of a feature.
    pub(crate) async fn get_feature(&self, name: &'static str, feature: u32) -> Result<u32, NvmeError> {
        let mut command = Command::new(admin::GET_FEATURES, 0);
        command.cdw10 = feature.into();
        Ok(self.admin(name, command).await?.result.get())
    }

    /// Sets a feature.
    pub(crate) async fn set_feature(
        &self,
        name: &'static str,
        feature: u32,
        value: u32,
    ) -> Result<u32, NvmeError> {
        let mut command = Command::new(admin::SET_FEATURES, 0);
        command.cdw10 = feature.into();
        command.cdw11 = value.into();
        Ok(self.admin(name, command).await?.result.get())
    }

    /// A log page of the whole controller: `spec::log::Smart`, `ErrorEntry` or `Firmware`.
    ///
    /// # Errors
    /// The controller is not in use, the command failed, or [`NvmeError::Malformed`].
    pub async fn log_page<L: LogPage>(&self) -> Result<L, NvmeError> {
        let mut command = Command::new(admin::GET_LOG_PAGE, u32::MAX);
        let words = (size_of::<L>() / 4 - 1) as u32; // NUMDL counts from zero.
        command.cdw10 = (words << 16 | u32::from(L::ID)).into();
        let page = self.admin_page_in_use("Get Log Page", command).await?;
        let malformed = |why| NvmeError::Malformed { controller: self.name(), page: L::NAME, why };
        let (page, _) = L::read_from_prefix(&page).map_err(|_| malformed("it is cut off".to_owned()))?;
        page.check().map_err(malformed)?;
        Ok(page)
    }

    /// Reads the page that an event names, which lets further ones of its kind come.
    pub(crate) async fn clear_event(&self, page: u32) -> Result<(), NvmeError> {
        const WORDS: u32 = 16;
        let mut command = Command::new(admin::GET_LOG_PAGE, u32::MAX);
        command.cdw10 = ((WORDS - 1) << 16 | page).into();
        self.admin_page_in_use("Get Log Page, of an event", command).await.map(drop)
    }

    /// Asks to be told of what happens. Answers are awaited by [`AdminWork::AsyncEvent`].
    pub(crate) fn ask_for_events(&self) {
        let mut inner = self.inner.borrow_mut();
        let Some(cid) = take_slot(&mut inner.admin_slots, AdminWork::AsyncEvent, None) else { return };
        let mut command = Command::new(admin::ASYNC_EVENT, 0);
        command.cid = cid.into();
        if let Some(queues) = &mut inner.queues {
            queues.admin.push(&command);
        }
    }

    /// Events: all critical warnings, and changes of namespaces.
    pub(crate) async fn configure_events(&self) -> Result<(), NvmeError> {
        self.set_feature("Set Features, asynchronous events", feature::ASYNC_EVENT_CONFIG, 0x11f).await?;
        self.ask_for_events();
        Ok(())
    }
}
