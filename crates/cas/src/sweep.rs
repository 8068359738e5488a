//! What a fenced session left behind: fenced at every target, then swept there, then forgotten.
//!
//! From the fencing commit on nothing of the session can be named any more, and from a target's fence on nothing of it
//! can be written there: a cob of its range that neither a record nor the dead list names then is an orphan for ever.

use crate::collector::{Halt, Pass};
use crate::limits::SCAN_ROWS;
use crate::row::{FenceState, FidRow, SessionState};
use crate::schema::{self, FENCES, FIDS, SESSIONS, meta};
use crate::session::drop_fenced;
use crate::target::TargetError;
use cobalt_base::canary::{Canary, planted};
use cobalt_base::{Fid, SessionId};
use cobalt_rpc::proto::ios::CobRow;
use uuid::Uuid;

impl Pass<'_> {
    /// Works through the fenced sessions.
    pub(crate) async fn sweep(&mut self) -> Result<(), Halt> {
        let table = &self.cas.0.table;
        if table.counter(meta::FENCED).await? == 0 && !planted(Canary::CollectorWithoutFence) {
            return Ok(());
        }
        let mut from = Vec::new();
        loop {
            let rows = table.scan::<SessionState>(SESSIONS, &from, None, SCAN_ROWS).await?;
            let end = rows.len() < SCAN_ROWS;
            for (key, state) in rows {
                from = [key.as_slice(), &[0]].concat();
                match schema::parse_session(&key) {
                    Some(session) if state.fenced || planted(Canary::CollectorWithoutFence) => {
                        self.finish(session).await?;
                    }
                    Some(_) => {}
                    None => return Err(Halt::For("a session's key is malformed".into())),
                }
            }
            if end {
                return Ok(());
            }
        }
    }

    /// Brings a fenced session as far as the targets allow.
    async fn finish(&mut self, session: SessionId) -> Result<(), Halt> {
        let mut swept = 0;
        for target in self.all.clone() {
            swept += usize::from(self.finish_at(session, target).await?);
        }
        if swept < self.all.len() {
            return Ok(());
        }
        let targets: Vec<Uuid> = self.all.iter().copied().collect();
        let limit = self.limits.batch;
        loop {
            let targets = targets.clone();
            let gone = self.cas.0.table.transact(move |draft| drop_fenced(draft, session, &targets, limit));
            if gone.await? {
                return Ok(());
            }
            self.pace().await;
        }
    }

    /// True when the session is fenced and swept at the target, durably noted.
    async fn finish_at(&mut self, session: SessionId, target: Uuid) -> Result<bool, Halt> {
        let state = self.cas.0.table.get::<FenceState>(FENCES, &schema::fence(session, target)).await?;
        if state == Some(FenceState::Swept) && !planted(Canary::CollectorWithoutFence) {
            return Ok(true);
        }
        if self.down.contains_key(&target) {
            return Ok(false);
        }
        if state.is_none() {
            let skip = planted(Canary::SweepWithoutFence) || planted(Canary::CollectorWithoutFence);
            let fenced = if skip { Ok(()) } else { self.targets.fence(target, session).await };
            if !self.took(target, fenced)? {
                return Ok(false);
            }
            self.note_fence(session, target, FenceState::Fenced).await?;
        }
        if !self.sweep_target(session, target).await? {
            return Ok(false);
        }
        self.note_fence(session, target, FenceState::Swept).await?;
        Ok(true)
    }

    async fn note_fence(&self, session: SessionId, target: Uuid, state: FenceState) -> Result<(), Halt> {
        let note =
            self.cas.0.table.transact(move |draft| draft.put(FENCES, schema::fence(session, target), &state));
        Ok(note.await?)
    }

    /// Deletes the session's orphans at a target. True when none is left.
    async fn sweep_target(&mut self, session: SessionId, target: Uuid) -> Result<bool, Halt> {
        let mut from = Fid::new(session, 0);
        loop {
            let limit = u32::try_from(self.limits.batch).unwrap_or(u32::MAX);
            let rows = match self.targets.list(target, from, limit).await {
                Ok(rows) => rows,
                Err(error) => return self.took(target, Err(error)),
            };
            if !rows.is_sorted_by(|a, b| a.fid < b.fid) || rows.first().is_some_and(|row| row.fid < from) {
                return self
                    .took(target, Err(TargetError::Unavailable("its list of cobs is out of order".into())));
            }
            let last = rows.last().map(|row| row.fid);
            let orphans = self.orphans(session, target, &rows).await?;
            if !orphans.is_empty() {
                let deleted = self.targets.delete(target, orphans, self.cas.0.incarnation).await;
                if !self.took(target, deleted)? {
                    return Ok(false);
                }
            }
            match last {
                Some(last) if last.session == session && last.counter < u64::MAX => {
                    from = Fid::new(session, last.counter + 1);
                }
                _ => return Ok(true),
            }
            self.pace().await;
        }
    }

    /// The session's cobs that nothing names.
    async fn orphans(&self, session: SessionId, target: Uuid, rows: &[CobRow]) -> Result<Vec<Fid>, Halt> {
        let mut orphans = Vec::new();
        for row in rows.iter().filter(|row| row.fid.session == session) {
            if row.incarnation != self.cas.0.incarnation {
                return Err(self.foreign(target, row.incarnation));
            }
            if self.cas.0.table.get::<FidRow>(FIDS, &row.fid.to_key()).await?.is_none() {
                orphans.push(row.fid);
            }
        }
        Ok(orphans)
    }
}
