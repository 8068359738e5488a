//! aws-chunked: undone as it passes, nothing held but a line. Every chunk has a bound, the final chunk must be there,
//! the lengths must sum up, signatures are compared in constant time, and the trailers are exactly those announced.

use super::{Algorithm, Expected, suffix};
use crate::limits::{CHUNK_LINE_MAX, TRAILERS_MAX};
use hmac::{Hmac, Mac};
use hyper::body::Bytes;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Why a chunked body is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a chunk's first line is malformed")]
    Line,
    #[error("a chunk is larger than is allowed")]
    ChunkTooLarge,
    #[error("a chunk does not end where it says")]
    ChunkEnd,
    #[error("the chunks have more bytes than x-amz-decoded-content-length says")]
    TooLong,
    #[error("the chunks have fewer bytes than x-amz-decoded-content-length says")]
    TooShort,
    #[error("the final chunk is missing")]
    Unfinished,
    #[error("the trailers are malformed")]
    Trailers,
    #[error("the trailers are not those that x-amz-trailer names")]
    OtherTrailers,
    #[error("the signature of a chunk or of the trailers does not match")]
    Signature,
}

/// Signs chunks in their chain, which begins with the signature of the head.
pub struct ChunkSigner {
    key: Hmac<Sha256>,
    /// `DATE\nSCOPE\n`
    middle: String,
    previous: String,
}

impl ChunkSigner {
    /// The chain of a request: its secret, `x-amz-date`, region and signature.
    pub fn new(secret: &str, date: &str, region: &str, seed: &str) -> ChunkSigner {
        let day = date.get(..8).unwrap_or(date);
        let mut key = mac(format!("AWS4{secret}").as_bytes(), day.as_bytes());
        for step in [region, "s3", "aws4_request"] {
            key = mac(&key, step.as_bytes());
        }
        let key = Hmac::new_from_slice(&key).expect("HMAC takes keys of any length");
        ChunkSigner {
            key,
            middle: format!("{date}\n{day}/{region}/s3/aws4_request\n"),
            previous: seed.to_owned(),
        }
    }

    /// The same chain, at the same place.
    #[cfg(test)]
    pub(crate) fn again(&self) -> ChunkSigner {
        ChunkSigner { key: self.key.clone(), middle: self.middle.clone(), previous: self.previous.clone() }
    }

    fn sign(&self, kind: &str, rest: &str) -> String {
        let mut key = self.key.clone();
        key.update(format!("{kind}\n{}{}\n{rest}", self.middle, self.previous).as_bytes());
        hex::encode(key.finalize().into_bytes())
    }

    /// The signature of the next chunk with data of this digest.
    pub fn chunk(&mut self, digest: &[u8]) -> String {
        let rest = format!("{}\n{}", hex::encode(Sha256::digest([])), hex::encode(digest));
        self.previous = self.sign("AWS4-HMAC-SHA256-PAYLOAD", &rest);
        self.previous.clone()
    }

    /// The signature of the trailers in canonical form.
    pub fn trailer(&self, canonical: &str) -> String {
        self.sign("AWS4-HMAC-SHA256-TRAILER", &hex::encode(Sha256::digest(canonical)))
    }
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

fn same(ours: &str, theirs: &[u8]) -> bool {
    ours.as_bytes().ct_eq(theirs).into()
}

enum State {
    Line,
    Data,
    /// The line break behind a chunk's data; bytes of it seen.
    Break(usize),
    Trailers,
}

/// Undoes the chunks of one body.
pub struct Decoder {
    signer: Option<ChunkSigner>,
    trailer: Option<Algorithm>,
    chunk_max: u64,
    state: State,
    /// A line or the trailers, as far as they have come.
    line: Vec<u8>,
    chunk_left: u64,
    left: u64,
    digest: Sha256,
    signature: Vec<u8>,
}

impl Decoder {
    /// For a body of `length` bytes once undone.
    pub fn new(
        length: u64,
        chunk_max: u64,
        signer: Option<ChunkSigner>,
        trailer: Option<Algorithm>,
    ) -> Decoder {
        Decoder {
            signer,
            trailer,
            chunk_max,
            state: State::Line,
            line: Vec::new(),
            chunk_left: 0,
            left: length,
            digest: Sha256::new(),
            signature: Vec::new(),
        }
    }

    /// Takes from `input` up to and including the next piece of data. None when `input` is used up.
    ///
    /// # Errors
    /// At the first byte that has no place.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, FrameError> {
        while !input.is_empty() {
            match self.state {
                State::Line => {
                    if self.take_line(input)? {
                        self.begin()?;
                    }
                }
                State::Data => {
                    let len = usize::try_from(self.chunk_left).unwrap_or(usize::MAX).min(input.len());
                    let data = input.split_to(len);
                    self.chunk_left -= len as u64;
                    if self.signer.is_some() {
                        self.digest.update(&data);
                    }
                    if self.chunk_left == 0 {
                        self.verify()?;
                        self.state = State::Break(0);
                    }
                    return Ok(Some(data));
                }
                State::Break(seen) => {
                    if input.split_to(1)[0] != b"\r\n"[seen] {
                        return Err(FrameError::ChunkEnd);
                    }
                    self.state = if seen == 0 { State::Break(1) } else { State::Line };
                }
                State::Trailers => {
                    let part = input.split_to(input.len());
                    if self.line.len() + part.len() > TRAILERS_MAX {
                        return Err(FrameError::Trailers);
                    }
                    self.line.extend_from_slice(&part);
                }
            }
        }
        Ok(None)
    }

    /// Collects a chunk's first line; true when it is whole.
    fn take_line(&mut self, input: &mut Bytes) -> Result<bool, FrameError> {
        let end = input.iter().position(|b| *b == b'\n');
        let part = input.split_to(end.map_or(input.len(), |at| at + 1));
        if self.line.len() + part.len() > CHUNK_LINE_MAX {
            return Err(FrameError::Line);
        }
        self.line.extend_from_slice(&part);
        Ok(end.is_some())
    }

    fn begin(&mut self) -> Result<(), FrameError> {
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\r\n").ok_or(FrameError::Line)?;
        let line = std::str::from_utf8(line).map_err(|_| FrameError::Line)?;
        let (size, extension) = match line.split_once(';') {
            Some((size, extension)) => (size, Some(extension)),
            None => (line, None),
        };
        let digits = (1..=16).contains(&size.len()) && size.bytes().all(|b| b.is_ascii_hexdigit());
        let size = u64::from_str_radix(size, 16).ok().filter(|_| digits).ok_or(FrameError::Line)?;
        let signature = extension.map(|text| text.strip_prefix("chunk-signature=").ok_or(FrameError::Line));
        let signature = signature.transpose()?;
        match (&self.signer, signature) {
            (Some(_), Some(signature)) => self.signature = signature.as_bytes().to_vec(),
            (None, None) => {}
            _ => return Err(FrameError::Line),
        }
        if size > self.chunk_max {
            return Err(FrameError::ChunkTooLarge);
        }
        self.left = self.left.checked_sub(size).ok_or(FrameError::TooLong)?;
        self.chunk_left = size;
        self.state = State::Data;
        if size == 0 {
            self.verify()?;
            self.state = State::Trailers;
        }
        Ok(())
    }

    fn verify(&mut self) -> Result<(), FrameError> {
        let digest = std::mem::take(&mut self.digest);
        let Some(signer) = &mut self.signer else { return Ok(()) };
        let ours = signer.chunk(&digest.finalize());
        if same(&ours, &self.signature) { Ok(()) } else { Err(FrameError::Signature) }
    }

    /// The body is at its end: whether it may be, and the checksum among its trailers.
    ///
    /// # Errors
    /// What is missing or too much.
    pub fn finish(self) -> Result<Option<Expected>, FrameError> {
        if !matches!(self.state, State::Trailers) {
            return Err(FrameError::Unfinished);
        }
        if self.left != 0 {
            return Err(FrameError::TooShort);
        }
        let text = std::str::from_utf8(&self.line).map_err(|_| FrameError::Trailers)?;
        let mut fields = Vec::new();
        for line in text.split('\n').map(|line| line.trim_end_matches('\r')).filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').ok_or(FrameError::Trailers)?;
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
        let signatures =
            fields.extract_if(.., |(name, _)| name == "x-amz-trailer-signature").collect::<Vec<_>>();
        let Some(algorithm) = self.trailer else {
            let none = fields.is_empty() && signatures.is_empty();
            return if none { Ok(None) } else { Err(FrameError::OtherTrailers) };
        };
        let [(name, value)] = &fields[..] else { return Err(FrameError::OtherTrailers) };
        if name.strip_prefix("x-amz-checksum-") != Some(suffix(algorithm)) {
            return Err(FrameError::OtherTrailers);
        }
        match (&self.signer, &signatures[..]) {
            (Some(signer), [(_, theirs)]) => {
                let ours = signer.trailer(&format!("{name}:{value}\n"));
                if !same(&ours, theirs.as_bytes()) {
                    return Err(FrameError::Signature);
                }
            }
            (None, []) => {}
            _ => return Err(FrameError::OtherTrailers),
        }
        Expected::parse(algorithm, value).map(Some).ok_or(FrameError::Trailers)
    }
}

#[cfg(test)]
mod tests {
    use super::{Algorithm, ChunkSigner, Decoder, Expected, FrameError};
    use hyper::body::Bytes;
    use proptest::prelude::{ProptestConfig, any, proptest};
    use proptest::{collection::vec, prop_assert, prop_assert_eq};
    use sha2::{Digest, Sha256};

    const CRC: &str = "x-amz-checksum-crc32:AAAAAA==\r\n";

    fn signer() -> ChunkSigner {
        ChunkSigner::new("secret", "20260101T000000Z", "here", &"0".repeat(64))
    }

    fn frame(chunks: &[Vec<u8>], signed: bool, trailer: bool) -> Vec<u8> {
        let mut signer = signer();
        let mut out = Vec::new();
        let mut chunk = |data: &[u8]| {
            let signature = format!(";chunk-signature={}", signer.chunk(&Sha256::digest(data)));
            let line = format!("{:x}{}\r\n", data.len(), if signed { &signature } else { "" });
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(data);
            if !data.is_empty() {
                out.extend_from_slice(b"\r\n");
            }
        };
        chunks.iter().filter(|data| !data.is_empty()).for_each(|data| chunk(data));
        chunk(&[]);
        if trailer {
            out.extend_from_slice(CRC.as_bytes());
            if signed {
                let signature = signer.trailer("x-amz-checksum-crc32:AAAAAA==\n");
                out.extend_from_slice(format!("x-amz-trailer-signature:{signature}\r\n").as_bytes());
            }
        }
        out.extend_from_slice(b"\r\n");
        out
    }

    fn decoder(length: usize, signed: bool, trailer: bool) -> Decoder {
        let trailer = trailer.then_some(Algorithm::Crc32);
        Decoder::new(length as u64, 1 << 20, signed.then(signer), trailer)
    }

    fn run(mut decoder: Decoder, pieces: &[&[u8]]) -> Result<(Vec<u8>, Option<Expected>), FrameError> {
        let mut out = Vec::new();
        for piece in pieces {
            let mut input = Bytes::copy_from_slice(piece);
            while let Some(data) = decoder.next(&mut input)? {
                out.extend_from_slice(&data);
            }
        }
        Ok((out, decoder.finish()?))
    }

    #[test]
    fn a_body_cut_at_every_byte_is_whole_or_refused() {
        for (signed, trailer) in [(false, false), (false, true), (true, false), (true, true)] {
            let chunks = [b"hello".to_vec(), vec![1; 40]];
            let framed = frame(&chunks, signed, trailer);
            for at in 0..=framed.len() {
                let (front, back) = framed.split_at(at);
                let (body, _) = run(decoder(45, signed, trailer), &[front, back]).unwrap();
                assert_eq!(body, chunks.concat());
                // Its beginning alone is refused, until nothing but line breaks is missing.
                let missing = framed.len() - at;
                let alone = run(decoder(45, signed, trailer), &[front]);
                assert!(alone.is_err() || missing <= 4, "{signed} {trailer}: {missing} bytes are missing");
            }
        }
    }

    #[test]
    fn every_byte_of_a_signed_body_counts() {
        let framed = frame(&[b"hello".to_vec(), vec![1; 40]], true, true);
        for at in 0..framed.len() - 4 {
            let mut other = framed.clone();
            other[at] ^= 0x20;
            let same_digit = framed[at].is_ascii_alphabetic() && at < 12;
            let result = run(decoder(45, true, true), &[&other]);
            let name = other[at].eq_ignore_ascii_case(&framed[at]);
            assert!(result.is_err() || same_digit || name, "byte {at} of {}", framed.len());
        }
    }

    #[test]
    fn each_fault_has_its_name() {
        let plain =
            |text: &str, length| run(decoder(length, false, false), &[text.as_bytes()]).map(|(body, _)| body);
        assert_eq!(plain("1\r\nx\r\n0\r\n\r\n", 1), Ok(b"x".to_vec()));
        assert_eq!(plain("0\r\n", 0), Ok(Vec::new()));
        assert_eq!(plain("1\r\nx\r\n", 1), Err(FrameError::Unfinished));
        assert_eq!(plain("1\r\nx\r\n0\r\n\r\n", 2), Err(FrameError::TooShort));
        assert_eq!(plain("2\r\nxx\r\n0\r\n\r\n", 1), Err(FrameError::TooLong));
        assert_eq!(plain("1\r\nxx\r\n0\r\n\r\n", 1), Err(FrameError::ChunkEnd));
        assert_eq!(plain("100001\r\n", 1 << 30), Err(FrameError::ChunkTooLarge));
        for line in
            ["\r\n", "x\r\n", "+1\r\n", "1 \r\n", "1\n", "1;chunk-signature=x\r\n", "11111111111111111\r\n"]
        {
            assert_eq!(plain(line, 1), Err(FrameError::Line), "{line:?}");
        }
        assert_eq!(plain(&"1".repeat(2000), 1), Err(FrameError::Line));
        assert_eq!(plain(&format!("0\r\n{CRC}\r\n"), 0), Err(FrameError::OtherTrailers));
        let trailed = |text: &str| run(decoder(0, false, true), &[text.as_bytes()]).map(drop);
        assert_eq!(trailed(&format!("0\r\n{CRC}\r\n")), Ok(()));
        assert_eq!(trailed("0\r\n\r\n"), Err(FrameError::OtherTrailers));
        assert_eq!(trailed("0\r\nx-amz-checksum-crc32c:AAAAAA==\r\n\r\n"), Err(FrameError::OtherTrailers));
        assert_eq!(trailed(&format!("0\r\n{CRC}{CRC}\r\n")), Err(FrameError::OtherTrailers));
        assert_eq!(trailed("0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n"), Err(FrameError::Trailers));
        assert_eq!(trailed("0\r\nnothing\r\n\r\n"), Err(FrameError::Trailers));
        assert_eq!(trailed(&format!("0\r\n{}", "a:b\r\n".repeat(5000))), Err(FrameError::Trailers));
        let unsigned = run(decoder(0, true, false), &[b"0\r\n\r\n"]).map(drop);
        assert_eq!(unsigned, Err(FrameError::Line), "a signed body has signed chunks");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_was_framed_comes_out(chunks in vec(vec(any::<u8>(), 0..200), 0..6), signed: bool, trailer: bool, cut in 1usize..50) {
            let body = chunks.concat();
            let framed = frame(&chunks, signed, trailer);
            let pieces: Vec<&[u8]> = framed.chunks(cut).collect();
            let (out, sum) = run(decoder(body.len(), signed, trailer), &pieces).unwrap();
            prop_assert_eq!(out, body);
            prop_assert_eq!(sum.is_some(), trailer);
        }
        #[test]
        fn anything_is_refused_or_read_and_never_longer_than_said(bytes in vec(any::<u8>(), 0..300), cut in 1usize..50, length in 0usize..100) {
            let pieces: Vec<&[u8]> = bytes.chunks(cut).collect();
            if let Ok((out, _)) = run(decoder(length, false, false), &pieces) {
                prop_assert!(out.len() == length);
            }
        }
        #[test]
        fn almost_chunks_are_refused_or_read(text in "[0-9a-f;\r\nx]{0,80}", length in 0usize..100) {
            if let Ok((out, _)) = run(decoder(length, false, false), &[text.as_bytes()]) {
                prop_assert!(out.len() == length);
            }
        }
    }
}
