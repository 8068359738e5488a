//! Physical Region Pages (Base 4.1.2): where a command's bytes are, page by page.

use crate::function::Iova;
use crate::limits::PRP_LIST_MAX;
use crate::memory::{Maps, PAGE, Shared};
use crate::spec::Command;
use cobalt_bdev::Op;

/// Most bytes of one command: a first page and a list of one page.
pub const BYTES_MAX: usize = PRP_LIST_MAX * PAGE;

/// Points `command` to bytes `at .. at + len` of an operation's memory. `list` holds the slot's page of entries, from byte
/// `list_at` on. `None` if a part of it is not reachable for the device, or not page by page.
pub fn point(
    command: &mut Command,
    maps: &Maps,
    op: &Op,
    at: usize,
    len: usize,
    list: &Shared,
    list_at: usize,
) -> Option<()> {
    let mut pages = 0;
    let mut put = |iova: Iova, bytes: usize| {
        for page in 0..bytes / PAGE {
            let iova = iova.offset(page * PAGE).0;
            match pages {
                0 => command.prp1 = iova.into(),
                n => list.write64(list_at + (n - 1) * 8, iova),
            }
            // Two pages need no list; the second entry is the page itself.
            match pages {
                0 => {}
                1 => command.prp2 = iova.into(),
                _ => command.prp2 = list.iova().offset(list_at).0.into(),
            }
            pages += 1;
        }
    };
    match op {
        Op::Read { buf, .. } => {
            let iova = maps.iova(buf.as_ptr().wrapping_add(at), len)?;
            aligned(iova, len)?;
            put(iova, len);
        }
        Op::Write { data, .. } => {
            let (mut skip, mut left) = (at, len);
            for slice in data {
                let from = skip.min(slice.len());
                skip -= from;
                let bytes = (slice.len() - from).min(left);
                if bytes > 0 {
                    let iova = maps.iova(slice.as_ptr().wrapping_add(from), bytes)?;
                    aligned(iova, bytes)?;
                    put(iova, bytes);
                    left -= bytes;
                }
            }
            (left == 0).then_some(())?;
        }
        Op::Flush | Op::Deallocate { .. } => {}
    }
    Some(())
}

/// Whether the device can do an operation on this memory.
pub fn reachable(maps: &Maps, op: &Op) -> bool {
    let whole =
        |ptr: *const u8, len: usize| maps.iova(ptr, len).is_some_and(|iova| aligned(iova, len).is_some());
    match op {
        Op::Read { buf, .. } => whole(buf.as_ptr(), buf.len()),
        Op::Write { data, .. } => data.iter().all(|slice| whole(slice.as_ptr(), slice.len())),
        Op::Flush | Op::Deallocate { .. } => true,
    }
}

fn aligned(iova: Iova, len: usize) -> Option<()> {
    (iova.0.is_multiple_of(PAGE as u64) && len.is_multiple_of(PAGE)).then_some(())
}
