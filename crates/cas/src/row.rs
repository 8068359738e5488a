//! What stands in the catalogues' rows: a version byte, then postcard. The records that travel
//! (`cobalt_rpc::proto::record`) are stored as they are; the rest is here.

use cobalt_base::{Fid, SessionId};
use cobalt_rpc::proto::record::{
    BucketRecord, KeyRecord, ObjectRecord, PartRecord, PoolTarget, UploadRecord,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

/// Version of every row so far.
const VERSION: u8 = 1;

/// A row that cannot be what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the catalogue's {what} row cannot be read: {why}")]
pub struct BadRow {
    pub what: &'static str,
    pub why: String,
}

/// A value of a catalogue.
pub trait Row: Serialize + DeserializeOwned {
    /// Its name, for messages.
    const WHAT: &'static str;

    /// Bytes of the row.
    fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("rows hold plain data, and a Vec takes all of it")
    }

    /// The row of these bytes.
    ///
    /// # Errors
    /// [`BadRow`] for another version, bytes that are no such row, and bytes left over.
    fn decode(bytes: &[u8]) -> Result<Self, BadRow> {
        let bad = |why: String| BadRow { what: Self::WHAT, why };
        match bytes.split_first() {
            Some((&VERSION, body)) => match postcard::take_from_bytes(body) {
                Ok((row, [])) => Ok(row),
                Ok((_, rest)) => Err(bad(format!("{} bytes are left over", rest.len()))),
                Err(e) => Err(bad(e.to_string())),
            },
            Some((version, _)) => {
                Err(bad(format!("it is of version {version}, this program knows {VERSION}")))
            }
            None => Err(bad("it is empty".into())),
        }
    }
}

/// What names a fid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FidRow {
    Object {
        bucket: u64,
        key: Vec<u8>,
    },
    Part {
        upload: Uuid,
        number: u16,
    },
    /// On the dead list, from the commit at `index`.
    Dead {
        index: u64,
    },
}

/// Where an upload stands. Outlives the upload for as long as there are parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadState {
    pub bucket: u64,
    pub key: Vec<u8>,
    /// Rises with each change of a part: Complete notices by it that what it read is old.
    pub revision: u64,
    pub stage: UploadStage,
}

/// Stage of an upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UploadStage {
    Open,
    /// An object is made of the parts in `numbers`; the answer is kept for repeats.
    Completed {
        numbers: Vec<u8>,
        etag: String,
    },
    Aborted,
}

/// An entry of the dead list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadRow {
    /// Version of the pool over which its cobs lie; `None`: any of them.
    pub pool: Option<u32>,
    /// Targets that have confirmed.
    pub confirmed: Vec<Uuid>,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionState {
    pub process: String,
    /// Requests up to here have been answered to the session.
    pub acknowledged: u64,
    pub fenced: bool,
}

/// The present session of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    pub session: SessionId,
    pub nonce: u64,
    /// Nonces of the sessions before, the latest last.
    pub earlier: Vec<(u64, SessionId)>,
}

/// How far the fence of a session is at one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FenceState {
    /// The target refuses the session, durably.
    Fenced,
    /// And nothing of the session is left there that nothing names.
    Swept,
}

/// A version of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRow {
    pub targets: Vec<PoolTarget>,
}

/// A stored answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerRow(pub Result<cobalt_rpc::proto::cas::Outcome, cobalt_rpc::proto::cas::CasError>);

macro_rules! rows {
    ($($row:ty: $what:literal;)*) => {
        $(impl Row for $row {
            const WHAT: &'static str = $what;
        })*
    };
}

rows! {
    u64: "meta";
    BucketRecord: "bucket";
    ObjectRecord: "object";
    UploadRecord: "upload";
    PartRecord: "part";
    KeyRecord: "credential";
    FidRow: "fid";
    UploadState: "upload state";
    DeadRow: "dead list";
    SessionState: "session";
    ProcessState: "process";
    FenceState: "fence";
    PoolRow: "pool";
    AnswerRow: "answer";
}

/// The fid of a body that has one of its own.
pub fn body_fid(body: &cobalt_rpc::proto::record::Body) -> Option<Fid> {
    match body {
        cobalt_rpc::proto::record::Body::Single(extent) => Some(extent.fid),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{FenceState, Row};

    #[test]
    fn a_row_that_is_cut_padded_or_newer_is_refused() {
        let row = 300u64.encode();
        assert_eq!(u64::decode(&row), Ok(300));
        assert!(u64::decode(&row[..row.len() - 1]).is_err());
        assert!(u64::decode(&[row.as_slice(), &[0]].concat()).is_err());
        assert!(u64::decode(&[&[2], &row[1..]].concat()).is_err());
        assert!(u64::decode(&[]).is_err());
        assert!(FenceState::decode(&[1, 9]).is_err());
    }
}
