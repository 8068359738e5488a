//! Listing names in byte order. A common prefix takes one seek, however many names it stands for;
//! a page ends by rows or by bytes; writers change nothing for the names that stay.

use crate::limits::SCAN_ROWS;
use crate::row::Row;
use crate::schema;
use crate::table::{Table, TableError};
use cobalt_rpc::proto::cas::{CasError, PAGE_BYTES_MAX, PAGE_MAX, Page};

/// What to list.
pub struct Names<'a> {
    /// The catalogue: rows keyed by (bucket, key, anything).
    pub ctg: u32,
    pub bucket: u64,
    pub prefix: &'a [u8],
    /// Common prefixes are shown from here on; keys from where `from` says.
    pub after: &'a [u8],
    pub inclusive: bool,
    /// First row to look at.
    pub from: Vec<u8>,
    pub delimiter: Option<&'a [u8]>,
    pub limit: u32,
}

/// Rows with a size on the wire, so that a page can end in time.
pub trait PageRow: Sized {
    /// At most how many bytes it takes.
    fn bytes(&self) -> usize;
}

/// Collects a page and notices when it is full.
pub struct PageBuilder<T> {
    rows: Vec<T>,
    bytes: usize,
    limit: usize,
    more: bool,
}

impl<T: PageRow> PageBuilder<T> {
    /// A page of at most `limit` rows.
    pub fn new(limit: u32) -> PageBuilder<T> {
        PageBuilder { rows: Vec::new(), bytes: 0, limit: limit.min(PAGE_MAX) as usize, more: false }
    }

    /// Adds a row. False when it does not fit: the page is done, and more follow.
    pub fn push(&mut self, row: T) -> bool {
        let bytes = row.bytes();
        let first = self.rows.is_empty() && self.limit > 0;
        if self.rows.len() >= self.limit || (self.bytes + bytes > PAGE_BYTES_MAX && !first) {
            self.more = true;
            return false;
        }
        self.bytes += bytes;
        self.rows.push(row);
        true
    }

    /// Rows that one more read should bring: what may still fit, and the one that says that more follow.
    pub fn wanted(&self) -> usize {
        (self.limit - self.rows.len() + 1).min(SCAN_ROWS)
    }

    /// The page.
    pub fn finish(self) -> Page<T> {
        // No rows were asked for: nothing can be continued.
        let more = self.more && self.limit > 0;
        Page { rows: self.rows, more }
    }
}

/// Length of the common prefix that `key` folds into.
fn folds_at(key: &[u8], prefix: &[u8], delimiter: Option<&[u8]>) -> Option<usize> {
    let delimiter = delimiter.filter(|d| !d.is_empty())?;
    let rest = key.get(prefix.len()..)?;
    let at = rest.windows(delimiter.len()).position(|window| window == delimiter)?;
    Some(prefix.len() + at + delimiter.len())
}

/// A page of names.
///
/// # Errors
/// [`TableError`].
pub async fn list<R: Row, T: PageRow>(
    table: &Table,
    names: Names<'_>,
    row: impl Fn(Vec<u8>, &[u8], R) -> Option<T>,
    fold: impl Fn(Vec<u8>) -> T,
) -> Result<Page<T>, TableError> {
    let mut page = PageBuilder::new(names.limit);
    if names.limit == 0 {
        return Ok(page.finish());
    }
    let until = match schema::prefix_end(names.prefix) {
        Some(end) => Some(schema::key_bound(names.bucket, &end)),
        None => schema::bucket_end(names.bucket),
    };
    let mut from = names.from.clone().max(schema::key_bound(names.bucket, names.prefix));
    // After a seek the next name is likely to fold as well: read little then, and more as names come in a row.
    let mut batch = if names.delimiter.is_some() { 2 } else { SCAN_ROWS };
    'seek: loop {
        let limit = batch.min(page.wanted());
        let rows = table.scan::<R>(names.ctg, &from, until.as_deref(), limit).await?;
        let end = rows.len() < limit;
        for (bytes, value) in rows {
            let bad =
                || TableError(CasError::Failed(format!("a key of catalogue {} is malformed", names.ctg)));
            let (key, tail) = schema::parse_key(&bytes).ok_or_else(bad)?;
            if let Some(len) = folds_at(&key, names.prefix, names.delimiter) {
                let prefix = key.get(..len).unwrap_or_default();
                let shown = prefix > names.after || (names.inclusive && prefix == names.after);
                if shown && !page.push(fold(prefix.to_vec())) {
                    return Ok(page.finish());
                }
                match schema::prefix_end(prefix) {
                    Some(end) => from = schema::key_bound(names.bucket, &end),
                    None => return Ok(page.finish()),
                }
                batch = 2;
                continue 'seek;
            }
            from = [bytes.as_slice(), &[0]].concat();
            let Some(row) = row(key, tail, value) else { continue };
            if !page.push(row) {
                return Ok(page.finish());
            }
        }
        if end {
            return Ok(page.finish());
        }
        batch = (batch * 2).min(SCAN_ROWS);
    }
}
