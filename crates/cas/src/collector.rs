//! The collector: takes away what nothing names, and nothing else (I9a).
//!
//! A dead entry is reclaimed when no GET can still read it: when every unfenced session has said, since this start, that
//! its GETs looked up at the entry's commit or later. Every step is a call that may be repeated, then a commit that says
//! it was done; a crash between the two repeats the call.

use crate::draft::Draft;
use crate::draft::Stop;
use crate::limits::CollectorLimits;
use crate::query;
use crate::row::{DeadRow, FidRow, UploadState};
use crate::schema::{self, DEAD, DeadKey, FIDS, UPLOAD_STATES, UPLOADS, meta};
use crate::server::Cas;
use crate::target::{TargetError, Targets};
use crate::upload::{abort_open, bury_parts};
use cobalt_base::Fid;
use cobalt_reactor::JoinHandle;
use cobalt_rpc::proto::cas::CasError;
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use uuid::Uuid;

/// Why a pass ended early.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The catalogue cannot go on now.
    Cas(CasError),
    /// Something is wrong that waiting does not mend: the collector does nothing more until people look.
    For(String),
}

impl From<CasError> for Halt {
    fn from(error: CasError) -> Halt {
        Halt::Cas(error)
    }
}

impl From<crate::table::TableError> for Halt {
    fn from(error: crate::table::TableError) -> Halt {
        Halt::Cas(error.0)
    }
}

/// One walk over all the work there is.
pub(crate) struct Pass<'a> {
    pub(crate) cas: &'a Cas,
    pub(crate) targets: &'a dyn Targets,
    pub(crate) limits: &'a CollectorLimits,
    /// Targets of each pool version.
    pools: BTreeMap<u32, BTreeSet<Uuid>>,
    /// Targets of any version.
    pub(crate) all: BTreeSet<Uuid>,
    /// Targets that failed in this pass, and why: not asked again in it.
    pub(crate) down: BTreeMap<Uuid, String>,
}

impl Cas {
    /// Starts the collector. It runs until the handle's task is aborted or its scope is killed.
    pub fn start_collector(&self, targets: Rc<dyn Targets>, limits: CollectorLimits) -> JoinHandle<()> {
        let cas = self.clone();
        self.0.ctx.spawn(async move { run(&cas, &*targets, &limits).await })
    }
}

async fn run(cas: &Cas, targets: &dyn Targets, limits: &CollectorLimits) {
    let ctx = &cas.0.ctx;
    let mut wait = limits.retry_min;
    loop {
        let news = cas.0.work.notified();
        let result = match cas.leads() {
            true => match cas.fence_silent(limits.lease).await {
                Ok(()) => pass(cas, targets, limits).await,
                Err(error) => Err(Halt::Cas(error)),
            },
            false => Ok(BTreeMap::new()),
        };
        let note = match result {
            Ok(down) if down.is_empty() => None,
            Ok(down) => Some(
                down.iter()
                    .map(|(target, why)| format!("target {target}: {why}"))
                    .collect::<Vec<_>>()
                    .join("; "),
            ),
            Err(Halt::Cas(error)) => Some(error.to_string()),
            Err(Halt::For(why)) => {
                tracing::error!("the collector stands: {why}");
                *cas.0.note.borrow_mut() = Some(why);
                return;
            }
        };
        let trouble = note.is_some();
        *cas.0.note.borrow_mut() = note;
        if trouble {
            ctx.sleep(wait).await;
            wait = (wait * 2).min(limits.retry_max);
        } else {
            wait = limits.retry_min;
            let _quiet = ctx.timeout(limits.lease, news).await; // Then it is time to look who is silent.
            // Everything that came meanwhile is one pass.
            ctx.sleep(limits.interval).await;
        }
    }
}

/// Does all the work that can be done now. The targets that failed on the way.
async fn pass(
    cas: &Cas,
    targets: &dyn Targets,
    limits: &CollectorLimits,
) -> Result<BTreeMap<Uuid, String>, Halt> {
    if cas.collector_idle().await? {
        return Ok(BTreeMap::new());
    }
    let mut pools = BTreeMap::new();
    for pool in query::pools(&cas.0.table).await? {
        pools.insert(pool.version, pool.targets.iter().map(|target| target.target).collect::<BTreeSet<_>>());
    }
    let all = pools.values().flatten().copied().collect();
    let mut pass = Pass { cas, targets, limits, pools, all, down: BTreeMap::new() };
    pass.reclaim().await?;
    pass.sweep().await?;
    Ok(pass.down)
}

impl Pass<'_> {
    /// Lets others run between two steps.
    pub(crate) async fn pace(&self) {
        self.cas.0.ctx.sleep(self.limits.pace).await;
    }

    /// Notes what a target did. False when it did not.
    pub(crate) fn took(&mut self, target: Uuid, result: Result<(), TargetError>) -> Result<bool, Halt> {
        match result {
            Ok(()) => Ok(true),
            Err(TargetError::Unavailable(why)) => {
                self.down.insert(target, why);
                Ok(false)
            }
            Err(TargetError::Incarnation { have }) => Err(self.foreign(target, have)),
        }
    }

    /// Cobs of another catalogue: nothing may be concluded from what this one does not name.
    pub(crate) fn foreign(&self, target: Uuid, have: u64) -> Halt {
        Halt::For(format!(
            "target {target} holds cobs of catalogue incarnation {have}, this catalogue is incarnation {}: \
             nothing is collected. Check that the catalogue's target is the right one",
            self.cas.0.incarnation
        ))
    }

    /// Walks the dead list as far as no GET reads it any more.
    async fn reclaim(&mut self) -> Result<(), Halt> {
        let table = &self.cas.0.table;
        if table.counter(meta::DEAD).await? == 0 {
            return Ok(());
        }
        // Both bounds are of keys that begin with the commit's index.
        let until = self.cas.reclaimable().await?.checked_add(1).map(|end| end.to_be_bytes().to_vec());
        let mut from = Vec::new();
        loop {
            let rows = table.scan::<DeadRow>(DEAD, &from, until.as_deref(), self.limits.batch).await?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            from = [last.as_slice(), &[0]].concat();
            let mut fids = Vec::new();
            for (row, dead) in rows {
                match schema::parse_dead(&row) {
                    Some((index, DeadKey::Fid(fid))) => fids.push((index, fid, dead)),
                    Some((index, what)) => {
                        // What it stands for follows right behind it: go on from there.
                        from = [row.as_slice(), &[0]].concat();
                        self.resolve(index, what).await?;
                        break;
                    }
                    None => return Err(Halt::For("a key of the dead list is malformed".into())),
                }
            }
            if !fids.is_empty() {
                self.delete_cobs(fids).await?;
            }
            self.pace().await;
        }
    }

    /// Turns an entry that stands for many into those, step by step.
    async fn resolve(&self, index: u64, what: DeadKey) -> Result<(), Halt> {
        let limit = self.limits.batch;
        loop {
            let done =
                self.cas.0.table.transact(move |draft| resolve_step(draft, index, what, limit)).await?;
            if done {
                return Ok(());
            }
            self.pace().await;
        }
    }

    /// Deletes the cobs of fids wherever they may be; entries that every target has confirmed go.
    async fn delete_cobs(&mut self, entries: Vec<(u64, Fid, DeadRow)>) -> Result<(), Halt> {
        for (index, fid, _) in &entries {
            let state = self.cas.0.table.get::<FidRow>(FIDS, &fid.to_key()).await?;
            if state != Some(FidRow::Dead { index: *index }) {
                return Err(Halt::For(format!(
                    "the dead list has fid {fid} at {index}, its own row says {state:?}"
                )));
            }
        }
        let mut calls: BTreeMap<Uuid, Vec<Fid>> = BTreeMap::new();
        let mut needs = Vec::new();
        for (index, fid, dead) in entries {
            let targets = dead.pool.and_then(|pool| self.pools.get(&pool)).unwrap_or(&self.all).clone();
            for target in targets.iter().filter(|target| !dead.confirmed.contains(target)) {
                if !self.down.contains_key(target) {
                    calls.entry(*target).or_default().push(fid);
                }
            }
            needs.push((index, fid, targets));
        }
        let incarnation = self.cas.0.incarnation;
        let results = join_all(calls.into_iter().map(|(target, fids)| {
            let call = self.targets.delete(target, fids, incarnation);
            async move { (target, call.await) }
        }));
        let mut confirmed = BTreeSet::new();
        for (target, result) in results.await {
            if self.took(target, result)? {
                confirmed.insert(target);
            }
        }
        let confirm = move |draft: &mut Draft<'_>| {
            for (index, fid, targets) in &needs {
                confirm_step(draft, *index, *fid, targets, &confirmed)?;
            }
            Ok(())
        };
        Ok(self.cas.0.table.transact(confirm).await?)
    }
}

/// One commit's worth of an entry that stands for many. True when the entry is gone.
fn resolve_step(draft: &mut Draft<'_>, index: u64, what: DeadKey, limit: usize) -> Result<bool, Stop> {
    let row = schema::dead(index, what);
    if draft.get::<DeadRow>(DEAD, &row)?.is_none() {
        return Ok(true);
    }
    let done = match what {
        DeadKey::BucketUploads(bucket) => abort_uploads(draft, index, bucket, limit)?,
        DeadKey::Upload(upload) => bury_parts(draft, index, upload, false, limit)?,
        DeadKey::UploadRest(upload) => bury_parts(draft, index, upload, true, limit)?,
        DeadKey::Fid(_) => false,
    };
    if done {
        draft.delete(DEAD, row);
        draft.count(meta::DEAD, -1)?;
    }
    Ok(done)
}

/// Aborts up to `limit` uploads of a bucket that is gone. True when none is left.
fn abort_uploads(draft: &mut Draft<'_>, index: u64, bucket: u64, limit: usize) -> Result<bool, Stop> {
    let mut from = schema::key_bound(bucket, &[]);
    for _ in 0..limit {
        let Some((row, value)) = draft.next(UPLOADS, &from)? else { return Ok(true) };
        if !row.starts_with(&bucket.to_be_bytes()) {
            return Ok(true);
        }
        from = [row.as_slice(), &[0]].concat();
        let upload = <cobalt_rpc::proto::record::UploadRecord as crate::row::Row>::decode(&value)?.upload;
        match draft.get::<UploadState>(UPLOAD_STATES, upload.as_bytes())? {
            Some(state) => abort_open(draft, index, upload, state)?,
            None => draft.delete(UPLOADS, row),
        }
    }
    Ok(false)
}

/// Notes which targets confirmed; with the last of them the entry and the fid are forgotten.
fn confirm_step(
    draft: &mut Draft<'_>,
    index: u64,
    fid: Fid,
    targets: &BTreeSet<Uuid>,
    confirmed: &BTreeSet<Uuid>,
) -> Result<(), Stop> {
    let row = schema::dead(index, DeadKey::Fid(fid));
    let Some(mut dead) = draft.get::<DeadRow>(DEAD, &row)? else { return Ok(()) };
    let before = dead.confirmed.len();
    for target in confirmed.intersection(targets) {
        if !dead.confirmed.contains(target) {
            dead.confirmed.push(*target);
        }
    }
    if targets.iter().all(|target| dead.confirmed.contains(target)) {
        draft.delete(DEAD, row);
        draft.delete(FIDS, fid.to_key().to_vec());
        draft.count(meta::DEAD, -1)?;
    } else if dead.confirmed.len() > before {
        draft.put(DEAD, row, &dead)?;
    }
    Ok(())
}
