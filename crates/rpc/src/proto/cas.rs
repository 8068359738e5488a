//! Requests to the catalogue service. Queries are answered from durable state; mutations are
//! deterministic commands whose answer, a refusal too, is stored under (session, request) before it leaves (I9b).
//! Every call carries a term and an index, and may be answered with `NotLeader` (one replica today; Raft comes behind
//! the same calls).

use crate::Request;
use crate::proto::record::{
    BucketRecord, ChecksumAlgorithm, KeyRecord, ObjectRecord, PartRecord, PoolMap, PoolTarget, UploadRecord,
};
use cobalt_base::{Fid, SessionId, UnixMillis};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Most rows of one page of any listing.
pub const PAGE_MAX: u32 = 1000;
/// Most bytes of a page's rows; a page ends early rather than pass this.
pub const PAGE_BYTES_MAX: usize = 48 << 10;
/// Most keys of one [`Command::DeleteObjects`]; the client cuts longer lists.
pub const DELETE_KEYS_MAX: usize = 100;
/// Most bytes of its keys together: the request is one message.
pub const DELETE_BYTES_MAX: usize = 48 << 10;
/// Most fids of one [`Command::Dead`].
pub const DEAD_FIDS_MAX: usize = 256;
/// Longest object key, in bytes.
pub const KEY_MAX: usize = 1024;
/// Parts of an upload.
pub const PARTS_MAX: u16 = 10_000;

/// Where an answer stands in the catalogue's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Term of the leader that answered. Rises at each start of the catalogue too.
    pub term: u64,
    /// Index of the last commit that the answer reflects.
    pub index: u64,
}

/// An answer with its position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct At<T> {
    pub position: Position,
    pub value: T,
}

/// A question. Answered only by a leader, from durable state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// The catalogue's incarnation and the pool.
    Cluster,
    Bucket {
        name: String,
    },
    Buckets {
        after: String,
        limit: u32,
    },
    /// The object's record, and for an object of parts none of them (see `Parts`).
    Object {
        bucket: String,
        key: Vec<u8>,
    },
    /// Keys of a bucket in byte order: those after `after` (exclusive; `from_inclusive` makes it inclusive), under `prefix`, folded at `delimiter`.
    List {
        bucket: String,
        prefix: Vec<u8>,
        after: Vec<u8>,
        inclusive: bool,
        delimiter: Option<Vec<u8>>,
        limit: u32,
    },
    Upload {
        bucket: String,
        key: Vec<u8>,
        upload: Uuid,
    },
    /// Uploads under way, by (key, upload id), after the pair given.
    Uploads {
        bucket: String,
        prefix: Vec<u8>,
        after_key: Vec<u8>,
        after_upload: Option<Uuid>,
        delimiter: Option<Vec<u8>>,
        limit: u32,
    },
    /// Parts of an upload under way or of an object made of parts, in order of number.
    Parts {
        upload: Uuid,
        after: u16,
        limit: u32,
    },
    Key {
        access_key: String,
    },
    Keys {
        after: String,
        limit: u32,
    },
    Status,
}

/// One entry of a listing: a key or a common prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListRow {
    Object {
        key: Vec<u8>,
        size: u64,
        modified: UnixMillis,
        etag: String,
        checksum: Option<ChecksumAlgorithm>,
    },
    Prefix(Vec<u8>),
}

/// One entry of a listing of uploads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UploadRow {
    Upload { key: Vec<u8>, upload: Uuid, initiated: UnixMillis },
    Prefix(Vec<u8>),
}

/// A page of rows, and whether more follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    pub rows: Vec<T>,
    pub more: bool,
}

/// State of the catalogue for `status` and `health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CasStatus {
    pub incarnation: u64,
    pub replicas: u32,
    /// Name of the target that holds it.
    pub target: String,
    pub buckets: u64,
    pub sessions: Vec<SessionRow>,
    /// Entries of the dead list that wait for collection.
    pub dead: u64,
    /// Whether the collector has nothing to do: no dead entry, no fence under way, the last sweep complete.
    pub collector_idle: bool,
    pub collector_note: Option<String>,
}

/// A session as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    pub session: SessionId,
    pub process: String,
    pub fenced: bool,
}

/// The answer to a [`Query`] of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Cluster { incarnation: u64, pools: Vec<PoolMap> },
    Bucket(BucketRecord),
    Buckets(Page<BucketRecord>),
    Object(ObjectRecord),
    List(Page<ListRow>),
    Upload(UploadRecord),
    Uploads(Page<UploadRow>),
    Parts(Page<PartRecord>),
    Key(KeyRecord),
    Keys(Page<KeyRecord>),
    Status(CasStatus),
}

/// What must hold for a write to take place; judged inside the commit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// If-None-Match: *
    pub absent: bool,
    pub if_match: Option<String>,
}

/// A part as Complete names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartName {
    pub number: u16,
    pub etag: String,
}

/// A change. Each is one commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    CreateBucket {
        name: String,
        owner: String,
        created: UnixMillis,
    },
    DeleteBucket {
        name: String,
    },
    /// Publishes an object. The bucket is named by id too: a bucket that was deleted and made again is another one.
    PutObject {
        bucket: String,
        bucket_id: u64,
        key: Vec<u8>,
        record: ObjectRecord,
        condition: Condition,
    },
    DeleteObject {
        bucket: String,
        key: Vec<u8>,
        condition: Condition,
    },
    /// Each key by itself; one that does not exist is deleted all the same.
    DeleteObjects {
        bucket: String,
        keys: Vec<Vec<u8>>,
    },
    CreateUpload {
        bucket: String,
        record: UploadRecord,
    },
    /// Adds or replaces a part.
    PutPart {
        bucket: String,
        key: Vec<u8>,
        upload: Uuid,
        part: PartRecord,
    },
    /// Publishes an upload as an object: parts numbered as in `parts` (ascending; a bitmap of part numbers would lose nothing). The gateway has read the
    /// parts, checked sizes and ETags, and computed size, etag and checksums; `digest` is [`parts_digest`] of what it read, so that a part replaced meanwhile is noticed.
    CompleteUpload {
        bucket: String,
        key: Vec<u8>,
        upload: Uuid,
        /// Bit n-1 of byte (n-1)/8 set: part n belongs to the object. The others die.
        numbers: Vec<u8>,
        digest: u64,
        record: ObjectRecord,
        condition: Condition,
    },
    AbortUpload {
        bucket: String,
        key: Vec<u8>,
        upload: Uuid,
    },
    /// Fids of failed PUTs of this session: nothing names them, nothing will. A publish whose answer is not known yet must be
    /// answered first. A fid that a record names stays with the record.
    Dead {
        fids: Vec<Fid>,
    },
    CreateKey(KeyRecord),
    DeleteKey {
        access_key: String,
    },
    EnableKey {
        access_key: String,
        enabled: bool,
    },
    /// Adds a version of the pool if it differs from the newest.
    SetPool {
        targets: Vec<PoolTarget>,
    },
}

/// Outcome of a [`Command`] of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    BucketCreated(BucketRecord),
    /// Published. A repeated Complete gets this again.
    Published {
        etag: String,
    },
    /// Whether it existed.
    Deleted(Vec<bool>),
    PoolSet {
        version: u32,
    },
    Done,
}

/// Why the catalogue refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum CasError {
    #[error("this replica does not lead; {hint:?} may")]
    NotLeader { hint: Option<String> },
    #[error("bucket {0} does not exist")]
    NoSuchBucket(String),
    #[error("the key does not exist")]
    NoSuchKey,
    #[error("upload {0} does not exist")]
    NoSuchUpload(Uuid),
    #[error("a part is missing or was replaced")]
    InvalidPart,
    #[error("bucket {name} exists and belongs to {owner}")]
    BucketExists { name: String, owner: String },
    #[error("bucket {0} is not empty")]
    BucketNotEmpty(String),
    #[error("the condition does not hold")]
    PreconditionFailed,
    #[error("another write of the key was first")]
    Conflict,
    #[error("session {0} is fenced")]
    Fenced(SessionId),
    #[error("session {0} does not exist")]
    NoSession(SessionId),
    #[error("request {0} was acknowledged before")]
    Acknowledged(u64),
    #[error("access key {0} does not exist")]
    NoSuchAccessKey(String),
    #[error("access key {0} exists")]
    AccessKeyExists(String),
    #[error("the record is too large: {0}")]
    TooLarge(String),
    #[error("the catalogue is full")]
    Full,
    #[error("the catalogue's target has failed: {0}")]
    Failed(String),
    #[error("malformed request: {0}")]
    Malformed(String),
    #[error("busy")]
    Busy,
}

/// Opens a session for the named process, and fences the one it had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSession {
    /// The process, as the configuration names it.
    pub process: String,
    /// Drawn at random by the caller for this attempt: a repeat gets the same session.
    pub nonce: u64,
}

/// The answer to [`OpenSession`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOpened {
    pub session: SessionId,
    pub incarnation: u64,
}

/// Ends a session, as a process does that stops: the session is fenced, and no longer asked whether its GETs have
/// ended. All of them must have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseSession {
    /// Who.
    pub session: SessionId,
}

/// Says that the session lives, and up to where its GETs have ended: every GET of its process that still runs looked its
/// object up at `oldest` or later. Sent about once a second, and answered only by a leader. What is said must stay true:
/// a look-up whose answer is still on the way counts with the newest position that was known when it was asked. A session
/// that says nothing holds the collector up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who.
    pub session: SessionId,
    /// Position of the oldest look-up that is still in use or under way; of the newest answer seen when none is (a
    /// heartbeat's own answer counts).
    pub oldest: Position,
}

/// A question to the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask(pub Query);

/// A change to the catalogue, under the session's own numbering.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Who.
    pub session: SessionId,
    /// Number of the request in the session: a repeat gets the first answer.
    pub request: u64,
    /// Every request at or below it has been answered to the session: answers up to here are forgotten, and refused from now on.
    pub acknowledged: u64,
    /// What.
    pub command: Command,
}

macro_rules! requests {
    ($($op:literal $request:ty => $reply:ty;)*) => {
        $(impl Request for $request {
            const OPCODE: u16 = $op;
            type Reply = $reply;
            type Error = CasError;
        })*
    };
}

requests! {
    0x0201 OpenSession => At<SessionOpened>;
    0x0202 Heartbeat => Position;
    0x0203 Ask => At<Answer>;
    0x0204 Commit => At<Outcome>;
    0x0205 CloseSession => Position;
}

/// Digest of parts in order, over (number, etag, size): Complete names what it read by this.
pub fn parts_digest<'a>(parts: impl IntoIterator<Item = (u16, &'a str, u64)>) -> u64 {
    let mut bytes = Vec::new();
    for (number, etag, size) in parts {
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(&(etag.len() as u64).to_le_bytes());
        bytes.extend_from_slice(etag.as_bytes());
    }
    cobalt_base::checksum::xxh3(0, &bytes)
}
