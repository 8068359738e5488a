//! Credentials.

use crate::bucket::check_name;
use crate::draft::{Draft, Stop};
use crate::schema::CREDENTIALS;
use cobalt_rpc::proto::cas::{CasError, Outcome};
use cobalt_rpc::proto::record::KeyRecord;

/// Adds a credential.
pub fn create(draft: &mut Draft<'_>, record: &KeyRecord) -> Result<Outcome, Stop> {
    check_name("an access key", &record.access_key)?;
    check_name("an account", &record.account)?;
    let key = record.access_key.as_bytes().to_vec();
    if draft.get::<KeyRecord>(CREDENTIALS, &key)?.is_some() {
        return Err(CasError::AccessKeyExists(record.access_key.clone()).into());
    }
    draft.put(CREDENTIALS, key, record)?;
    Ok(Outcome::Done)
}

fn find(draft: &Draft<'_>, access_key: &str) -> Result<KeyRecord, Stop> {
    check_name("an access key", access_key)?;
    match draft.get(CREDENTIALS, access_key.as_bytes())? {
        Some(record) => Ok(record),
        None => Err(CasError::NoSuchAccessKey(access_key.to_owned()).into()),
    }
}

/// Removes a credential.
pub fn delete(draft: &mut Draft<'_>, access_key: &str) -> Result<Outcome, Stop> {
    find(draft, access_key)?;
    draft.delete(CREDENTIALS, access_key.as_bytes().to_vec());
    Ok(Outcome::Done)
}

/// Turns a credential on or off.
pub fn enable(draft: &mut Draft<'_>, access_key: &str, enabled: bool) -> Result<Outcome, Stop> {
    let mut record = find(draft, access_key)?;
    record.enabled = enabled;
    draft.put(CREDENTIALS, access_key.as_bytes().to_vec(), &record)?;
    Ok(Outcome::Done)
}
