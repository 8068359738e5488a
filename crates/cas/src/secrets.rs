//! Secrets of credentials, sealed under the cluster secret: what lies in the catalogue opens no door by
//! itself. ChaCha20-Poly1305 under a key of its own (HKDF-SHA256, RFC 5869), with the access key as associated
//! data, so that a secret moved to another row does not open.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use cobalt_reactor::Ctx;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

/// First byte of a sealed secret: how it was sealed.
const VERSION: u8 = 1;
const NONCE: usize = 12;
/// Keeps the key apart from every other that is derived from the cluster secret.
const SALT: &[u8] = b"cobalt credentials";
const INFO: &[u8] = b"seal 1";

/// A sealed secret that does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the secret cannot be opened: it was sealed under another cluster secret, for another access key, or was altered"
)]
pub struct SealError;

/// Seals `secret` for `access_key`.
///
/// # Errors
/// [`SealError`] for a secret that is larger than the cipher takes.
pub fn seal(ctx: &Ctx, cluster_secret: &[u8], access_key: &str, secret: &str) -> Result<Vec<u8>, SealError> {
    let mut nonce = [0; NONCE];
    ctx.random_bytes(&mut nonce);
    let payload = Payload { msg: secret.as_bytes(), aad: access_key.as_bytes() };
    let sealed = cipher(cluster_secret).encrypt(Nonce::from_slice(&nonce), payload).map_err(|_| SealError)?;
    Ok([[VERSION].as_slice(), &nonce, &sealed].concat())
}

/// The secret that was sealed for `access_key`.
///
/// # Errors
/// [`SealError`].
pub fn open(cluster_secret: &[u8], access_key: &str, sealed: &[u8]) -> Result<Zeroizing<String>, SealError> {
    let body = sealed.strip_prefix(&[VERSION]).ok_or(SealError)?;
    let (nonce, body) = body.split_first_chunk::<NONCE>().ok_or(SealError)?;
    let payload = Payload { msg: body, aad: access_key.as_bytes() };
    let secret = cipher(cluster_secret).decrypt(Nonce::from_slice(nonce), payload).map_err(|_| SealError)?;
    String::from_utf8(secret).map(Zeroizing::new).map_err(|_| SealError)
}

fn cipher(cluster_secret: &[u8]) -> ChaCha20Poly1305 {
    let extracted = Zeroizing::new(hmac(SALT, &[cluster_secret]));
    let key = Zeroizing::new(hmac(&*extracted, &[INFO, &[1]]));
    ChaCha20Poly1305::new(Key::from_slice(&*key))
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::{SealError, open, seal};
    use cobalt_reactor::Reactor;

    #[test]
    fn a_sealed_secret_opens_only_with_its_key_and_its_name() {
        let ctx = Reactor::new_virtual(1).unwrap().ctx();
        let sealed = seal(&ctx, b"cluster", "AKIA1", "s3cret").unwrap();
        assert_eq!(open(b"cluster", "AKIA1", &sealed).unwrap().as_str(), "s3cret");
        assert_eq!(open(b"another", "AKIA1", &sealed), Err(SealError));
        assert_eq!(open(b"cluster", "AKIA2", &sealed), Err(SealError));
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert_eq!(open(b"cluster", "AKIA1", &altered), Err(SealError), "byte {at}");
            assert_eq!(open(b"cluster", "AKIA1", &sealed[..at]), Err(SealError), "cut at {at}");
        }
        assert!(!sealed.windows(6).any(|window| window == b"s3cret"));
        assert_ne!(seal(&ctx, b"cluster", "AKIA1", "s3cret").unwrap(), sealed, "a nonce is used once");
    }
}
