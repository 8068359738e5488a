//! Access keys: looked up in the catalogue, unsealed by the binary's closure, believed for a second.

use crate::error::s3;
use crate::limits::Limits;
use crate::storage::Storage;
use cobalt_client::ClientError;
use cobalt_rpc::proto::cas::{Answer, CasError, Query};
use cobalt_rpc::proto::record::KeyRecord;
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Error, S3ErrorCode, S3Result};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::time::Instant;
use zeroize::Zeroizing;

/// A secret in the clear. It wipes itself, and is never shown.
#[derive(Clone)]
pub struct SecretString(Zeroizing<String>);

impl SecretString {
    /// Takes a secret.
    pub fn new(secret: String) -> SecretString {
        SecretString(Zeroizing::new(secret))
    }
    /// The secret, for those who sign with it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretString")
    }
}

/// Opens the sealed secret of a record; none when it was sealed by another cluster.
pub type Unseal = Arc<dyn Fn(&KeyRecord) -> Option<SecretString> + Send + Sync>;

#[derive(Clone)]
struct Known {
    secret: SecretString,
    account: String,
}

struct Entry {
    at: Instant,
    /// None: there is no such key, or it is disabled.
    known: Option<Known>,
}

/// The keys that were looked up lately.
pub struct Keys<S> {
    storage: S,
    unseal: Unseal,
    limits: Limits,
    entries: Mutex<HashMap<String, Entry>>,
}

impl<S: Storage> Keys<S> {
    pub(crate) fn new(storage: S, unseal: Unseal, limits: Limits) -> Arc<Keys<S>> {
        Arc::new(Keys { storage, unseal, limits, entries: Mutex::new(HashMap::new()) })
    }

    /// The account of a key.
    ///
    /// # Errors
    /// `InvalidAccessKeyId` when there is none, or it is disabled.
    pub async fn account(&self, access_key: &str) -> S3Result<String> {
        Ok(self.find(access_key).await?.account)
    }

    async fn find(&self, access_key: &str) -> S3Result<Known> {
        let unknown = || {
            let message = "The access key does not exist, or is disabled.";
            S3Error::with_message(S3ErrorCode::InvalidAccessKeyId, message)
        };
        if let Some(entry) = self.entries.lock().await.get(access_key)
            && entry.at.elapsed() < self.limits.key_time
        {
            return entry.known.clone().ok_or_else(unknown);
        }
        let query = Query::Key { access_key: access_key.to_owned() };
        let known = match self.storage.ask(query.clone()).await {
            Ok(Answer::Key(record)) if record.enabled => {
                (self.unseal)(&record).map(|secret| Known { secret, account: record.account })
            }
            Ok(Answer::Key(_)) | Err(ClientError::Cas(CasError::NoSuchAccessKey(_))) => None,
            Ok(_) => return Err(crate::error::mismatched(&query)),
            Err(error) => return Err(s3(error)),
        };
        let mut entries = self.entries.lock().await;
        if entries.len() >= self.limits.keys {
            entries.clear();
        }
        entries.insert(access_key.to_owned(), Entry { at: Instant::now(), known: known.clone() });
        known.ok_or_else(unknown)
    }
}

/// The face that s3s asks for secrets.
pub(crate) struct Auth<S>(pub Arc<Keys<S>>);

#[async_trait::async_trait]
impl<S: Storage> S3Auth for Auth<S> {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        Ok(SecretKey::from(self.0.find(access_key).await?.secret.expose()))
    }
}
