//! The catalogue service: sessions, questions and commits, with the position of each answer.

use crate::command::{Decided, decide};
use crate::leader::Leadership;
use crate::limits::{COMPLETE_TRIES, SCAN_ROWS};
use crate::row::{SessionState, UploadStage, UploadState};
use crate::schema::{self, META, PARTS, SESSIONS, UPLOAD_STATES, meta};
use crate::table::Table;
use crate::upload::{PartsRead, has_number};
use crate::{pool, query, session};
use cobalt_base::{Nanos, SessionId};
use cobalt_reactor::Ctx;
use cobalt_reactor::sync::Notify;
use cobalt_rpc::proto::cas::{
    Answer, Ask, At, CasError, CasStatus, CloseSession, Command, Commit, Heartbeat, OpenSession, Outcome,
    Position, Query, SessionOpened, parts_digest,
};
use cobalt_rpc::proto::record::{PartRecord, PoolTarget};
use cobalt_rpc::{Call, Refusal, Request, Service};
use cobalt_store::Ctg;
use futures::future::LocalBoxFuture;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// The catalogue. Clones are the same one.
#[derive(Clone)]
pub struct Cas(pub(crate) Rc<Inner>);

pub(crate) struct Inner {
    pub(crate) ctx: Ctx,
    pub(crate) table: Table,
    leadership: Rc<dyn Leadership>,
    target: String,
    pub(crate) incarnation: u64,
    term: u64,
    /// What each session has said since this start: none of its GETs that still run looked up before this index. Once
    /// true that stays true, so the highest counts. In memory only: what was said to another term is not known here.
    reports: RefCell<BTreeMap<SessionId, u64>>,
    /// When each session was heard last. In memory only: a start renews every lease.
    heard: RefCell<BTreeMap<SessionId, Nanos>>,
    /// Told of everything that may give the collector work.
    pub(crate) work: Notify,
    /// Why the collector stands, for people.
    pub(crate) note: RefCell<Option<String>>,
}

impl Cas {
    /// Starts the service on the catalogues of target `target`: the term rises, durably, and on the very first start
    /// the incarnation is drawn.
    ///
    /// # Errors
    /// [`CasError`].
    pub async fn start(
        ctx: Ctx,
        ctg: Ctg,
        target: impl Into<String>,
        leadership: Rc<dyn Leadership>,
    ) -> Result<Cas, CasError> {
        let table = Table::new(ctg);
        let drawn = ctx.random_u64().max(1);
        let (incarnation, term) = table
            .transact(move |draft| {
                let mut incarnation = draft.counter(meta::INCARNATION)?;
                if incarnation == 0 {
                    incarnation = drawn;
                    draft.put(META, meta::INCARNATION.to_vec(), &incarnation)?;
                }
                Ok((incarnation, draft.count(meta::TERM, 1)?))
            })
            .await?;
        Ok(Cas(Rc::new(Inner {
            ctx,
            table,
            leadership,
            target: target.into(),
            incarnation,
            term,
            reports: RefCell::default(),
            heard: RefCell::default(),
            work: Notify::default(),
            note: RefCell::default(),
        })))
    }

    /// The catalogue's incarnation, which every cob carries.
    pub fn incarnation(&self) -> u64 {
        self.0.incarnation
    }

    /// Rows that listings and other scans have read.
    pub fn rows_read(&self) -> u64 {
        self.0.table.rows_read()
    }

    /// The position of an answer whose reads begin now.
    pub fn position(&self) -> Position {
        Position { term: self.0.term, index: self.0.table.applied() }
    }

    fn lead(&self) -> Result<(), CasError> {
        self.0.leadership.lead().map_err(|hint| {
            // What sessions say to the next leader is not heard here.
            self.0.reports.borrow_mut().clear();
            self.0.heard.borrow_mut().clear();
            CasError::NotLeader { hint }
        })
    }

    /// Whether this replica leads now.
    pub(crate) fn leads(&self) -> bool {
        self.lead().is_ok()
    }

    /// Opens a session for a process, and fences the one it had.
    ///
    /// # Errors
    /// [`CasError`].
    pub async fn open_session(&self, request: OpenSession) -> Result<At<SessionOpened>, CasError> {
        self.lead()?;
        let session = self.0.table.transact(move |draft| session::open(draft, &request)).await?;
        self.0.heard.borrow_mut().insert(session, self.0.ctx.now());
        self.0.work.notify_all();
        self.lead()?;
        let value = SessionOpened { session, incarnation: self.0.incarnation };
        Ok(At { position: self.position(), value })
    }

    /// Ends a session: from now on it is fenced.
    ///
    /// # Errors
    /// [`CasError`].
    pub async fn close_session(&self, request: CloseSession) -> Result<Position, CasError> {
        self.lead()?;
        self.fence(request.session).await?;
        self.0.work.notify_all();
        self.lead()?;
        Ok(self.position())
    }

    async fn fence(&self, session: SessionId) -> Result<(), CasError> {
        self.0.table.transact(move |draft| session::fence(draft, session)).await?;
        self.forget(session);
        Ok(())
    }

    fn forget(&self, session: SessionId) {
        self.0.reports.borrow_mut().remove(&session);
        self.0.heard.borrow_mut().remove(&session);
    }

    /// Fences the sessions that said nothing for `lease`: a process that never comes back must not hold the collector
    /// up for ever. One that comes back after all is told, and opens another.
    pub(crate) async fn fence_silent(&self, lease: Duration) -> Result<(), CasError> {
        let mut from = Vec::new();
        loop {
            let rows = self.0.table.scan::<SessionState>(SESSIONS, &from, None, SCAN_ROWS).await?;
            let end = rows.len() < SCAN_ROWS;
            for (key, state) in rows {
                from = [key.as_slice(), &[0]].concat();
                let Some(session) = schema::parse_session(&key) else { continue };
                if state.fenced {
                    self.forget(session);
                    continue;
                }
                // A leader that was not one for a while has heard nothing: it counts from now on.
                let heard = *self.0.heard.borrow_mut().entry(session).or_insert(self.0.ctx.now());
                if self.0.ctx.now() - heard >= lease {
                    tracing::warn!(%session, process = state.process, "fenced: silent for {lease:?}");
                    self.fence(session).await?;
                }
            }
            if end {
                return Ok(());
            }
        }
    }

    /// Takes a session's word on its GETs.
    ///
    /// # Errors
    /// [`CasError::NoSession`], [`CasError::Fenced`], [`CasError`].
    pub async fn heartbeat(&self, request: Heartbeat) -> Result<Position, CasError> {
        self.lead()?;
        let Heartbeat { session, oldest } = request;
        let state = self.0.table.get::<SessionState>(SESSIONS, &schema::session(session)).await;
        match state.map_err(CasError::from)? {
            None => return Err(CasError::NoSession(session)),
            Some(state) if state.fenced => return Err(CasError::Fenced(session)),
            Some(_) => {}
        }
        self.lead()?;
        let position = self.position();
        if oldest.index > position.index || oldest.term > position.term {
            let why = format!("a look-up at {oldest:?}, the catalogue is at {position:?}");
            return Err(CasError::Malformed(why));
        }
        self.0.heard.borrow_mut().insert(session, self.0.ctx.now());
        let mut reports = self.0.reports.borrow_mut();
        let report = reports.entry(session).or_default();
        *report = oldest.index.max(*report);
        drop(reports);
        self.0.work.notify_all();
        Ok(position)
    }

    /// Adds a version of the pool if it differs from the newest, for the process that holds the catalogue: it needs no
    /// session for that, since doing it twice does nothing. The newest version's number.
    ///
    /// # Errors
    /// [`CasError`].
    pub async fn set_pool(&self, targets: Vec<PoolTarget>) -> Result<u32, CasError> {
        self.lead()?;
        match self.0.table.transact(move |draft| pool::set(draft, &targets)).await? {
            Outcome::PoolSet { version } => Ok(version),
            other => Err(CasError::Failed(format!("setting the pool came to {other:?}"))),
        }
    }

    /// Answers a question.
    ///
    /// # Errors
    /// [`CasError`].
    pub async fn ask(&self, query: &Query) -> Result<At<Answer>, CasError> {
        self.lead()?;
        let position = self.position();
        let value = match query {
            Query::Status => Answer::Status(self.status().await?),
            query => query::answer(&self.0.table, query).await?,
        };
        self.lead()?;
        Ok(At { position, value })
    }

    /// Makes a change, once, whatever the number of repeats.
    ///
    /// # Errors
    /// [`CasError`].
    pub async fn commit(&self, commit: Commit) -> Result<At<Outcome>, CasError> {
        self.lead()?;
        let commit = Rc::new(commit);
        for _ in 0..COMPLETE_TRIES {
            let read = match &commit.command {
                Command::CompleteUpload { upload, numbers, .. } => self.read_parts(*upload, numbers).await?,
                _ => PartsRead::default(),
            };
            let command = commit.clone();
            let decided = self.0.table.transact(move |draft| decide(draft, &command, &read)).await?;
            self.0.work.notify_all();
            self.lead()?;
            match decided {
                Decided::Answer(answer) => return Ok(At { position: self.position(), value: answer? }),
                Decided::Refused(error) => return Err(error),
                Decided::ReadAgain => {}
            }
        }
        Err(CasError::Busy)
    }

    /// Reads the parts of an upload for a Complete. The revision is read first, so that a change meanwhile shows.
    async fn read_parts(&self, upload: Uuid, numbers: &[u8]) -> Result<PartsRead, CasError> {
        let table = &self.0.table;
        let state = table.get::<UploadState>(UPLOAD_STATES, upload.as_bytes()).await?;
        let Some(UploadState { revision, stage: UploadStage::Open, .. }) = state else {
            return Ok(PartsRead::default());
        };
        let (mut named, mut rest) = (Vec::new(), false);
        let mut next = Some(0);
        while let Some(number) = next {
            let rows =
                table.scan::<PartRecord>(PARTS, &schema::part(upload, number), None, SCAN_ROWS).await?;
            next = None;
            for (row, part) in rows {
                let Some(number) = schema::part_number(&row, upload) else {
                    next = None;
                    break;
                };
                next = number.checked_add(1);
                match has_number(numbers, number) {
                    true => named.push((number, part.etag, part.size)),
                    false => rest = true,
                }
            }
        }
        let count: u32 = numbers.iter().map(|byte| byte.count_ones()).sum();
        let whole = named.len() as u64 == u64::from(count);
        let digest =
            whole.then(|| parts_digest(named.iter().map(|(n, etag, size)| (*n, etag.as_str(), *size))));
        Ok(PartsRead { revision, digest, rest })
    }

    /// The state of the catalogue and its collector.
    ///
    /// # Errors
    /// [`CasError`].
    pub async fn status(&self) -> Result<CasStatus, CasError> {
        let table = &self.0.table;
        Ok(CasStatus {
            incarnation: self.0.incarnation,
            replicas: 1,
            target: self.0.target.clone(),
            buckets: table.counter(meta::BUCKETS).await?,
            sessions: query::sessions(table).await?,
            dead: table.counter(meta::DEAD).await?,
            collector_idle: self.collector_idle().await?,
            collector_note: self.0.note.borrow().clone(),
        })
    }

    /// Whether the collector has nothing to do: no dead entry, no fenced session that is not swept everywhere.
    ///
    /// # Errors
    /// [`CasError`].
    pub async fn collector_idle(&self) -> Result<bool, CasError> {
        let table = &self.0.table;
        Ok(table.counter(meta::DEAD).await? == 0 && table.counter(meta::FENCED).await? == 0)
    }

    /// The index up to which dead entries may be reclaimed: no unfenced session has a GET that looked up before it.
    /// Zero as long as one of them has said nothing since this start. Never beyond what was applied before the look: a
    /// session that opens during the walk may look up, and replace, what comes later.
    pub(crate) async fn reclaimable(&self) -> Result<u64, CasError> {
        let mut bound = self.0.table.applied();
        let mut from = Vec::new();
        loop {
            let rows = self.0.table.scan::<SessionState>(SESSIONS, &from, None, SCAN_ROWS).await?;
            let end = rows.len() < SCAN_ROWS;
            for (key, state) in rows {
                from = [key.as_slice(), &[0]].concat();
                let session = schema::parse_session(&key)
                    .ok_or_else(|| CasError::Failed("a session's key is malformed".into()))?;
                if !state.fenced {
                    let report = self.0.reports.borrow().get(&session).copied();
                    bound = bound.min(report.unwrap_or(0));
                }
            }
            if end {
                return Ok(bound);
            }
        }
    }
}

/// The service behind the wire.
pub struct CasService(Cas);

impl CasService {
    /// Serves `cas`.
    pub fn new(cas: Cas) -> Rc<CasService> {
        Rc::new(CasService(cas))
    }

    /// Whether a request of this number is one of this service.
    pub fn serves(opcode: u16) -> bool {
        (OpenSession::OPCODE..=CloseSession::OPCODE).contains(&opcode)
    }
}

impl Service for CasService {
    fn call(self: Rc<Self>, call: Call) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            let cas = &self.0;
            match call.opcode() {
                OpenSession::OPCODE => match call.parse::<OpenSession>() {
                    Ok(request) => call.reply::<OpenSession>(cas.open_session(request).await),
                    Err(_) => call.refuse(Refusal::BadRequest),
                },
                Heartbeat::OPCODE => match call.parse::<Heartbeat>() {
                    Ok(request) => call.reply::<Heartbeat>(cas.heartbeat(request).await),
                    Err(_) => call.refuse(Refusal::BadRequest),
                },
                Ask::OPCODE => match call.parse::<Ask>() {
                    Ok(Ask(query)) => call.reply::<Ask>(cas.ask(&query).await),
                    Err(_) => call.refuse(Refusal::BadRequest),
                },
                Commit::OPCODE => match call.parse::<Commit>() {
                    Ok(request) => call.reply::<Commit>(cas.commit(request).await),
                    Err(_) => call.refuse(Refusal::BadRequest),
                },
                CloseSession::OPCODE => match call.parse::<CloseSession>() {
                    Ok(request) => call.reply::<CloseSession>(cas.close_session(request).await),
                    Err(_) => call.refuse(Refusal::BadRequest),
                },
                other => call.refuse(Refusal::UnknownOpcode(other)),
            }
        })
    }
}
