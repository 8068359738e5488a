//! Fids of failed PUTs on their way to the catalogue's dead list. If the process dies first, its session
//! is fenced, and the sweep of the session finds what is lost here.

use crate::cas::{Bound, commit};
use crate::client::Core;
use cobalt_base::Fid;
use cobalt_reactor::sync::{Notify, Permit};
use cobalt_rpc::proto::cas::{Command, DEAD_FIDS_MAX};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Fids that wait. Each brings the permit of its body, so their number has that limit.
#[derive(Default)]
pub(crate) struct Dead {
    queue: RefCell<VecDeque<(Fid, Permit)>>,
    added: Notify,
}

impl Dead {
    /// Nothing names `fid`, and nothing will.
    pub(crate) fn add(&self, fid: Fid, body: Permit) {
        self.queue.borrow_mut().push_back((fid, body));
        self.added.notify_all();
    }

    /// Fids that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.borrow().len()
    }
}

/// Reports dead fids in batches, again and again until each is taken. Runs for ever.
pub(crate) async fn run(core: Rc<Core>) {
    let mut pause = core.limits.retry_min;
    loop {
        let added = core.dead.added.notified();
        let fids = batch(&core);
        if fids.is_empty() {
            added.await;
            continue;
        }
        let count = fids.len();
        let deadline = core.ctx.now() + core.limits.cas_deadline;
        match commit(&core, Command::Dead { fids }, Bound::ToSession, Some(deadline)).await {
            Ok(_) => {
                core.dead.queue.borrow_mut().drain(..count);
                core.count(|c| c.dead_reported += count as u64);
                pause = core.limits.retry_min;
            }
            Err(error) => {
                // The command is idempotent; a fenced session's fids leave the queue in the next round.
                tracing::warn!(%error, count, "dead fids not reported yet");
                core.ctx.sleep(pause).await;
                pause = (pause * 2).min(core.limits.retry_max);
            }
        }
    }
}

/// The first fids of the queue. Those of earlier sessions are left to the sweeps that follow their fences.
fn batch(core: &Core) -> Vec<Fid> {
    let mut queue = core.dead.queue.borrow_mut();
    if let Some(session) = core.sessions.peek() {
        queue.retain(|(fid, _)| fid.session == session.id);
    }
    queue.iter().take(DEAD_FIDS_MAX).map(|(fid, _)| *fid).collect()
}
