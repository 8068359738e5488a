//! Journal records that may rot: those that were durable before a later record, which is still there, was issued. A crash does not hurt them, but a
//! start that took their loss for a torn tail would be as bad as one that lost them (I6).

use super::image::Page;

const MAGIC: &[u8] = b"COBALTJR";

/// A record's header, as docs/format.md has it.
#[derive(Clone, Copy)]
struct Header {
    place: usize,
    first: u64,
    last: u64,
    epoch: u64,
}

fn header(place: usize, page: &Page) -> Option<Header> {
    let number = |at: usize| page.bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    (page.bytes.get(..8)? == MAGIC).then_some(())?;
    Some(Header { place, first: number(24)?, last: number(32)?, epoch: number(64)? })
}

/// Places of records that were durable, each with the lsn up to which everything was.
pub fn victims(pages: &[Page], meta_blocks: u32) -> Vec<(usize, u64)> {
    let ring = pages.iter().take(meta_blocks as usize).enumerate();
    let records: Vec<Header> = ring.filter_map(|(place, page)| header(place, page)).collect();
    let epoch = records.iter().map(|r| r.epoch).max().unwrap_or(0);
    let known = |but: usize| {
        let others = records.iter().filter(|r| r.epoch == epoch && r.place != but);
        others.map(|r| r.first - 1).max().unwrap_or(0)
    };
    let victims = records.iter().map(|r| (r, known(r.place)));
    victims
        .filter(|(r, known)| r.epoch == epoch && r.last <= *known)
        .map(|(r, known)| (r.place, known))
        .collect()
}
