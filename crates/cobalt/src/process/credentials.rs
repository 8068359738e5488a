//! The credentials that a process is started with: from the environment, or for `dev` generated once into the
//! data directory. They are not in the catalogue; `key create` makes those that are.

use super::identity::write_durably;
use crate::cli::{Code, Failure};
use std::path::Path;
use zeroize::Zeroizing;

const ACCESS: &str = "COBALT_ACCESS_KEY";
const SECRET: &str = "COBALT_SECRET_KEY";
/// Shortest and longest access key.
const ACCESS_LEN: std::ops::RangeInclusive<usize> = 3..=128;
/// Shortest and longest secret key.
const SECRET_LEN: std::ops::RangeInclusive<usize> = 8..=128;
/// Characters of keys that are made here: 32 and 64 of them, so that each is as likely.
const ACCESS_ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const SECRET_ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// An access key and its secret.
#[derive(Clone)]
pub struct Credentials {
    pub access_key: String,
    pub secret_key: Zeroizing<String>,
}

impl Credentials {
    /// Those of the environment; `None` when it has neither.
    ///
    /// # Errors
    /// Exit code 2 when only one is set or one is unusable.
    pub fn from_env() -> Result<Option<Credentials>, Failure> {
        let get = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
        match (get(ACCESS), get(SECRET)) {
            (None, None) => Ok(None),
            (Some(access_key), Some(secret)) => {
                Credentials { access_key, secret_key: Zeroizing::new(secret) }
                    .checked("the environment")
                    .map(Some)
            }
            _ => Err(Failure::new(format!("only one of {ACCESS} and {SECRET} is set"))
                .hint("set both, or none")
                .code(Code::Usage)),
        }
    }

    fn checked(self, place: &str) -> Result<Credentials, Failure> {
        let plain = |s: &str| s.bytes().all(|b| b.is_ascii_graphic());
        let slash = self.access_key.contains(['/', ',']);
        if !ACCESS_LEN.contains(&self.access_key.len()) || !plain(&self.access_key) || slash {
            return Err(Failure::new(format!("{ACCESS} of {place} cannot be used"))
                .hint("3 to 128 visible ASCII characters without / and ,")
                .code(Code::Usage));
        }
        if !SECRET_LEN.contains(&self.secret_key.len()) || !plain(&self.secret_key) {
            return Err(Failure::new(format!("{SECRET} of {place} cannot be used"))
                .hint("8 to 128 visible ASCII characters")
                .code(Code::Usage));
        }
        Ok(self)
    }

    /// New random ones.
    ///
    /// # Errors
    /// Without randomness.
    pub fn generate() -> Result<Credentials, Failure> {
        Ok(Credentials {
            access_key: format!("CB{}", random_text(ACCESS_ALPHABET, 18)?.as_str()),
            secret_key: random_text(SECRET_ALPHABET, 40)?,
        })
    }

    /// Reads `path`, or makes it with mode 0600.
    ///
    /// # Errors
    /// When the file cannot be read, written or understood.
    pub fn load_or_generate(path: &Path) -> Result<Credentials, Failure> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => Zeroizing::new(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Credentials::make(path),
            Err(e) => return Err(Failure::new(format!("cannot read {}", path.display())).cause(e)),
        };
        let get = |name: &str| {
            let mut pairs = text.lines().filter_map(|l| l.trim().split_once('='));
            pairs.find(|(n, _)| *n == name).map(|(_, v)| v.to_owned())
        };
        match (get(ACCESS), get(SECRET)) {
            (Some(access_key), Some(secret)) => {
                Credentials { access_key, secret_key: Zeroizing::new(secret) }
                    .checked(&path.display().to_string())
            }
            _ => Err(Failure::new(format!("{} has no credentials in it", path.display()))
                .hint(format!("it holds {ACCESS}=… and {SECRET}=…; remove it to have new ones made"))),
        }
    }

    fn make(path: &Path) -> Result<Credentials, Failure> {
        let made = Credentials::generate()?;
        let text = format!("{ACCESS}={}\n{SECRET}={}\n", made.access_key, made.secret_key.as_str());
        write_durably(path, Zeroizing::new(text).as_bytes(), 0o600)
            .map_err(|e| Failure::new(format!("cannot write {}", path.display())).cause(e))?;
        Ok(made)
    }
}

/// `len` characters of `alphabet`.
fn random_text(alphabet: &[u8], len: usize) -> Result<Zeroizing<String>, Failure> {
    assert!(256 % alphabet.len() == 0, "every character is as likely");
    let mut bytes = Zeroizing::new(vec![0; len]);
    getrandom::fill(&mut bytes)
        .map_err(|e| Failure::new("no randomness can be had from the system").cause(e))?;
    Ok(Zeroizing::new(bytes.iter().map(|b| char::from(alphabet[usize::from(*b) % alphabet.len()])).collect()))
}

#[cfg(test)]
mod tests {
    use super::Credentials;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn generated_credentials_are_private_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        let first = Credentials::load_or_generate(&path).ok().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Credentials::load_or_generate(&path).ok().unwrap();
        assert_eq!((first.access_key, first.secret_key), (again.access_key, again.secret_key));
        std::fs::write(&path, "COBALT_ACCESS_KEY=abc\n").unwrap();
        assert!(Credentials::load_or_generate(&path).is_err());
    }
}
