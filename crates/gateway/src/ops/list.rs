//! ListObjects, v1 and v2. The catalogue finds the rows; here pages are filled, marked and encoded.

use super::{Ops, checksum, etag, owner, text, timestamp};
use crate::error::{mismatched, s3};
use crate::limits::PAGE_MAX;
use crate::refusal::Refusal;
use crate::storage::Storage;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use cobalt_rpc::proto::cas::{Answer, ListRow, Query};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use s3s::dto;
use s3s::{S3Request, S3Response, S3Result};

/// What S3 leaves as it is under encoding-type=url.
const URL: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/').remove(b'*');

/// Rows of one answer.
#[derive(Default)]
struct Rows {
    rows: Vec<ListRow>,
    more: bool,
}

impl Rows {
    /// Where the next page begins: behind this row, or behind everything that this prefix stands for.
    fn last(&self) -> Option<&[u8]> {
        match self.rows.last()? {
            ListRow::Object { key, .. } => Some(key),
            ListRow::Prefix(prefix) => Some(prefix),
        }
    }
}

/// How names are shown.
#[derive(Clone, Copy)]
pub(super) struct Names {
    url: bool,
}

impl Names {
    /// By the request's encoding-type.
    ///
    /// # Errors
    /// 400 for any but `url`.
    pub(super) fn new(encoding: Option<&dto::EncodingType>) -> Result<Names, Refusal> {
        match encoding.map(dto::EncodingType::as_str) {
            None | Some("") => Ok(Names { url: false }),
            Some("url") => Ok(Names { url: true }),
            Some(_) => Err(Refusal::bad("InvalidArgument", "Invalid Encoding Method specified in Request")),
        }
    }
    /// One name.
    pub(super) fn show(self, name: &[u8]) -> String {
        if self.url { percent_encode(name, URL).to_string() } else { text(name) }
    }
    fn show_text(self, name: &str) -> String {
        self.show(name.as_bytes())
    }
}

/// A page's size: S3 takes more than it gives.
pub(super) fn page_size(max: Option<i32>) -> Result<u32, Refusal> {
    let max = u32::try_from(max.unwrap_or(1000)).map_err(|_| {
        Refusal::bad("InvalidArgument", "max-keys, max-uploads and max-parts are not negative.")
    })?;
    Ok(max.min(PAGE_MAX))
}

/// The place behind a row, as clients carry it.
pub(super) fn token(last: &[u8]) -> String {
    format!("1{}", URL_SAFE_NO_PAD.encode(last))
}

/// The place that a token of ours names.
pub(super) fn untoken(token: &str) -> Result<Vec<u8>, Refusal> {
    let bytes = token.strip_prefix('1').and_then(|rest| URL_SAFE_NO_PAD.decode(rest).ok());
    bytes
        .filter(|bytes| !bytes.is_empty())
        .ok_or_else(|| Refusal::bad("InvalidArgument", "The continuation token provided is incorrect"))
}

fn nonempty(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

impl<S: Storage> Ops<S> {
    async fn rows(
        &self,
        bucket: &str,
        prefix: &str,
        after: Vec<u8>,
        delimiter: Option<&str>,
        limit: u32,
    ) -> S3Result<Rows> {
        let mut all = Rows::default();
        let mut after = after;
        while all.rows.len() < limit as usize {
            let left = limit - u32::try_from(all.rows.len()).unwrap_or(limit);
            let query = Query::List {
                bucket: bucket.to_owned(),
                prefix: prefix.as_bytes().to_vec(),
                after,
                inclusive: false,
                delimiter: delimiter.map(|d| d.as_bytes().to_vec()),
                limit: left,
            };
            let Answer::List(page) = self.storage.ask(query.clone()).await.map_err(s3)? else {
                return Err(mismatched(&query));
            };
            let empty = page.rows.is_empty();
            all.rows.extend(page.rows);
            all.more = page.more;
            if !page.more || empty {
                break;
            }
            after = all.last().unwrap_or_default().to_vec();
        }
        Ok(all)
    }

    pub(super) async fn list_objects(
        &self,
        req: S3Request<dto::ListObjectsInput>,
    ) -> S3Result<S3Response<dto::ListObjectsOutput>> {
        let bucket = self.bucket(&req, &req.input.bucket).await?;
        let input = req.input;
        let names = Names::new(input.encoding_type.as_ref())?;
        let limit = page_size(input.max_keys)?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let delimiter = nonempty(input.delimiter.as_deref());
        let marker = input.marker.clone().unwrap_or_default();
        let rows = self.rows(&bucket.name, &prefix, marker.clone().into_bytes(), delimiter, limit).await?;
        let next = rows.last().filter(|_| rows.more).map(|last| names.show(last));
        let truncated = rows.more;
        let (contents, prefixes) = split(rows, names, Some(&bucket.owner));
        let output = dto::ListObjectsOutput {
            name: Some(bucket.name),
            prefix: Some(names.show_text(&prefix)),
            marker: Some(names.show_text(&marker)),
            max_keys: Some(i32::try_from(limit).unwrap_or(i32::MAX)),
            is_truncated: Some(truncated),
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            delimiter: delimiter.map(|d| names.show_text(d)),
            // S3 gives it with a delimiter only; it does no harm to clients that look at the last key.
            next_marker: next.filter(|_| delimiter.is_some()),
            encoding_type: input.encoding_type,
            request_charged: None,
        };
        Ok(S3Response::new(output))
    }

    pub(super) async fn list_objects_v2(
        &self,
        req: S3Request<dto::ListObjectsV2Input>,
    ) -> S3Result<S3Response<dto::ListObjectsV2Output>> {
        let bucket = self.bucket(&req, &req.input.bucket).await?;
        let input = req.input;
        let names = Names::new(input.encoding_type.as_ref())?;
        let limit = page_size(input.max_keys)?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let delimiter = nonempty(input.delimiter.as_deref());
        let after = match &input.continuation_token {
            Some(token) => untoken(token)?,
            None => input.start_after.clone().unwrap_or_default().into_bytes(),
        };
        let rows = self.rows(&bucket.name, &prefix, after, delimiter, limit).await?;
        let next = rows.last().filter(|_| rows.more).map(token);
        let truncated = rows.more;
        let shown = input.fetch_owner.unwrap_or(false).then_some(bucket.owner.as_str());
        let (contents, prefixes) = split(rows, names, shown);
        let output = dto::ListObjectsV2Output {
            key_count: i32::try_from(contents.len() + prefixes.len()).ok(),
            name: Some(bucket.name),
            prefix: Some(names.show_text(&prefix)),
            max_keys: Some(i32::try_from(limit).unwrap_or(i32::MAX)),
            continuation_token: input.continuation_token,
            is_truncated: Some(truncated),
            next_continuation_token: next,
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            delimiter: delimiter.map(|d| names.show_text(d)),
            encoding_type: input.encoding_type,
            start_after: input.start_after.map(|start| names.show_text(&start)),
            request_charged: None,
        };
        Ok(S3Response::new(output))
    }
}

fn split(rows: Rows, names: Names, account: Option<&str>) -> (Vec<dto::Object>, Vec<dto::CommonPrefix>) {
    let (mut objects, mut prefixes) = (Vec::new(), Vec::new());
    for row in rows.rows {
        match row {
            ListRow::Prefix(prefix) => prefixes.push(dto::CommonPrefix { prefix: Some(names.show(&prefix)) }),
            ListRow::Object { key, size, modified, etag: tag, checksum } => objects.push(dto::Object {
                checksum_algorithm: checksum.map(|algorithm| vec![checksum::name(algorithm)]),
                e_tag: Some(etag(&tag)),
                key: Some(names.show(&key)),
                last_modified: Some(timestamp(modified)),
                owner: account.map(owner),
                size: i64::try_from(size).ok(),
                storage_class: Some(dto::ObjectStorageClass::from_static(dto::ObjectStorageClass::STANDARD)),
                ..Default::default()
            }),
        }
    }
    (objects, prefixes)
}

#[cfg(test)]
mod tests {
    use super::{Names, token, untoken};
    use proptest::prelude::{ProptestConfig, any, proptest};
    use proptest::{collection::vec, prop_assert, prop_assert_eq};

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn tokens_name_their_row(last in vec(any::<u8>(), 1..1024)) {
            prop_assert_eq!(untoken(&token(&last)).unwrap(), last);
        }
        #[test]
        fn tokens_of_others_are_refused_or_read_but_never_panic(text in ".{0,64}") {
            let _ = untoken(&text);
        }
        #[test]
        fn encoded_names_decode_to_themselves(name in ".{0,64}") {
            let shown = Names { url: true }.show_text(&name);
            prop_assert!(shown.is_ascii());
            let back = percent_encoding::percent_decode_str(&shown).decode_utf8().unwrap();
            prop_assert_eq!(back.as_ref(), name);
        }
    }

    #[test]
    fn foreign_tokens_are_bad_requests() {
        for text in ["", "1", "2YWJj", "1=", "x"] {
            assert_eq!(untoken(text).unwrap_err().code, "InvalidArgument", "{text}");
        }
    }
}
