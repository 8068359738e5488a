//! Sessions. A session is fenced by a commit, by nothing else: when its named process opens the
//! next one, or when it says goodbye. From that commit on no request of it is taken, so what it left behind can be
//! told from what it published.

use crate::bucket::check_name;
use crate::draft::{Draft, Stop};
use crate::limits::{ANSWERS_PER_COMMIT, NONCES_MAX, SESSIONS_MAX};
use crate::row::{AnswerRow, ProcessState, SessionState};
use crate::schema::{self, ANSWERS, FENCES, PROCESSES, SESSIONS, meta};
use cobalt_base::SessionId;
use cobalt_rpc::proto::cas::{CasError, OpenSession};

/// Opens a session for a process and fences the one it had. A repeat gets the same session; a late repeat of an
/// earlier opening opens nothing.
pub fn open(draft: &mut Draft<'_>, request: &OpenSession) -> Result<SessionId, Stop> {
    check_name("a process name", &request.process)?;
    let key = request.process.as_bytes().to_vec();
    let process: Option<ProcessState> = draft.get(PROCESSES, &key)?;
    let mut earlier = Vec::new();
    if let Some(process) = process {
        if process.nonce == request.nonce {
            find_live(draft, process.session)?;
            return Ok(process.session);
        }
        earlier = process.earlier;
        if let Some((_, session)) = earlier.iter().find(|(nonce, _)| *nonce == request.nonce) {
            return Err(CasError::Fenced(*session).into());
        }
        earlier.push((process.nonce, process.session));
        let excess = earlier.len().saturating_sub(NONCES_MAX);
        earlier.drain(..excess);
        fence(draft, process.session)?;
    }
    if draft.count(meta::SESSIONS, 1)? > SESSIONS_MAX {
        return Err(CasError::Full.into());
    }
    let session = SessionId(draft.count(meta::NEXT_SESSION, 1)?);
    draft.put(PROCESSES, key, &ProcessState { session, nonce: request.nonce, earlier })?;
    let state = SessionState { process: request.process.clone(), acknowledged: 0, fenced: false };
    draft.put(SESSIONS, schema::session(session), &state)?;
    Ok(session)
}

/// The state of a session that may still speak.
pub fn find_live(draft: &Draft<'_>, session: SessionId) -> Result<SessionState, Stop> {
    match draft.get::<SessionState>(SESSIONS, &schema::session(session))? {
        None => Err(CasError::NoSession(session).into()),
        Some(state) if state.fenced => Err(CasError::Fenced(session).into()),
        Some(state) => Ok(state),
    }
}

/// Fences a session. One that is fenced or gone is fenced all the same.
pub fn fence(draft: &mut Draft<'_>, session: SessionId) -> Result<(), Stop> {
    let key = schema::session(session);
    if let Some(mut state) = draft.get::<SessionState>(SESSIONS, &key)?
        && !state.fenced
    {
        state.fenced = true;
        draft.put(SESSIONS, key, &state)?;
        draft.count(meta::FENCED, 1)?;
    }
    Ok(())
}

/// Takes the session's new watermark, and removes some of the answers that it covers.
pub fn acknowledge(
    draft: &mut Draft<'_>,
    session: SessionId,
    state: &mut SessionState,
    acknowledged: u64,
) -> Result<(), Stop> {
    if acknowledged > state.acknowledged {
        state.acknowledged = acknowledged;
        draft.put(SESSIONS, schema::session(session), state)?;
    }
    remove_answers(draft, session, state.acknowledged, ANSWERS_PER_COMMIT)?;
    Ok(())
}

/// Removes up to `limit` answers of the session up to the request `until`. True when none is left.
fn remove_answers(draft: &mut Draft<'_>, session: SessionId, until: u64, limit: usize) -> Result<bool, Stop> {
    let mut from = schema::answer(session, 0);
    for _ in 0..limit {
        match draft.next(ANSWERS, &from)? {
            Some((row, _)) if schema::parse_answer(&row).is_some_and(|(s, r)| s == session && r <= until) => {
                from = [row.as_slice(), &[0]].concat();
                draft.delete(ANSWERS, row);
            }
            _ => return Ok(true),
        }
    }
    Ok(false)
}

/// Removes a fenced session that is swept everywhere: up to `limit` answers at a time, and with the last of them the
/// session. True when it is gone.
pub fn drop_fenced(
    draft: &mut Draft<'_>,
    session: SessionId,
    targets: &[uuid::Uuid],
    limit: usize,
) -> Result<bool, Stop> {
    let key = schema::session(session);
    match draft.get::<SessionState>(SESSIONS, &key)? {
        None => return Ok(true),
        Some(state) if !state.fenced => return Ok(true),
        Some(_) => {}
    }
    if !remove_answers(draft, session, u64::MAX, limit)? {
        return Ok(false);
    }
    for target in targets {
        draft.delete(FENCES, schema::fence(session, *target));
    }
    draft.delete(SESSIONS, key);
    draft.count(meta::SESSIONS, -1)?;
    draft.count(meta::FENCED, -1)?;
    Ok(true)
}

/// The stored answer to a request.
pub fn stored(draft: &Draft<'_>, session: SessionId, request: u64) -> Result<Option<AnswerRow>, Stop> {
    draft.get(ANSWERS, &schema::answer(session, request))
}
