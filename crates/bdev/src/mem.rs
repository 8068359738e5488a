//! `mem:` a device in memory: completes at once, forgets everything at exit.

use crate::device::{Bdev, Identify, Io, IoError, Op, WriteData};
use std::cell::RefCell;

const PAGE: usize = 4096;
/// Pages of a chunk: what is taken from the system in one piece, and given back when none of them is in use.
const CHUNK_PAGES: usize = 16;
const CHUNK: usize = CHUNK_PAGES * PAGE;
/// Chunks of one table.
const TABLE: usize = 1024;

/// Memory by chunks of 64 KiB under tables of 64 MiB; pages never written read as zeroes.
pub struct MemBdev {
    identify: Identify,
    tables: RefCell<Vec<Option<Box<Table>>>>,
}

type Table = [Option<Chunk>; TABLE];

struct Chunk {
    /// A bit for each page in use.
    used: u16,
    bytes: Box<[u8]>,
}

const _: () = assert!(CHUNK_PAGES == u16::BITS as usize);

impl MemBdev {
    /// A device of `size` bytes, a multiple of 4 KiB.
    pub fn new(size: u64) -> MemBdev {
        let identify = Identify {
            backend: "mem".into(),
            size: size / PAGE as u64 * PAGE as u64,
            block_size: 4096,
            volatile_cache: false,
            atomic_write: 4096,
            depth: 1024,
            transfer_max: 4 << 20,
            deallocate: true,
        };
        MemBdev { identify, tables: RefCell::default() }
    }
}

/// The pieces of `len` bytes from `offset` on that lie within one chunk: table, chunk in it, byte in that, length.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let end = offset + len as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        let within = (at % CHUNK as u64) as usize;
        let piece = (CHUNK - within).min((end - at) as usize);
        let chunk = (at / CHUNK as u64) as usize;
        at += piece as u64;
        (piece > 0).then_some((chunk / TABLE, chunk % TABLE, within, piece))
    })
}

/// The bits of the pages that a piece of a chunk touches.
fn bits(within: usize, len: usize) -> u16 {
    let (first, last) = (within / PAGE, (within + len - 1) / PAGE);
    (u16::MAX >> (CHUNK_PAGES - 1 - (last - first))) << first
}

fn read(tables: &[Option<Box<Table>>], offset: u64, mut out: &mut [u8]) {
    for (table, chunk, within, len) in pieces(offset, out.len()) {
        let (piece, rest) = out.split_at_mut(len);
        out = rest;
        match tables.get(table).and_then(Option::as_ref).and_then(|table| table[chunk].as_ref()) {
            Some(chunk) => piece.copy_from_slice(&chunk.bytes[within..within + len]),
            None => piece.fill(0),
        }
    }
}

fn write(tables: &mut Vec<Option<Box<Table>>>, offset: u64, mut data: &[u8]) {
    for (table, chunk, within, len) in pieces(offset, data.len()) {
        if tables.len() <= table {
            tables.resize_with(table + 1, || None);
        }
        let table = tables[table].get_or_insert_with(|| Box::new([const { None }; TABLE]));
        let chunk = table[chunk].get_or_insert_with(|| Chunk { used: 0, bytes: vec![0; CHUNK].into() });
        let (piece, rest) = data.split_at(len);
        data = rest;
        chunk.bytes[within..within + len].copy_from_slice(piece);
        chunk.used |= bits(within, len);
    }
}

fn write_all(tables: &mut Vec<Option<Box<Table>>>, mut offset: u64, data: &WriteData) {
    for slice in data {
        write(tables, offset, slice);
        offset += slice.len() as u64;
    }
}

fn deallocate(tables: &mut [Option<Box<Table>>], offset: u64, len: u64) {
    // Beyond the last table nothing is in use.
    let end = (offset + len).min((tables.len() * TABLE * CHUNK) as u64);
    let mut at = offset;
    while at < end {
        let step = (end - at).min(CHUNK as u64);
        for (table, chunk, within, len) in pieces(at, step as usize) {
            let Some(Some(table)) = tables.get_mut(table) else { continue };
            let Some(found) = &mut table[chunk] else { continue };
            found.bytes[within..within + len].fill(0);
            found.used &= !bits(within, len);
            if found.used == 0 {
                table[chunk] = None;
            }
        }
        at += step;
    }
}

impl Bdev for MemBdev {
    fn identify(&self) -> &Identify {
        &self.identify
    }

    fn submit(&self, io: Io) {
        let mut tables = self.tables.borrow_mut();
        let result = match io.op {
            Op::Read { offset, mut buf } => {
                read(&tables, offset, &mut buf);
                Ok(Some(buf))
            }
            Op::Write { offset, data, .. } => {
                write_all(&mut tables, offset, &data);
                Ok(None)
            }
            Op::Flush => Ok(None),
            Op::Deallocate { offset, len } => {
                deallocate(&mut tables, offset, len);
                Ok::<_, IoError>(None)
            }
        };
        drop(tables);
        io.done.send(result);
    }

    fn write_now(&self, offset: u64, data: WriteData) -> Result<(), WriteData> {
        write_all(&mut self.tables.borrow_mut(), offset, &data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{CHUNK, PAGE, deallocate, read, write};

    #[test]
    fn what_is_written_is_read_across_chunks_and_zeroes_elsewhere() {
        let (mut tables, mut model) = (Vec::new(), vec![0u8; 5 * CHUNK]);
        // Beyond the first table as well.
        let base = 3 * 64 * 1024 * 1024 - 2 * CHUNK as u64;
        let mut x = 1u64;
        for round in 0..200u8 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let pages = (x >> 33) as usize % 40 + 1;
            let page = (x >> 13) as usize % (model.len() / PAGE - pages);
            let range = page * PAGE..(page + pages) * PAGE;
            if round % 3 == 2 {
                deallocate(&mut tables, base + range.start as u64, range.len() as u64);
                model[range].fill(0);
            } else {
                model[range.clone()].fill(round + 1);
                write(&mut tables, base + range.start as u64, &model[range]);
            }
            let mut back = vec![0xaa; model.len()];
            read(&tables, base, &mut back);
            assert!(back == model, "round {round}");
        }
        deallocate(&mut tables, 0, 1 << 60);
        assert!(tables.iter().flatten().all(|table| table.iter().all(Option::is_none)), "memory comes back");
    }
}
