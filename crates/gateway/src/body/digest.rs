//! Digests of a body: MD5 for the ETag, one S3 checksum, and SHA-256 where the signature covers it. One pass over the bytes.

use super::md5::Md5;
use super::{BodyError, Hasher};
use base64::{Engine, engine::general_purpose::STANDARD};
use cobalt_dma::Buf;
use cobalt_rpc::proto::record::{Checksum, ChecksumAlgorithm};
use crc_fast::CrcAlgorithm;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// S3's checksum algorithms.
pub type Algorithm = ChecksumAlgorithm;

/// A checksum that a client gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Which.
    pub algorithm: Algorithm,
    /// Its bytes.
    pub value: Vec<u8>,
}

impl Expected {
    /// From the base64 of a header or trailer; its length must be the algorithm's.
    pub fn parse(algorithm: Algorithm, text: &str) -> Option<Expected> {
        let value = STANDARD.decode(text).ok().filter(|bytes| bytes.len() == width(algorithm))?;
        Some(Expected { algorithm, value })
    }
}

/// Bytes of a checksum.
fn width(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::Crc32 | Algorithm::Crc32c => 4,
        Algorithm::Crc64Nvme => 8,
        Algorithm::Sha1 => 20,
        Algorithm::Sha256 => 32,
    }
}

/// The end of the names of headers: `x-amz-checksum-` and this.
pub fn suffix(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Crc32 => "crc32",
        Algorithm::Crc32c => "crc32c",
        Algorithm::Crc64Nvme => "crc64nvme",
        Algorithm::Sha1 => "sha1",
        Algorithm::Sha256 => "sha256",
    }
}

/// The algorithm of a header's end, in lower case.
pub fn from_suffix(name: &str) -> Option<Algorithm> {
    let all = [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme, Algorithm::Sha1, Algorithm::Sha256];
    all.into_iter().find(|algorithm| suffix(*algorithm) == name)
}

enum Running {
    Crc(crc_fast::Digest),
    Sha1(Sha1),
    /// Shared with the signature's digest.
    Sha256,
}

/// Digests under way.
pub struct Digests {
    md5: Md5,
    algorithm: Algorithm,
    running: Running,
    sha256: Option<Sha256>,
}

/// Digests of a whole body.
#[derive(Clone, Debug)]
pub struct Digested {
    /// For the ETag.
    pub md5: [u8; 16],
    /// Of the algorithm asked for.
    pub checksum: Expected,
    sha256: Option<[u8; 32]>,
}

fn crc(algorithm: Algorithm) -> Option<CrcAlgorithm> {
    match algorithm {
        Algorithm::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
        Algorithm::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
        Algorithm::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
        Algorithm::Sha1 | Algorithm::Sha256 => None,
    }
}

impl Digests {
    /// Digests for a body; `sha256` where the payload's digest is signed.
    pub fn new(algorithm: Algorithm, sha256: bool) -> Digests {
        let running = match (crc(algorithm), algorithm) {
            (Some(crc), _) => Running::Crc(crc_fast::Digest::new(crc)),
            (None, Algorithm::Sha1) => Running::Sha1(Sha1::new()),
            (None, _) => Running::Sha256,
        };
        let sha256 = (sha256 || algorithm == Algorithm::Sha256).then(Sha256::new);
        Digests { md5: Md5::default(), algorithm, running, sha256 }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        self.update_checksums(bytes);
    }

    /// Adds bytes to all but the MD5; [`Digests::update_md5`] follows with the buffer that they went to.
    pub fn update_checksums(&mut self, bytes: &[u8]) {
        match &mut self.running {
            Running::Crc(digest) => digest.update(bytes),
            Running::Sha1(digest) => digest.update(bytes),
            Running::Sha256 => {}
        }
        if let Some(digest) = &mut self.sha256 {
            digest.update(bytes);
        }
    }

    /// Adds the buffer's bytes to the MD5, beside those of other bodies.
    ///
    /// # Errors
    /// `Gone` when the process ends.
    pub async fn update_md5(&mut self, hasher: &Hasher, buf: Buf) -> Result<Buf, BodyError> {
        let (md5, buf) = hasher.add(std::mem::take(&mut self.md5), buf).await.ok_or(BodyError::Gone)?;
        self.md5 = md5;
        Ok(buf)
    }

    /// Ends.
    pub fn finish(self) -> Digested {
        let sha256: Option<[u8; 32]> = self.sha256.map(|digest| digest.finalize().into());
        let value = match self.running {
            Running::Crc(digest) => crc_bytes(self.algorithm, digest.finalize()),
            Running::Sha1(digest) => digest.finalize().to_vec(),
            Running::Sha256 => sha256.map(|digest| digest.to_vec()).unwrap_or_default(),
        };
        let checksum = Expected { algorithm: self.algorithm, value };
        Digested { md5: self.md5.finish(), checksum, sha256 }
    }
}

fn crc_bytes(algorithm: Algorithm, value: u64) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    bytes[bytes.len() - width(algorithm).min(8)..].to_vec()
}

impl Digested {
    /// MD5 in hexadecimal digits.
    pub fn etag(&self) -> String {
        hex::encode(self.md5)
    }

    /// The checksum as it is stored.
    pub fn record(&self) -> Checksum {
        Checksum {
            algorithm: self.checksum.algorithm,
            value: STANDARD.encode(&self.checksum.value),
            composite: false,
        }
    }

    /// Holds the digests against what the client declared.
    ///
    /// # Errors
    /// The first that differs.
    pub fn verify(
        &self,
        declared: &crate::guard::Declared,
        trailer: Option<&Expected>,
    ) -> Result<(), BodyError> {
        if declared.sha256.is_some() && declared.sha256 != self.sha256 {
            return Err(BodyError::Sha256);
        }
        if declared.md5.is_some_and(|md5| md5 != self.md5) {
            return Err(BodyError::Md5);
        }
        for expected in declared.checksum.iter().chain(trailer) {
            if *expected != self.checksum {
                return Err(BodyError::Checksum(suffix(expected.algorithm)));
            }
        }
        Ok(())
    }
}

/// Checksum of the parts' checksums, as S3 shows it: with the number of parts.
pub fn composite(algorithm: Algorithm, parts: &[Vec<u8>]) -> Checksum {
    let mut digests = Digests::new(algorithm, false);
    parts.iter().for_each(|part| digests.update(part));
    let value = STANDARD.encode(digests.finish().checksum.value);
    Checksum { algorithm, value: format!("{value}-{}", parts.len()), composite: true }
}

/// CRC of the whole object from the CRCs and sizes of its parts; none for the SHAs, which do not combine.
pub fn combine_full(algorithm: Algorithm, parts: &[(Vec<u8>, u64)]) -> Option<Checksum> {
    let crc = crc(algorithm)?;
    let number = |bytes: &[u8]| bytes.iter().fold(0u64, |sum, b| sum << 8 | u64::from(*b));
    let mut parts = parts.iter();
    let mut sum = number(&parts.next()?.0);
    for (value, size) in parts {
        sum = crc_fast::checksum_combine(crc, sum, number(value), *size);
    }
    let value = STANDARD.encode(crc_bytes(algorithm, sum));
    Some(Checksum { algorithm, value, composite: false })
}

#[cfg(test)]
mod tests {
    use super::{Algorithm, Digests, combine_full, composite};

    fn digest(algorithm: Algorithm, bytes: &[u8]) -> super::Digested {
        let mut digests = Digests::new(algorithm, false);
        digests.update(bytes);
        digests.finish()
    }

    #[test]
    fn the_check_values_of_the_catalogues_come_out() {
        let check = b"123456789";
        let of = |algorithm| hex::encode(digest(algorithm, check).checksum.value);
        assert_eq!(of(Algorithm::Crc32), "cbf43926");
        assert_eq!(of(Algorithm::Crc32c), "e3069283");
        assert_eq!(of(Algorithm::Crc64Nvme), "ae8b14860a799888");
        assert_eq!(of(Algorithm::Sha1), "f7c3bc1d808e04732adf679965ccc34ca7ae3441");
        assert_eq!(digest(Algorithm::Sha256, b"").checksum.value.len(), 32);
        assert_eq!(digest(Algorithm::Crc32, b"").etag(), "d41d8cd98f00b204e9800998ecf8427e");
    }

    #[test]
    fn parts_combine_to_the_whole() {
        for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
            let parts =
                [&b"1234"[..], b"", b"56789"].map(|p| (digest(algorithm, p).checksum.value, p.len() as u64));
            let whole = digest(algorithm, b"123456789").record();
            assert_eq!(combine_full(algorithm, &parts), Some(whole));
        }
        assert_eq!(combine_full(Algorithm::Sha1, &[(vec![0; 20], 1)]), None);
        let parts = [digest(Algorithm::Sha256, b"a").checksum.value];
        assert!(composite(Algorithm::Sha256, &parts).value.ends_with("-1"));
    }
}
