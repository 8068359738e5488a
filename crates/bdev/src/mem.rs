//! `mem:` a device in memory: completes at once, forgets everything at exit.

use crate::device::{Bdev, Identify, Io, IoError, Op};
use std::cell::RefCell;
use std::collections::HashMap;

const PAGE: u64 = 4096;

/// Memory by 4 KiB pages; pages never written read as zeroes.
pub struct MemBdev {
    identify: Identify,
    pages: RefCell<HashMap<u64, Box<[u8; PAGE as usize]>>>,
}

impl MemBdev {
    /// A device of `size` bytes, a multiple of 4 KiB.
    pub fn new(size: u64) -> MemBdev {
        let identify = Identify {
            backend: "mem".into(),
            size: size / PAGE * PAGE,
            block_size: 4096,
            volatile_cache: false,
            atomic_write: 4096,
            depth: 1024,
            transfer_max: 4 << 20,
            deallocate: true,
        };
        MemBdev { identify, pages: RefCell::default() }
    }
}

impl Bdev for MemBdev {
    fn identify(&self) -> &Identify {
        &self.identify
    }

    fn submit(&self, io: Io) {
        let mut pages = self.pages.borrow_mut();
        let result = match io.op {
            Op::Read { offset, mut buf } => {
                for (i, out) in buf.chunks_mut(PAGE as usize).enumerate() {
                    match pages.get(&(offset / PAGE + i as u64)) {
                        Some(page) => out.copy_from_slice(&page[..out.len()]),
                        None => out.fill(0),
                    }
                }
                Ok(Some(buf))
            }
            Op::Write { offset, data, .. } => {
                let parts = data.iter().flat_map(|slice| slice.chunks(PAGE as usize));
                for (page, part) in (offset / PAGE..).zip(parts) {
                    pages.entry(page).or_insert_with(|| Box::new([0; PAGE as usize]))[..part.len()]
                        .copy_from_slice(part);
                }
                Ok(None)
            }
            Op::Flush => Ok(None),
            Op::Deallocate { offset, len } => {
                for page in offset / PAGE..(offset + len) / PAGE {
                    pages.remove(&page);
                }
                Ok::<_, IoError>(None)
            }
        };
        drop(pages);
        io.done.send(result);
    }
}
