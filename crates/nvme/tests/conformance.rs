//! The conformance suite of block devices over the driver, on software controllers of several kinds. Reopening is a power cut:
//! what a flush or FUA promised must be there, nothing else need be.

use cobalt_bdev::conformance::{Open, SIZE, Traits};
use cobalt_bdev::{Device, conformance};
use cobalt_nvme::soft::{Soft, SoftConfig, SoftNamespace};
use cobalt_nvme::{Controller, Limits};
use cobalt_reactor::Reactor;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

fn on(config: SoftConfig) -> (Reactor, Traits, Open) {
    let traits = Traits {
        volatile_cache: config.volatile_cache,
        at_once: config.latency.is_none(),
        forgets: false,
        transfer_max: if config.mdts == 0 { 2 << 20 } else { 4096 << config.mdts },
        settles: Duration::from_millis(10),
    };
    let held: Rc<RefCell<Option<(Soft, Rc<Controller<Soft>>)>>> = Rc::default();
    let open: Open = Box::new(move |ctx, arena| {
        let (held, config) = (held.clone(), config.clone());
        Box::pin(async move {
            let before = held.take();
            let soft = before.as_ref().map_or_else(|| Soft::new(&ctx, config, 3), |(soft, _)| soft.clone());
            if before.is_some() {
                soft.lose_power();
            }
            drop(before);
            let arenas = std::slice::from_ref(&arena);
            let controller = Controller::open(&ctx, soft.clone(), arenas, Limits::default()).await;
            let controller = controller.expect("it comes up");
            let device = Device::new(Rc::new(controller.namespace(1).expect("a namespace")));
            assert_eq!(soft.violations(), Vec::<String>::new());
            held.replace(Some((soft, controller)));
            device
        })
    });
    (Reactor::new_virtual(5).expect("an eventfd"), traits, open)
}

/// Of 512-byte blocks, with a block more than whole pages.
fn small_blocks() -> SoftConfig {
    SoftConfig { namespaces: vec![SoftNamespace::new(9, SIZE + 512)], ..SoftConfig::new(0) }
}

conformance! {
    pages: || on(SoftConfig::new(SIZE));
    blocks_of_512: || on(small_blocks());
    no_cache: || on(SoftConfig { volatile_cache: false, mdts: 0, ..SoftConfig::new(SIZE) });
    shadow_doorbells: || on(SoftConfig { shadow_doorbells: true, dstrd: 1, mdts: 1, ..SoftConfig::new(SIZE) });
    sgls: || on(SoftConfig { sgls: 1, mdts: 8, ..SoftConfig::new(SIZE) });
    small_queue: || on(SoftConfig { queue_entries: 34, ..small_blocks() });
}
