//! Controllers that this process drives. A controller is opened once, however many of its namespaces are used: the reactor's
//! thread knows which are open, and closes them when its targets are closed.

use super::targets::with_sources;
use crate::config::TargetConfig;
use crate::control;
use crate::host::State;
use cobalt_bdev::{Device, DeviceKind, DeviceUri, NvmeName, OpenMode};
use cobalt_dma::Arena;
use cobalt_nvme::spec::log::Smart;
use cobalt_nvme::vfio::host::controllers;
use cobalt_nvme::vfio::{PciAddress, VfioError, VfioFunction, Wait};
use cobalt_nvme::{Controller, Life, Limits};
use cobalt_reactor::Ctx;
use cobalt_reactor::sync::Semaphore;
use futures::future::join_all;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

type Open = Rc<Controller<VfioFunction>>;

/// Pause before those that others hold are asked again.
const HELD_PAUSE: Duration = Duration::from_millis(200);

/// Why a controller cannot be had.
struct Refused {
    why: String,
    /// Another process has it, and may let go of it.
    held: bool,
}

/// What a reactor's thread drives.
struct Controllers {
    open: RefCell<BTreeMap<PciAddress, Open>>,
    /// One at a time: two targets of one controller must not both open it.
    turn: Semaphore,
}

thread_local! {
    static CONTROLLERS: Rc<Controllers> =
        Rc::new(Controllers { open: RefCell::default(), turn: Semaphore::new(1) });
}

/// Opens a namespace. All memory of its I/O lies in `arenas`.
///
/// # Errors
/// One sentence.
pub async fn open(
    ctx: &Ctx,
    arenas: &[Arena],
    name: &NvmeName,
    nsid: u32,
    mode: OpenMode,
) -> Result<Device, String> {
    let controllers = CONTROLLERS.with(Rc::clone);
    let _turn = controllers.turn.acquire(1).await;
    let controller = match name {
        NvmeName::Address(text) => {
            let address = text.parse().map_err(|e| with_sources(&e))?;
            controllers.at(ctx, arenas, address, mode).await.map_err(|refused| refused.why)?
        }
        NvmeName::Serial(serial) => controllers.of_serial(ctx, arenas, serial, mode).await?,
    };
    let namespace = controller.namespace(nsid).map_err(|e| with_sources(&e))?;
    Ok(Device::new(Rc::new(namespace)))
}

/// Shuts every controller of this thread down. Whoever uses one is done.
pub async fn close_all() {
    let controllers = CONTROLLERS.with(Rc::clone);
    let open = std::mem::take(&mut *controllers.open.borrow_mut());
    for (address, controller) in open {
        if let Err(error) = controller.close().await {
            tracing::error!(%address, %error, "the controller was not shut down");
        }
    }
}

/// The controllers of this thread, each asked how it is. `targets` are those that may lie on them.
pub async fn report(targets: &[TargetConfig]) -> Vec<control::Controller> {
    let controllers = CONTROLLERS.with(Rc::clone);
    let open: Vec<(PciAddress, Open)> =
        controllers.open.borrow().iter().map(|(address, open)| (*address, open.clone())).collect();
    join_all(open.iter().map(|(address, open)| describe(*address, open, targets))).await
}

async fn describe(address: PciAddress, controller: &Open, targets: &[TargetConfig]) -> control::Controller {
    let identity = controller.identity();
    let on = |uri: &&DeviceUri, nsid: u32| {
        matches!(&uri.kind, DeviceKind::Nvme { controller, nsid: n } if *n == nsid && match controller {
            NvmeName::Address(text) => text.parse().is_ok_and(|a: PciAddress| a == address),
            NvmeName::Serial(serial) => *serial == identity.serial,
        })
    };
    let namespaces = controller.namespaces().into_iter().map(|space| {
        let of = |target: &&TargetConfig| target.device.uris().iter().any(|uri| on(uri, space.nsid));
        let mut uses: Vec<String> =
            targets.iter().filter(of).map(|target| format!("target {}", target.name)).collect();
        uses.extend(space.refused);
        control::Namespace { name: format!("namespace {}", space.nsid), bytes: space.size, uses }
    });
    let namespaces = namespaces.collect();
    let (health, unknown) = match controller.log_page::<Smart>().await {
        Ok(page) => (Some(health(&page)), None),
        Err(error) => (None, Some(with_sources(&error))),
    };
    let state = match controller.life() {
        Life::Failed(why) => format!("failed: {why}"),
        life => life.to_string(),
    };
    let counts = controller.counters();
    let counters = [
        ("commands", counts.io.submitted),
        ("retries", counts.retries),
        ("timeouts", counts.timeouts),
        ("aborts", counts.aborts),
        ("resets", counts.resets),
        ("unexpected_completions", counts.unexpected),
        ("events", counts.events),
    ];
    control::Controller {
        address: address.to_string(),
        model: identity.model,
        serial: identity.serial,
        firmware: identity.firmware,
        state,
        namespaces,
        health,
        unknown,
        counters: counters.map(|(name, count)| (name.to_owned(), count)).into(),
    }
}

fn health(page: &Smart) -> control::Health {
    let count = |count: u128| u64::try_from(count).unwrap_or(u64::MAX);
    // In thousands of 512 bytes.
    let bytes = |units: u128| count(units.saturating_mul(512_000));
    control::Health {
        critical_warnings: page.warnings(),
        temperature: page.celsius(),
        spare: page.spare,
        spare_threshold: page.spare_threshold,
        used: page.used,
        media_errors: count(page.media_errors.get()),
        error_log_entries: count(page.error_entries.get()),
        power_on_hours: count(page.power_on_hours.get()),
        power_cycles: count(page.power_cycles.get()),
        unsafe_shutdowns: count(page.unsafe_shutdowns.get()),
        read_bytes: bytes(page.data_read.get()),
        written_bytes: bytes(page.data_written.get()),
    }
}

impl Controllers {
    async fn at(
        &self,
        ctx: &Ctx,
        arenas: &[Arena],
        address: PciAddress,
        mode: OpenMode,
    ) -> Result<Open, Refused> {
        if let Some(open) = self.open.borrow().get(&address) {
            return Ok(open.clone());
        }
        let memory = arenas.iter().map(|arena| arena.region().1 as u64).sum();
        let wait = Wait { time: mode.lock_wait, refuse_living: mode.refuse_living };
        let function = VfioFunction::open(ctx, address, memory, wait).await.map_err(|error| Refused {
            held: matches!(error, VfioError::Held { known, .. } if !(known && mode.refuse_living)),
            why: with_sources(&error),
        })?;
        let opened = Controller::open(ctx, function, arenas, Limits::default()).await;
        let controller = opened.map_err(|error| Refused { held: false, why: with_sources(&error) })?;
        self.open.borrow_mut().insert(address, controller.clone());
        Ok(controller)
    }

    /// The controller with a serial number: known from when it was given away, or else each is asked. Those that others hold
    /// are most likely theirs: nobody is waited for before all were asked, and then for all of them together.
    async fn of_serial(
        &self,
        ctx: &Ctx,
        arenas: &[Arena],
        serial: &str,
        mode: OpenMode,
    ) -> Result<Open, String> {
        let known = State::load().unwrap_or_default();
        let told = |address: &PciAddress| known.devices.get(&address.to_string()).map(|d| d.serial.clone());
        let another = |address: &PciAddress| told(address).is_some_and(|t| !t.is_empty() && t != serial);
        let given = controllers().into_iter().filter(|f| f.driver.as_deref() == Some("vfio-pci"));
        let mut candidates: Vec<PciAddress> = given.map(|f| f.address).filter(|a| !another(a)).collect();
        candidates.sort_by_key(|address| told(address).as_deref() != Some(serial));
        let (until, at_once) = (ctx.now() + mode.lock_wait, OpenMode { lock_wait: Duration::ZERO, ..mode });
        let mut refused = Vec::new();
        loop {
            let mut held = Vec::new();
            for address in candidates {
                let there = self.open.borrow().contains_key(&address);
                match self.at(ctx, arenas, address, at_once).await {
                    Ok(controller) if controller.identity().serial == serial => return Ok(controller),
                    Ok(controller) if !there => {
                        self.open.borrow_mut().remove(&address);
                        let _ = controller.close().await;
                    }
                    Ok(_) => {}
                    Err(error) if error.held && ctx.now() < until => held.push(address),
                    Err(error) => refused.push(error.why),
                }
            }
            if held.is_empty() {
                break;
            }
            candidates = held;
            ctx.sleep(HELD_PAUSE).await;
        }
        let mut text = format!(
            "no controller with the serial number {serial} is given to vfio-pci: `cobalt device list` shows those of this host"
        );
        if !refused.is_empty() {
            text = format!("{text}; not asked: {}", refused.join("; "));
        }
        Err(text)
    }
}
