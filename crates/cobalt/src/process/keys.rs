//! Credentials in the catalogue: made, listed, disabled and forgotten on behalf of the operator, and the process's own
//! put there at its start.

use super::credentials::Credentials;
use super::reactor::Question;
use crate::control::{Key, Response};
use cobalt_base::UnixMillis;
use cobalt_client::{ClientError, Handle};
use cobalt_reactor::mailbox;
use cobalt_rpc::ClusterSecret;
use cobalt_rpc::proto::cas::{Answer, CasError, Command, PAGE_MAX, Query};
use cobalt_rpc::proto::record::KeyRecord;
use futures::channel::oneshot;
use std::time::{SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

/// The account of the process's own credentials, and of new ones unless another is named.
pub const ACCOUNT: &str = "default";
/// Longest name of an account.
const ACCOUNT_LEN_MAX: usize = 64;
/// Most keys of one listing; more would not fit into an answer.
const LISTED_MAX: usize = 10_000;

/// What key commands need.
#[derive(Clone)]
pub struct Keys {
    pub handle: Handle,
    pub questions: mailbox::Sender<Question>,
    pub secret: ClusterSecret,
}

impl Keys {
    /// Puts the process's own credentials into the catalogue, in place of others of that access key.
    ///
    /// # Errors
    /// One sentence.
    pub async fn ensure(&self, own: &Credentials) -> Result<(), ClientError> {
        let access_key = own.access_key.clone();
        match self.handle.ask(Query::Key { access_key: access_key.clone() }).await {
            Ok(Answer::Key(record)) => {
                let stored =
                    cobalt_cas::secrets::open(self.secret.expose(), &access_key, &record.sealed_secret);
                if stored.is_ok_and(|s| *s == *own.secret_key) && record.enabled {
                    return Ok(());
                }
                self.handle.commit(Command::DeleteKey { access_key }).await?;
            }
            Ok(_) | Err(ClientError::Cas(CasError::NoSuchAccessKey(_))) => {}
            Err(e) => return Err(e),
        }
        match self.store(own, ACCOUNT).await {
            // Another gateway with the same credentials was first.
            Err(ClientError::Cas(CasError::AccessKeyExists(_))) | Ok(()) => Ok(()),
            Err(e) => Err(e),
        }
    }

    async fn store(&self, credentials: &Credentials, account: &str) -> Result<(), ClientError> {
        let (slot, sealed) = oneshot::channel();
        let question = Question::Seal {
            access_key: credentials.access_key.clone(),
            secret: credentials.secret_key.clone(),
            sealed: slot,
        };
        self.questions.send(question).await.map_err(|_| ClientError::Closed)?;
        let sealed = sealed.await.map_err(|_| ClientError::Closed)?;
        let sealed_secret = sealed.map_err(|what| ClientError::Damaged { what })?;
        let record = KeyRecord {
            access_key: credentials.access_key.clone(),
            sealed_secret,
            account: account.to_owned(),
            created: now(),
            enabled: true,
        };
        self.handle.commit(Command::CreateKey(record)).await.map(drop)
    }

    /// Makes a new credential.
    pub async fn create(&self, account: &str, s3: Option<String>, region: String) -> Response {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
        if account.is_empty() || account.len() > ACCOUNT_LEN_MAX || !account.chars().all(plain) {
            return Response::Refused {
                error: format!("`{account}` cannot be the name of an account"),
                hint: Some("use letters, digits, - _ . and @, at most 64".into()),
            };
        }
        let made = match Credentials::generate() {
            Ok(made) => made,
            Err(failure) => return Response::Refused { error: failure.error, hint: failure.hint },
        };
        match self.store(&made, account).await {
            Ok(()) => Response::KeyCreated {
                access_key: made.access_key,
                secret_key: Zeroizing::clone(&made.secret_key).to_string(),
                s3,
                region,
            },
            Err(e) => refused(&e),
        }
    }

    /// All credentials, without their secrets.
    pub async fn list(&self) -> Response {
        let mut keys = Vec::new();
        let mut after = String::new();
        loop {
            let page = match self.handle.ask(Query::Keys { after: after.clone(), limit: PAGE_MAX }).await {
                Ok(Answer::Keys(page)) => page,
                Ok(_) => {
                    return Response::Refused {
                        error: "the catalogue answered something else".into(),
                        hint: None,
                    };
                }
                Err(e) => return refused(&e),
            };
            let more = page.more && keys.len() < LISTED_MAX;
            for record in page.rows {
                after.clone_from(&record.access_key);
                keys.push(Key {
                    access_key: record.access_key,
                    account: record.account,
                    enabled: record.enabled,
                    created: record.created.0,
                });
            }
            if !more {
                return Response::Keys { keys };
            }
        }
    }

    /// Changes a credential.
    pub async fn change(&self, command: Command) -> Response {
        match self.handle.commit(command).await {
            Ok(_) => Response::Done,
            Err(e) => refused(&e),
        }
    }
}

fn refused(error: &ClientError) -> Response {
    let hint = match error {
        ClientError::Unavailable { .. } | ClientError::Deadline { .. } => {
            Some("`cobalt status` says what is down")
        }
        ClientError::Cas(CasError::NoSuchAccessKey(_)) => Some("`cobalt key list` shows those that exist"),
        _ => None,
    };
    Response::Refused { error: error.to_string(), hint: hint.map(Into::into) }
}

fn now() -> UnixMillis {
    #[expect(clippy::disallowed_methods, reason = "above the gateway, and for people only")]
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
