//! Those that call the store: each call is written down before it begins and after its answer, and an error must have a cause.

use super::cob_log::CobLog;
use super::ctg_log::{CtgLog, Key};
use super::disk::{Disk, Kind};
use super::op::{CTG_KEYS, Name, Op};
use super::target::{CALL_TIME, Piece, Tally, fid, get, put_all};
use cobalt_base::{Fid, SessionId};
use cobalt_reactor::Ctx;
use cobalt_store::{CobAttrs, CtgOp, Store, StoreError, proof};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// Which incarnation the sessions and cobs of the model are in.
#[derive(Default)]
pub struct Ages {
    pub sessions: [Cell<u64>; 4],
    pub cobs: [[Cell<u64>; 5]; 4],
}

impl Ages {
    fn session(&self, slot: u64, old: bool) -> SessionId {
        let age = self.sessions[slot as usize].get();
        SessionId(1 + slot + 4 * age.saturating_sub(u64::from(old)))
    }

    pub fn fid(&self, name: Name) -> Fid {
        let age = self.cobs[name.session as usize][name.number as usize].get();
        let number = 1 + name.number + 5 * age.saturating_sub(u64::from(name.old));
        fid(self.session(name.session, false).0, number)
    }
}

/// One of those: what they share, so that each is a clone.
#[derive(Clone)]
pub struct Caller {
    pub ctx: Ctx,
    pub store: Store,
    pub arena: cobalt_dma::Arena,
    pub cobs: CobLog,
    pub ctg: CtgLog,
    pub ages: Rc<Ages>,
    pub tally: Tally,
    pub faults: Rc<Faults>,
}

/// Errors that were injected in this life, so that none comes out of nothing.
pub struct Faults {
    pub meta: Disk,
    pub data: Disk,
    pub before: RefCell<[[u64; 4]; 2]>,
    pub broken_before: Cell<u64>,
}

impl Faults {
    pub fn forget(&self) {
        self.before.replace([self.meta.injected(), self.data.injected()]);
        self.broken_before.set(self.data.broken_writes());
    }

    pub fn broken_writes(&self) -> u64 {
        self.data.broken_writes() - self.broken_before.get()
    }

    pub fn so_far(&self) -> [[u64; 4]; 2] {
        let before = self.before.borrow();
        let since = |disk: &Disk, at: usize| {
            let now = disk.injected();
            [0, 1, 2, 3].map(|kind| now[kind] - before[at][kind])
        };
        [since(&self.meta, 0), since(&self.data, 1)]
    }
}

fn attrs(fid: Fid) -> CobAttrs {
    let chunk_size = match fid.counter % 5 {
        0 => 8192,
        _ => 4096,
    };
    CobAttrs { chunk_size, incarnation: 7 }
}

fn ctg_key(key: u16) -> Key {
    let mut bytes = key.to_be_bytes().to_vec();
    bytes.resize(2 + usize::from(key % 7) * 50, b'k');
    (1 + u32::from(key.is_multiple_of(3)), bytes)
}

impl Caller {
    pub async fn call(self, op: Op) {
        let within = self.ctx.clone();
        let call = async {
            match op {
                Op::Write { cob, chunk, len, give_up_us } => {
                    let name = self.ages.fid(cob);
                    let bytes = self.cobs.bytes(len);
                    let _ = self.write(name, chunk, bytes, give_up_us).await;
                }
                Op::Pair { a, b, len } => {
                    let _ = self.pair((self.ages.fid(a.0), a.1), (self.ages.fid(b.0), b.1), len).await;
                }
                Op::Read { cob, chunk, chunks } => self.read(self.ages.fid(cob), chunk, chunks).await,
                Op::Stat { cob } => match self.store.cob_stat(self.ages.fid(cob)).await {
                    Ok(_) => {}
                    Err(error) => self.excuse(&error),
                },
                Op::Delete { cob, give_up_us } => {
                    self.delete(self.ages.fid(cob), give_up_us).await;
                    if !cob.old {
                        let age = &self.ages.cobs[cob.session as usize][cob.number as usize];
                        age.set(age.get() + 1);
                    }
                }
                Op::Fence { session } => self.fence(session).await,
                Op::Turn { key, len } => self.turn(key, len).await,
                Op::Sum { key, count } => self.sum(key, count).await,
                Op::Fill { key, count, len } => self.fill(key, count, len).await,
                Op::Clear { key, count } => self.clear(key, count).await,
                Op::Get { key } => self.get(key).await,
                Op::Scan { key, count } => self.scan(key, count).await,
                Op::List { limit } => {
                    if let Err(error) = self.store.cob_next(Fid::MIN, limit).await {
                        self.excuse(&error);
                    }
                }
                Op::Checkpoint => {
                    if let Err(error) = self.store.checkpoint().await {
                        self.excuse(&error);
                    }
                }
                other => panic!("not a call: {other:?}"),
            }
        };
        within.timeout(CALL_TIME, call).await.expect("no call hangs");
    }

    /// An error must have a cause.
    fn excuse(&self, error: &StoreError) {
        let [meta, data] = self.faults.so_far();
        let status = self.store.status();
        match error {
            StoreError::Failed { .. } => {
                let injected: u64 = meta.iter().chain(&data).sum();
                assert!(injected > 0, "nothing was injected: {error}");
                assert!(
                    status.failed.is_some(),
                    "a call says that the target failed, the target does not: {error}"
                );
                self.tally.add("failed", 1);
            }
            StoreError::Corrupt { .. } => {
                assert!(data[Kind::Read as usize] > 1, "no read failed twice: {error}");
                self.tally.add("read_errors", 1);
            }
            StoreError::HostFull => {
                assert!(data[Kind::Write as usize] > 0, "the host is not full: {error}");
                self.tally.add("host_full", 1);
            }
            StoreError::MetaFull => self.tally.add("meta_full", 1),
            StoreError::NoSpace { .. } => self.tally.add("no_space", 1),
            StoreError::Busy => self.tally.add("busy", 1),
            StoreError::Fenced(_) | StoreError::Deleted(_) => self.tally.add("late", 1),
            StoreError::Missing { .. } => self.tally.add("missing", 1),
            // A tree that contradicts itself never comes of a device that says so when it fails.
            other => panic!("no cause for: {other}"),
        }
    }

    pub async fn write(
        &self,
        fid: Fid,
        chunk: u64,
        bytes: Vec<u8>,
        give_up_us: Option<u64>,
    ) -> Result<(), StoreError> {
        let attrs = attrs(fid);
        let size = u64::from(attrs.chunk_size);
        let call = self.cobs.write_begins(fid, size, chunk * size, bytes.clone());
        let pieces = [Piece { fid, attrs, offset: chunk * size, bytes }];
        let putting = put_all(&self.store, &self.arena, &pieces);
        let result = match give_up_us {
            None => putting.await,
            Some(us) => match self.ctx.timeout(Duration::from_micros(us), putting).await {
                Ok(result) => result,
                Err(_) => {
                    self.tally.add("given_up", 1);
                    return Ok(());
                }
            },
        };
        match result {
            Ok(committed) => {
                self.cobs.committed(call, committed.lsn());
                self.tally.add("writes", 1);
                Ok(())
            }
            Err(error) => {
                if !matches!(error, StoreError::Failed { .. }) {
                    self.cobs.refused(call, &error);
                }
                self.excuse(&error);
                Err(error)
            }
        }
    }

    async fn pair(&self, a: (Fid, u64), b: (Fid, u64), len: usize) -> Result<(), StoreError> {
        if a.0 == b.0 {
            return Ok(());
        }
        let pieces = [a, b].map(|(fid, chunk)| {
            let attrs = attrs(fid);
            Piece { fid, attrs, offset: chunk * u64::from(attrs.chunk_size), bytes: self.cobs.bytes(len) }
        });
        let calls = pieces
            .each_ref()
            .map(|p| self.cobs.write_begins(p.fid, u64::from(p.attrs.chunk_size), p.offset, p.bytes.clone()));
        match put_all(&self.store, &self.arena, &pieces).await {
            Ok(committed) => {
                calls.iter().for_each(|call| self.cobs.committed(*call, committed.lsn()));
                self.tally.add("pairs", 1);
                Ok(())
            }
            Err(error) => {
                if !matches!(error, StoreError::Failed { .. }) {
                    // The reason is that of one of them.
                    calls.iter().for_each(|call| self.cobs.refused(*call, &StoreError::Busy));
                }
                self.excuse(&error);
                Err(error)
            }
        }
    }

    async fn read(&self, fid: Fid, chunk: u64, chunks: u64) {
        let size = u64::from(attrs(fid).chunk_size);
        let since = self.cobs.now();
        match get(&self.store, fid, chunk * size, chunks * size).await {
            Ok(bytes) => {
                self.cobs.read(fid, since, size, chunk * size, &bytes);
                self.tally.add("reads", 1);
            }
            Err(StoreError::Missing { offset, .. }) => {
                if offset.is_multiple_of(size) {
                    self.cobs.missed(fid, since, size, offset);
                }
                self.tally.add("missing", 1);
            }
            Err(error) => self.excuse(&error),
        }
    }

    pub async fn delete(&self, fid: Fid, give_up_us: Option<u64>) {
        let call = self.cobs.delete_begins(fid, u64::from(attrs(fid).chunk_size));
        let deleting = self.store.cob_delete(fid);
        let result = match give_up_us {
            None => deleting.await,
            Some(us) => match self.ctx.timeout(Duration::from_micros(us), deleting).await {
                Ok(result) => result,
                Err(_) => return self.tally.add("given_up", 1),
            },
        };
        match result {
            Ok(committed) => {
                self.cobs.committed(call, committed.lsn());
                self.tally.add("deletes", 1);
            }
            Err(error) => {
                // A host that has no room for what the journal holds leaves none for deletes some time. They are patient.
                let stays_full = self.faults.so_far()[1][Kind::Write as usize] >= proof::REFUSALS_MIN;
                assert!(
                    matches!(error, StoreError::Failed { .. } | StoreError::Busy)
                        || matches!(error, StoreError::HostFull) && stays_full,
                    "a delete works also on a full target: {error}"
                );
                if matches!(error, StoreError::Busy) {
                    self.cobs.refused(call, &error);
                }
                self.excuse(&error);
            }
        }
    }

    async fn fence(&self, slot: u64) {
        let session = self.ages.session(slot, false);
        let number = self.cobs.fence_begins(session);
        match self.store.fence(session).await {
            Ok(committed) => {
                self.cobs.fenced(session, number, committed.lsn());
                let age = &self.ages.sessions[slot as usize];
                age.set(age.get() + 1);
                self.tally.add("fences", 1);
            }
            Err(error) => self.excuse(&error),
        }
    }

    /// One catalogue transaction.
    pub async fn change(
        &self,
        decide: impl Fn(&mut super::ctg_log::View) -> Result<Vec<CtgOp>, cobalt_store::Miss> + 'static,
    ) -> Result<(), StoreError> {
        let (number, decide) = self.ctg.deciding(decide);
        match self.store.ctg().transact(decide).await {
            Ok((answer, lsn)) => {
                self.ctg.answered(number, answer, lsn);
                self.tally.add("transacts", 1);
                Ok(())
            }
            Err(error) => {
                if !matches!(error, StoreError::Failed { .. }) {
                    self.ctg.refused(number);
                }
                self.excuse(&error);
                Err(error)
            }
        }
    }

    async fn turn(&self, key: u16, len: usize) {
        let (key, tag) = (ctg_key(key), self.cobs.now());
        let result = self.change(move |view| {
            let old = view.get(&key)?;
            let (ctg, name) = key.clone();
            Ok(match old {
                Some(old) if old.len() % 3 == 0 => vec![CtgOp::Delete { ctg, key: name }],
                _ => {
                    let mut value = super::target::pattern(tag, len);
                    value.extend_from_slice(&tag.to_le_bytes());
                    vec![CtgOp::Put { ctg, key: name, value }]
                }
            })
        });
        let _ = result.await;
    }

    /// Looks at many keys, so that the decision misses many nodes, and writes one.
    async fn sum(&self, key: u16, count: u16) {
        let result = self.change(move |view| {
            let mut found = 0u64;
            for at in key..key + count {
                found += u64::from(view.get(&ctg_key(at))?.is_some());
            }
            let next = view.next(&ctg_key(key))?;
            let (ctg, name) = ctg_key(key);
            if found.is_multiple_of(4) {
                return Ok(Vec::new());
            }
            let value = [found.to_le_bytes().to_vec(), next.map(|n| n.1).unwrap_or_default()].concat();
            Ok(vec![CtgOp::Put { ctg, key: name, value }])
        });
        let _ = result.await;
    }

    async fn fill(&self, key: u16, count: u16, len: usize) {
        let keys: Vec<u16> = (key..key.saturating_add(count).min(CTG_KEYS)).collect();
        for keys in keys.chunks(4) {
            let puts = keys.iter().map(|key| {
                let (ctg, key) = ctg_key(*key);
                CtgOp::Put { ctg, key, value: super::target::pattern(self.cobs.now(), len.min(600)) }
            });
            let puts: Vec<CtgOp> = puts.collect();
            if self.change(move |_| Ok(puts.clone())).await.is_err() {
                return;
            }
        }
    }

    async fn clear(&self, key: u16, count: u16) {
        for ctg in [1, 2] {
            let result = self.change(move |view| {
                let mut ops = Vec::new();
                let mut from = (ctg, key.to_be_bytes().to_vec());
                let mut bytes = 0;
                while ops.len() < usize::from(count) && bytes < 3000 {
                    let Some(found) = view.next(&from)? else { break };
                    from = (found.0, [&found.1[..], &[0]].concat());
                    bytes += from.1.len() + 8;
                    ops.push(CtgOp::Delete { ctg: found.0, key: found.1 });
                }
                Ok(ops)
            });
            let _ = result.await;
        }
    }

    async fn get(&self, key: u16) {
        let key = ctg_key(key);
        let since = self.store.ctg().applied();
        match self.store.ctg().get(key.0, &key.1).await {
            Ok(value) => {
                self.ctg.got(key, value, (since, self.store.ctg().applied()));
                self.tally.add("gets", 1);
            }
            Err(error) => self.excuse(&error),
        }
    }

    async fn scan(&self, key: u16, count: u16) {
        let ctg = 1 + u32::from(key.is_multiple_of(3));
        let (from, until) = (key.to_be_bytes().to_vec(), (key + count).to_be_bytes().to_vec());
        let since = self.store.ctg().applied();
        match self.store.ctg().scan(ctg, &from, Some(&until), usize::MAX).await {
            Ok(entries) => {
                let between = (since, self.store.ctg().applied());
                self.ctg.scanned((ctg, from), (ctg, until), entries, between);
                self.tally.add("scans", 1);
            }
            Err(error) => self.excuse(&error),
        }
    }
}
