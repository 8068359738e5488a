//! What a process says of itself over its socket: its reactor's view, its client's view, its memory.

use super::reactor::Question;
use crate::control::{Arena, Catalogue, Controller, Report, Session, View};
use cobalt_client::{ClusterStatus, Handle};
use cobalt_reactor::mailbox;
use futures::channel::oneshot;
use std::collections::BTreeMap;

/// Everything a report is made of.
#[derive(Clone)]
pub struct Reporter {
    pub process: String,
    pub s3: Option<String>,
    pub admin: Option<String>,
    pub layout: String,
    pub questions: mailbox::Sender<Question>,
    pub handle: Option<Handle>,
    pub arena: cobalt_dma::Arena,
}

impl Reporter {
    /// The report now. Parts that do not answer are left out.
    pub async fn report(&self) -> Report {
        let (slot, local) = oneshot::channel();
        let local = match self.questions.send(Question::Report(slot)).await {
            Ok(()) => local.await.unwrap_or_default(),
            Err(_) => Default::default(),
        };
        let view = match &self.handle {
            Some(handle) => Some(self.view(handle.status().await)),
            None => None,
        };
        let stats = self.arena.stats();
        Report {
            process: self.process.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            s3: self.s3.clone(),
            admin: self.admin.clone(),
            targets: local.targets,
            counters: local.counters,
            arena: Arena {
                limit: stats.limit as u64,
                in_use: stats.in_use as u64,
                high_water: stats.high_water as u64,
                locked: stats.locked,
                huge: stats.huge,
            },
            view,
        }
    }

    /// The controllers that the process drives, each asked how it is. None when nothing answers: the process ends.
    pub async fn controllers(&self) -> Vec<Controller> {
        let (slot, controllers) = oneshot::channel();
        match self.questions.send(Question::Controllers(slot)).await {
            Ok(()) => controllers.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    fn view(&self, status: ClusterStatus) -> View {
        let mut down = BTreeMap::new();
        for process in status.processes.iter().filter(|p| !p.up) {
            down.insert(process.name.clone(), process.why.clone().unwrap_or_default());
        }
        let mut catalogue =
            Catalogue { note: status.catalogue, why: status.cas_error, ..Catalogue::default() };
        if let Some(cas) = status.cas {
            catalogue.up = true;
            catalogue.incarnation = Some(cas.incarnation);
            catalogue.buckets = Some(cas.buckets);
            catalogue.dead = Some(cas.dead);
            catalogue.collector_idle = cas.collector_idle && status.dead_waiting == 0;
            catalogue.collector_note = cas.collector_note;
            let row = |s: cobalt_rpc::proto::cas::SessionRow| Session {
                session: s.session.to_string(),
                process: s.process,
                fenced: s.fenced,
            };
            catalogue.sessions = cas.sessions.into_iter().map(row).collect();
        }
        View {
            catalogue,
            layout: self.layout.clone(),
            writable: status.writable,
            not_writable: status.not_writable,
            redundancy_short: status.redundancy_short,
            session: status.session,
            down,
        }
    }
}
