//! A write log as QEMU's blklogwrites keeps it, in the format of the kernel's dm-log-writes: a superblock, then for each
//! operation a header, padded to a sector, and what was written.

use std::ops::Range;

const MAGIC: u64 = 0x6a_7366_7773_6872;
const HEADER: usize = 32;
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;

/// One operation, in the order in which they were done. Who was told of its end was told after its entry was there.
#[derive(Clone, Debug)]
pub struct Entry {
    pub what: What,
    /// Where its entry ends in the log, in bytes.
    pub end: u64,
}

#[derive(Clone, Debug)]
pub enum What {
    /// Bytes of the log, to byte `at` of the disk.
    Write {
        at: usize,
        data: Range<usize>,
    },
    /// What these bytes of the disk hold from here on is not defined.
    Discard(Range<usize>),
    Flush,
}

/// Reads a log to its end. Its count of entries is written now and then only: the end is where the bytes end.
///
/// # Errors
/// It is no such log, or holds what a disk of this size cannot have been told.
pub fn parse(log: &[u8], disk: usize) -> Result<Vec<Entry>, String> {
    let word = |at: usize| -> Option<u64> { Some(u64::from_le_bytes(log.get(at..at + 8)?.try_into().ok()?)) };
    let sector = log.get(24..28).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])) as usize;
    if word(0) != Some(MAGIC) || !(512..=4096).contains(&sector) {
        return Err("it is no log of writes: its superblock is not one".into());
    }
    let (mut entries, mut at) = (Vec::new(), sector);
    while let (Some(first), Some(count), Some(flags), Some(_)) =
        (word(at), word(at + 8), word(at + 16), word(at + HEADER - 8))
    {
        let bad = |what: &str| format!("entry {} at byte {at} of the log {what}", entries.len());
        let part = |n: u64| usize::try_from(n).ok().and_then(|n| n.checked_mul(sector));
        let range = part(first).zip(part(count)).and_then(|(at, len)| Some(at..at.checked_add(len)?));
        let range = range.filter(|r| r.end <= disk).ok_or_else(|| bad("lies outside of the disk"))?;
        let data = at + sector..at + sector + if flags & DISCARD == 0 { range.len() } else { 0 };
        if data.end > log.len() {
            break; // Was being written when the machine went down.
        }
        let end = data.end as u64;
        let what = match flags {
            FLUSH => What::Flush,
            DISCARD => What::Discard(range),
            0 => What::Write { at: range.start, data: data.clone() },
            _ => return Err(bad(&format!("has the flags {flags:#x}"))),
        };
        at = data.end;
        entries.push(Entry { what, end });
    }
    Ok(entries)
}
