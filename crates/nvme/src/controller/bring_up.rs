//! From any state to ready: disable, configure, enable, identify, make the I/O queues (Base 3.5.1).

use super::{Controller, DmaStopped, Fault, Identity, Life, Queues};
use crate::admin;
use crate::error::NvmeError;
use crate::function::Function;
use crate::limits::{ADMIN_SLOTS, SLOTS_MAX};
use crate::memory::{Maps, PAGE, Shared};
use crate::namespace::Namespace;
use crate::pointer;
use crate::qpair::{QueuePair, ShadowDoorbells};
use crate::request::Slot;
use crate::spec::command::feature;
use crate::spec::identify::{IdentifyController, IdentifyNamespace, cns, text};
use crate::spec::registers::{self, Cap, Csts, cc};
use crate::spec::{Command, Status, admin as opcode};
use cobalt_dma::Arena;
use std::io;
use std::time::Duration;
use zerocopy::FromBytes;

/// Namespaces that the driver looks at.
const NAMESPACES_MAX: usize = 64;
/// First and longest pause between two looks at CSTS.
const LOOK_FIRST: Duration = Duration::from_micros(20);
const LOOK_MAX: Duration = Duration::from_millis(10);

impl<F: Function> Controller<F> {
    /// The first time: memory, queues, and what the controller is.
    pub(super) async fn start(&self, arenas: &[Arena]) -> Result<(), NvmeError> {
        let vs = self.function.read32(registers::VS);
        if vs == 0 || vs == registers::ALL_ONES || self.function.removed() {
            return Err(NvmeError::Gone { controller: self.name(), vs });
        }
        let cap = Cap(self.function.read64(registers::CAP));
        if !cap.has_nvm() {
            return Err(self.unfit("it does not speak the NVM command set (CAP.CSS)"));
        }
        if cap.page_min() > PAGE as u64 {
            return Err(
                self.unfit(format!("its smallest memory page has {} bytes, not 4096", cap.page_min()))
            );
        }
        let doorbells_end = registers::DOORBELLS + 4 * cap.doorbell_stride();
        if self.function.bar_len() < doorbells_end {
            return Err(self.unfit(format!(
                "BAR0 has {} bytes; its doorbells end at {doorbells_end}",
                self.function.bar_len()
            )));
        }
        let depth = self.limits.depth.min(SLOTS_MAX).min(cap.queue_entries_max() - 1);
        if depth == 0 {
            return Err(
                self.unfit("its queues have one entry: CAP.MQES is zero, which the specification forbids")
            );
        }
        // An unknown state: what runs there may still reach the memory of whoever was here before, but not ours.
        let stopped = self.quiesce(cap).await?;
        self.function.set_bus_master(&self.ctx, true).await.map_err(self.system("enabling bus mastering"))?;
        let Some(first) = arenas.first() else { return Err(self.unfit("no memory was given to it")) };
        let mut maps = Maps::default();
        for arena in arenas {
            let iova = self.function.map(&self.ctx, arena).await.map_err(self.system(
                "mapping memory for the device (needs read and write access to /dev/vfio/GROUP, and a memlock limit of at least the arena: ulimit -l, LimitMEMLOCK=)",
            ))?;
            maps.add(arena, iova);
        }
        let queues = self.queues(&maps, first, cap, depth).map_err(self.system("queue memory"))?;
        {
            let mut inner = self.inner.borrow_mut();
            inner.maps = maps;
            inner.queues = Some(queues);
            inner.slots = vec![Slot::FREE; depth as usize];
            inner.free = (0..depth).rev().map(|n| n as u8).collect();
        }
        self.bring_up(stopped).await?;
        self.inner.borrow_mut().life = Life::Ready;
        Ok(())
    }

    fn queues(&self, maps: &Maps, arena: &Arena, cap: Cap, depth: u32) -> io::Result<Queues> {
        let stride = cap.doorbell_stride();
        Ok(Queues {
            admin: QueuePair::new(maps, arena, 0, ADMIN_SLOTS + 1, stride)?,
            io: QueuePair::new(maps, arena, 1, depth + 1, stride)?,
            shadow: Some(ShadowDoorbells::new(maps, arena)?),
            shadow_used: false,
            lists: Shared::new(maps, arena, depth as usize * PAGE)?,
            page: Shared::new(maps, arena, PAGE)?,
        })
    }

    /// From stopped to ready. The queues are empty and known to be nobody's: `stopped` says so.
    pub(super) async fn bring_up(&self, stopped: DmaStopped) -> Result<(), NvmeError> {
        let cap = Cap(self.function.read64(registers::CAP));
        {
            let mut inner = self.inner.borrow_mut();
            inner.stopped = None;
            inner.fault = None;
            inner.events.clear();
            inner.admin_slots = admin::slots();
            inner.now = self.ctx.now();
            let queues = inner.queues.as_mut().expect("queues exist from the first bring-up on");
            queues.empty(&stopped);
            let (asq, acq) = queues.admin.iovas();
            let last = queues.admin.entries() - 1;
            // Interrupts by pin are masked; messages are attached only to park.
            self.function.write32(registers::INTMS, u32::MAX);
            self.function.write32(registers::AQA, last << 16 | last);
            self.function.write64(registers::ASQ, asq.0);
            self.function.write64(registers::ACQ, acq.0);
            self.function.write32(registers::CC, cc::ENTRY_SIZES | cc::EN);
        }
        self.await_ready(cap, true).await?;
        self.inner.borrow_mut().enabled = true;
        let (identity, data) = self.identify_controller(cap).await?;
        self.make_queues(identity.shadow_doorbells).await?;
        let namespaces = self.identify_namespaces(&data).await?;
        {
            let mut inner = self.inner.borrow_mut();
            let inner = &mut *inner;
            let cache = identity.volatile_cache;
            let known = !inner.namespaces.is_empty();
            let same = inner.namespaces.len() == namespaces.len()
                && inner.namespaces.iter().zip(&namespaces).all(|(old, new)| old.same(new));
            if known && (inner.identity.serial != identity.serial || !same) {
                let what = "another serial number, or other namespaces".to_owned();
                return Err(NvmeError::Changed { controller: self.name(), what });
            }
            if known && cache && !inner.identity.volatile_cache {
                let what = "it has a volatile write cache now: writes were not flushed".to_owned();
                return Err(NvmeError::Changed { controller: self.name(), what });
            }
            if !known {
                inner.namespaces = namespaces;
            }
            // Once there was one, flushes go on; what is smaller now must be heeded.
            let cache = cache || inner.identity.volatile_cache;
            inner.identity = Identity { volatile_cache: cache, ..identity };
        }
        self.configure_events().await
    }

    async fn identify_controller(&self, cap: Cap) -> Result<(Identity, IdentifyController), NvmeError> {
        let page = self.identify_data("Identify Controller", cns::CONTROLLER, 0).await?;
        let data = IdentifyController::read_from_bytes(&page).expect("an identify page is a page");
        if data.sqes & 0xf > 6 || data.cqes & 0xf > 4 {
            return Err(self.unfit("its queue entries are larger than 64 and 16 bytes"));
        }
        let most = match data.mdts {
            0 => u64::MAX,
            shift => cap.page_min().checked_shl(u32::from(shift)).unwrap_or(u64::MAX),
        };
        let cached = match data.vwc & 1 {
            0 => false,
            // Identify says whether there can be one, the feature whether it is on. What cannot be asked is on.
            _ => match self
                .get_feature("Get Features, volatile write cache", feature::VOLATILE_WRITE_CACHE)
                .await
            {
                Ok(value) => value & 1 == 1,
                Err(NvmeError::Command { .. }) => true,
                Err(error) => return Err(error),
            },
        };
        let identity = Identity {
            serial: text(&data.sn),
            model: text(&data.mn),
            firmware: text(&data.fr),
            transfer_max: most.min(pointer::BYTES_MAX as u64),
            deallocates: data.oncs.get() & 4 != 0,
            volatile_cache: cached,
            shadow_doorbells: self.limits.shadow_doorbells && data.oacs.get() & 1 << 8 != 0,
            sgl_max: if self.limits.sgls { data.sgl_descriptors() } else { 0 },
            shutdown_us: data.rtd3e.get(),
        };
        Ok((identity, data))
    }

    async fn make_queues(&self, shadow: bool) -> Result<(), NvmeError> {
        // One pair: counted from zero. A controller grants at least that or fails the command, so its answer tells nothing.
        self.set_feature("Set Features, number of queues", feature::NUMBER_OF_QUEUES, 0).await?;
        let pages = {
            let inner = self.inner.borrow();
            let queues = inner.queues.as_ref().expect("queues exist from the first bring-up on");
            queues.shadow.as_ref().filter(|_| shadow).map(|s| (s.values.iova(), s.events.iova()))
        };
        if let Some((values, events)) = pages {
            let mut command = Command::new(opcode::DOORBELL_BUFFER_CONFIG, 0);
            (command.prp1, command.prp2) = (values.0.into(), events.0.into());
            self.admin("Doorbell Buffer Config", command).await?;
            let mut inner = self.inner.borrow_mut();
            inner.queues.as_mut().expect("queues exist from the first bring-up on").shadow_used = true;
        }
        let (sq, cq, id, last) = {
            let inner = self.inner.borrow();
            let io = &inner.queues.as_ref().expect("queues exist from the first bring-up on").io;
            let (sq, cq) = io.iovas();
            (sq, cq, u32::from(io.id()), io.entries() - 1)
        };
        let mut command = Command::new(opcode::CREATE_IO_CQ, 0);
        command.prp1 = cq.0.into();
        command.cdw10 = (last << 16 | id).into();
        command.cdw11 = 0b11.into(); // Interrupts on, of vector 0; physically contiguous.
        self.admin("Create I/O Completion Queue", command).await?;
        let mut command = Command::new(opcode::CREATE_IO_SQ, 0);
        command.prp1 = sq.0.into();
        command.cdw10 = (last << 16 | id).into();
        command.cdw11 = (id << 16 | 1).into(); // Its completion queue; physically contiguous.
        self.admin("Create I/O Submission Queue", command).await?;
        Ok(())
    }

    async fn identify_namespaces(
        &self,
        controller: &IdentifyController,
    ) -> Result<Vec<Namespace>, NvmeError> {
        let list = self.identify_data("Identify, active namespaces", cns::ACTIVE_NAMESPACES, 0).await?;
        let ids = list.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]]));
        let mut namespaces = Vec::new();
        for nsid in ids.take_while(|id| *id != 0).take(NAMESPACES_MAX) {
            let page = self.identify_data("Identify Namespace", cns::NAMESPACE, nsid).await?;
            let data = IdentifyNamespace::read_from_bytes(&page).expect("an identify page is a page");
            let descriptors =
                self.identify_data("Identify, namespace descriptors", cns::NAMESPACE_DESCRIPTORS, nsid).await;
            let descriptors = match descriptors {
                Ok(page) => page,
                // Controllers before version 1.3 have none, and no command set but NVM. Whatever else fails, a namespace of
                // another command set must not be taken for one of NVM.
                Err(NvmeError::Command { status, .. }) if status.is(Status::INVALID_FIELD) => Vec::new(),
                Err(error) => return Err(error),
            };
            namespaces.push(Namespace::new(nsid, controller, &data, &descriptors));
        }
        Ok(namespaces)
    }

    /// Waits until CSTS.RDY is `wanted`.
    pub(super) async fn await_ready(&self, cap: Cap, wanted: bool) -> Result<(), NvmeError> {
        let (begun, time) = (self.ctx.now(), cap.timeout().max(self.limits.ready_time));
        let mut pause = LOOK_FIRST;
        loop {
            let csts = Csts(self.function.read32(registers::CSTS));
            if self.absent() || wanted && self.function.removed() {
                self.inner.borrow_mut().raise(Fault::Gone);
                let vs = self.function.read32(registers::VS);
                return Err(NvmeError::Gone { controller: self.name(), vs });
            }
            if csts.ready() == wanted && !(wanted && csts.fatal()) {
                return Ok(());
            }
            if wanted && self.function.read32(registers::CC) & cc::EN == 0 {
                // It will not become ready. What its cache held may be lost with its power.
                self.inner.borrow_mut().raise(Fault::Lost);
                return Err(NvmeError::Disabled { controller: self.name() });
            }
            if self.ctx.now() - begun >= time || wanted && csts.fatal() {
                return Err(NvmeError::NotReady {
                    controller: self.name(),
                    wanted: if wanted { "ready" } else { "disabled" },
                    seconds: (self.ctx.now() - begun).as_secs_f64(),
                    csts: csts.0,
                });
            }
            self.ctx.sleep(pause).await;
            pause = (pause * 2).min(LOOK_MAX);
        }
    }

    pub(super) fn system(&self, what: &'static str) -> impl Fn(io::Error) -> NvmeError + use<'_, F> {
        move |source| NvmeError::System { controller: self.name(), what, source }
    }
}

impl Queues {
    /// All queues as new. The device has let go of them: `_stopped` is the proof.
    fn empty(&mut self, _stopped: &DmaStopped) {
        self.admin.empty();
        self.io.empty();
        self.shadow_used = false;
        if let Some(shadow) = &self.shadow {
            for at in (0..PAGE).step_by(8) {
                shadow.values.write64(at, 0);
                shadow.events.write64(at, 0);
            }
        }
    }
}
