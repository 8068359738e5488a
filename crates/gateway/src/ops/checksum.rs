//! Checksums in s3s's answers, which have one field for each algorithm.

use crate::body::Algorithm;
use cobalt_rpc::proto::record::Checksum;
use s3s::dto;

/// Fields of an answer.
#[derive(Default)]
pub struct Fields {
    pub crc32: Option<String>,
    pub crc32c: Option<String>,
    pub crc64nvme: Option<String>,
    pub sha1: Option<String>,
    pub sha256: Option<String>,
    pub kind: Option<dto::ChecksumType>,
}

impl Fields {
    /// Of stored checksums.
    pub fn new(checksums: &[Checksum]) -> Fields {
        let mut fields = Fields::default();
        for checksum in checksums {
            *fields.place(checksum.algorithm) = Some(checksum.value.clone());
            fields.kind = Some(kind(checksum.composite));
        }
        fields
    }

    fn place(&mut self, algorithm: Algorithm) -> &mut Option<String> {
        match algorithm {
            Algorithm::Crc32 => &mut self.crc32,
            Algorithm::Crc32c => &mut self.crc32c,
            Algorithm::Crc64Nvme => &mut self.crc64nvme,
            Algorithm::Sha1 => &mut self.sha1,
            Algorithm::Sha256 => &mut self.sha256,
        }
    }

    /// Those that are there.
    pub fn given(&self) -> impl Iterator<Item = (Algorithm, &str)> {
        [
            (Algorithm::Crc32, &self.crc32),
            (Algorithm::Crc32c, &self.crc32c),
            (Algorithm::Crc64Nvme, &self.crc64nvme),
            (Algorithm::Sha1, &self.sha1),
            (Algorithm::Sha256, &self.sha256),
        ]
        .into_iter()
        .filter_map(|(algorithm, value)| Some((algorithm, value.as_deref()?)))
    }
}

/// How S3 calls it.
pub fn kind(composite: bool) -> dto::ChecksumType {
    dto::ChecksumType::from_static(if composite { "COMPOSITE" } else { "FULL_OBJECT" })
}

/// How S3 calls an algorithm.
pub fn name(algorithm: Algorithm) -> dto::ChecksumAlgorithm {
    dto::ChecksumAlgorithm::from(crate::body::suffix(algorithm).to_ascii_uppercase())
}

/// Moves [`Fields`] into an answer that has them all.
macro_rules! checksummed {
    ($output:expr, $fields:expr) => {{
        let (mut output, fields) = ($output, $fields);
        output.checksum_crc32 = fields.crc32;
        output.checksum_crc32c = fields.crc32c;
        output.checksum_crc64nvme = fields.crc64nvme;
        output.checksum_sha1 = fields.sha1;
        output.checksum_sha256 = fields.sha256;
        output
    }};
}
pub(crate) use checksummed;
