//! A device in memory that takes the buffers it is given instead of copying them.

use cobalt_bdev::{Bdev, Identify, Io, Op, WriteData};
use cobalt_dma::Slice;
use std::cell::RefCell;

const PAGE: u64 = 4096;

/// A slice for each page.
pub struct TakingBdev {
    identify: Identify,
    pages: RefCell<Vec<Option<Slice>>>,
}

impl TakingBdev {
    pub fn new(size: u64) -> TakingBdev {
        let identify = Identify {
            backend: "mem, buffers taken".into(),
            size,
            block_size: PAGE as u32,
            volatile_cache: false,
            atomic_write: PAGE as u32,
            depth: 1024,
            transfer_max: 4 << 20,
            deallocate: false,
        };
        TakingBdev { identify, pages: RefCell::new(vec![None; (size / PAGE) as usize]) }
    }
}

impl Bdev for TakingBdev {
    fn identify(&self) -> &Identify {
        &self.identify
    }

    fn submit(&self, io: Io) {
        let mut pages = self.pages.borrow_mut();
        let result = match io.op {
            Op::Read { offset, mut buf } => {
                for (out, page) in buf.chunks_mut(PAGE as usize).zip(&pages[(offset / PAGE) as usize..]) {
                    match page {
                        Some(page) => out.copy_from_slice(page),
                        None => out.fill(0),
                    }
                }
                Ok(Some(buf))
            }
            Op::Write { offset, data, .. } => {
                take(&mut pages, offset, data);
                Ok(None)
            }
            Op::Flush | Op::Deallocate { .. } => Ok(None),
        };
        drop(pages);
        io.done.send(result);
    }

    fn write_now(&self, offset: u64, data: WriteData) -> Result<(), WriteData> {
        take(&mut self.pages.borrow_mut(), offset, data);
        Ok(())
    }
}

fn take(pages: &mut [Option<Slice>], offset: u64, data: WriteData) {
    let mut page = (offset / PAGE) as usize;
    for slice in data {
        if slice.len() == PAGE as usize {
            pages[page] = Some(slice);
            page += 1;
            continue;
        }
        for at in (0..slice.len()).step_by(PAGE as usize) {
            pages[page] = Some(slice.slice(at..at + PAGE as usize));
            page += 1;
        }
    }
}
