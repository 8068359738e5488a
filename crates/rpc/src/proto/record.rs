//! The records of the catalogue, as the client and the gateway see them.

use cobalt_base::{Fid, UnixMillis};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How an object's bytes lie on targets: N data and K parity units per group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// N.
    pub data_units: u8,
    /// K.
    pub parity_units: u8,
    /// Bytes per unit.
    pub unit_size: u32,
    /// Version of the pool map that placed it.
    pub pool: u32,
}

/// A run of bytes stored under one fid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub fid: Fid,
    pub size: u64,
    pub layout: Layout,
}

/// Where an object's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// No byte, no cob.
    Empty,
    /// Written by one PUT.
    Single(Extent),
    /// Assembled from parts, which stay records of their own under the upload id.
    Parts {
        /// The completed upload.
        upload: Uuid,
        /// Number of parts.
        count: u32,
    },
}

/// Checksum algorithms of S3 that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ChecksumAlgorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

/// A stored checksum of a whole object or part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum {
    /// Which.
    pub algorithm: ChecksumAlgorithm,
    /// Base64, as S3 shows it; `-N` behind it for a composite of N parts.
    pub value: String,
    /// Whether it is a checksum of the parts' checksums.
    pub composite: bool,
}

/// What a client said about an object. All header values as received; names of user metadata without `x-amz-meta-`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectMeta {
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    pub content_language: Option<String>,
    pub content_disposition: Option<String>,
    pub cache_control: Option<String>,
    pub expires: Option<String>,
    pub user: Vec<(String, String)>,
}

/// An object as it is stored under its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// Size in bytes.
    pub size: u64,
    /// When it was published; for people.
    pub modified: UnixMillis,
    /// Without quotes.
    pub etag: String,
    /// Where the bytes are.
    pub body: Body,
    /// What the client said about it.
    pub meta: ObjectMeta,
    /// Of the whole object.
    pub checksums: Vec<Checksum>,
}

/// One part of an upload or of an object that was made of parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRecord {
    /// 1 to 10,000.
    pub number: u16,
    pub size: u64,
    pub modified: UnixMillis,
    pub etag: String,
    pub body: Body,
    pub checksums: Vec<Checksum>,
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketRecord {
    /// Never used twice: objects hang on the id, not on the name.
    pub id: u64,
    pub name: String,
    pub owner: String,
    pub created: UnixMillis,
}

/// A multipart upload that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadRecord {
    pub upload: Uuid,
    pub key: Vec<u8>,
    pub initiated: UnixMillis,
    pub meta: ObjectMeta,
    /// The algorithm that the client chose at creation, and whether the object's checksum is to be a composite.
    pub checksum: Option<(ChecksumAlgorithm, bool)>,
}

/// An S3 credential. The secret is sealed under the cluster secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    pub access_key: String,
    pub sealed_secret: Vec<u8>,
    /// The account: owner of what it creates.
    pub account: String,
    pub created: UnixMillis,
    pub enabled: bool,
}

/// One target of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolTarget {
    pub target: Uuid,
    pub name: String,
    /// The process that serves it.
    pub process: String,
}

/// A version of the pool: what layouts are placed over. The order counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolMap {
    pub version: u32,
    pub targets: Vec<PoolTarget>,
}
