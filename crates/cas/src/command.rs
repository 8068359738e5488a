//! A commit of a session: its checks, its first answer kept for its repeats (I9b), and the command's
//! own function. Deterministic over what the draft reads; nothing else goes in but what [`PartsRead`] says of it.

use crate::draft::{Draft, Stop};
use crate::limits::REQUEST_WINDOW;
use crate::object::Publish;
use crate::row::{AnswerRow, FidRow};
use crate::schema::{self, ANSWERS, DeadKey, FIDS};
use crate::upload::{Complete, PartsRead};
use crate::{bucket, key, object, pool, session, upload};
use cobalt_base::{Fid, SessionId};
use cobalt_rpc::proto::cas::{CasError, Command, Commit, DEAD_FIDS_MAX, Outcome};

/// What a commit came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decided {
    /// The answer, which is stored, or was.
    Answer(Result<Outcome, CasError>),
    /// The session may not ask this: nothing is stored.
    Refused(CasError),
    /// What was read of the parts is old: read them again, then decide again.
    ReadAgain,
}

/// Decides a commit.
///
/// # Errors
/// [`Stop::Miss`] and [`Stop::Bad`]; refusals are answers.
pub fn decide(draft: &mut Draft<'_>, commit: &Commit, read: &PartsRead) -> Result<Decided, Stop> {
    let mut state = match session::find_live(draft, commit.session) {
        Ok(state) => state,
        Err(Stop::Refused(error)) => return Ok(Decided::Refused(error)),
        Err(stop) => return Err(stop),
    };
    if let Some(AnswerRow(answer)) = session::stored(draft, commit.session, commit.request)?
        && commit.request > state.acknowledged
    {
        return Ok(Decided::Answer(answer));
    }
    if commit.request <= state.acknowledged {
        return Ok(Decided::Refused(CasError::Acknowledged(commit.request)));
    }
    if commit.acknowledged >= commit.request {
        let why = format!("request {} acknowledges {}", commit.request, commit.acknowledged);
        return Ok(Decided::Refused(CasError::Malformed(why)));
    }
    if commit.request - state.acknowledged.max(commit.acknowledged) > REQUEST_WINDOW {
        return Ok(Decided::Refused(CasError::Busy));
    }
    let answer = match run(draft, commit.session, &commit.command, read) {
        Ok(Some(outcome)) => Ok(outcome),
        Ok(None) => return Ok(Decided::ReadAgain),
        Err(Stop::Refused(error)) => {
            draft.clear();
            Err(error)
        }
        Err(stop) => return Err(stop),
    };
    session::acknowledge(draft, commit.session, &mut state, commit.acknowledged)?;
    draft.put(ANSWERS, schema::answer(commit.session, commit.request), &AnswerRow(answer.clone()))?;
    Ok(Decided::Answer(answer))
}

fn run(
    draft: &mut Draft<'_>,
    session: SessionId,
    command: &Command,
    read: &PartsRead,
) -> Result<Option<Outcome>, Stop> {
    let outcome = match command {
        Command::CreateBucket { name, owner, created } => bucket::create(draft, name, owner, *created),
        Command::DeleteBucket { name } => bucket::delete(draft, name),
        Command::PutObject { bucket, bucket_id, key, record, condition } => {
            object::put(draft, &Publish { session, bucket, bucket_id: *bucket_id, key, record, condition })
        }
        Command::DeleteObject { bucket, key, condition } => object::delete(draft, bucket, key, condition),
        Command::DeleteObjects { bucket, keys } => object::delete_many(draft, bucket, keys),
        Command::CreateUpload { bucket, record } => upload::create(draft, bucket, record),
        Command::PutPart { bucket, key, upload, part } => {
            upload::put_part(draft, session, bucket, key, *upload, part)
        }
        Command::CompleteUpload { bucket, key, upload, numbers, digest, record, condition } => {
            let new = Complete { bucket, key, upload: *upload, numbers, digest: *digest, record, condition };
            return upload::complete(draft, &new, read);
        }
        Command::AbortUpload { bucket, key, upload } => upload::abort(draft, bucket, key, *upload),
        Command::Dead { fids } => dead(draft, session, fids),
        Command::CreateKey(record) => key::create(draft, record),
        Command::DeleteKey { access_key } => key::delete(draft, access_key),
        Command::EnableKey { access_key, enabled } => key::enable(draft, access_key, *enabled),
        Command::SetPool { targets } => pool::set(draft, targets),
    };
    outcome.map(Some)
}

/// Puts fids of failed PUTs on the dead list. One that a record names after all stays with it.
fn dead(draft: &mut Draft<'_>, session: SessionId, fids: &[Fid]) -> Result<Outcome, Stop> {
    if fids.len() > DEAD_FIDS_MAX {
        return Err(CasError::TooLarge(format!("{} fids; {DEAD_FIDS_MAX} are the most", fids.len())).into());
    }
    for fid in fids {
        if fid.session != session {
            return Err(CasError::Malformed(format!("fid {fid} is not one of session {session}")).into());
        }
        if draft.get::<FidRow>(FIDS, &fid.to_key())?.is_none() {
            draft.bury(draft.index(), DeadKey::Fid(*fid), None)?;
        }
    }
    Ok(Outcome::Done)
}
