//! How the software controller finds a command's bytes, and refuses what points to them wrongly.

use super::State;
use super::exec::PAGE;
use crate::spec::command::SGL;
use crate::spec::{Command, SglDescriptor, Status, sgl};
use zerocopy::{FromZeros, IntoBytes};

/// Data Transfer Error: a list cannot be reached.
const TRANSFER_ERROR: Status = Status(0x04);
const DESCRIPTOR: u32 = size_of::<SglDescriptor>() as u32;

/// A piece of memory: address and length.
pub(super) type Piece = (u64, usize);

impl State {
    /// The memory of a read or write, in turn: all of its bytes, or why not.
    pub(super) fn pieces(&self, command: &Command) -> Result<Vec<Piece>, Status> {
        let ns = self.config.namespaces.get((command.nsid.get() as usize).wrapping_sub(1));
        let bytes = u64::from(command.block_count()) << ns.ok_or(Status::INVALID_FIELD)?.block_shift;
        let found = match command.flags {
            0 => self.prps(command, bytes),
            SGL if matches!(self.config.sgls & 3, 1 | 2) => self.sgl(command.sgl(), bytes),
            _ => Err(Status::INVALID_FIELD),
        };
        if let Err(status) = found
            && status != TRANSFER_ERROR
        {
            self.violation(format!("{status}: {command:?}"));
        }
        found
    }

    fn prps(&self, command: &Command, bytes: u64) -> Result<Vec<Piece>, Status> {
        let mut pages = vec![command.prp1.get()];
        match bytes.div_ceil(PAGE) {
            0 | 1 => {}
            2 => pages.push(command.prp2.get()),
            count => {
                self.count(|c| c.prp_lists += 1);
                for n in 0..count - 1 {
                    let entry = self.dma.borrow().read64(command.prp2.get() + n * 8);
                    pages.push(entry.ok_or(TRANSFER_ERROR)?);
                }
            }
        }
        if let Some(bad) = pages.iter().find(|page| !page.is_multiple_of(PAGE)) {
            self.violation(format!("PRP entry {bad:#x} is not aligned"));
        }
        let at = (0..bytes).step_by(PAGE as usize);
        Ok(pages.into_iter().zip(at).map(|(page, at)| (page, (bytes - at).min(PAGE) as usize)).collect())
    }

    fn sgl(&self, first: SglDescriptor, bytes: u64) -> Result<Vec<Piece>, Status> {
        let (mut pieces, mut left) = (Vec::new(), bytes);
        let mut take = |block: SglDescriptor| {
            let (address, len) = (block.address.get(), block.len.get());
            if block.reserved_12 != [0; 3] {
                return Err(Status::INVALID_FIELD);
            }
            if self.config.sgls & 3 == 2 && !(address.is_multiple_of(4) && len.is_multiple_of(4)) {
                return Err(Status::SGL_GRANULARITY_INVALID);
            }
            left = left.checked_sub(len.into()).ok_or(Status::SGL_LENGTH_INVALID)?;
            pieces.push((address, len as usize));
            Ok(())
        };
        match first.kind {
            sgl::DATA_BLOCK => {
                self.count(|c| c.sgl_blocks += 1);
                take(first)?;
            }
            sgl::LAST_SEGMENT => {
                self.count(|c| c.sgl_lists += 1);
                self.segment(first, take)?;
            }
            _ => return Err(Status::SGL_TYPE_INVALID),
        }
        match left {
            0 => Ok(pieces),
            _ => Err(Status::SGL_LENGTH_INVALID),
        }
    }

    /// The descriptors of a last segment, one by one.
    fn segment(
        &self,
        segment: SglDescriptor,
        mut take: impl FnMut(SglDescriptor) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let (address, len) = (segment.address.get(), segment.len.get());
        if len == 0 || !len.is_multiple_of(DESCRIPTOR) || !address.is_multiple_of(8) {
            return Err(Status::SGL_SEGMENT_INVALID);
        }
        let most = self.config.sgls >> 8 & 0xff;
        if most > 0 && len / DESCRIPTOR + 1 > most {
            self.violation(format!(
                "an SGL of {} descriptors, where {most} are recommended",
                len / DESCRIPTOR + 1
            ));
        }
        for at in (0..len).step_by(DESCRIPTOR as usize) {
            let mut block = SglDescriptor::new_zeroed();
            if !self.dma.borrow().read(address + u64::from(at), block.as_mut_bytes()) {
                return Err(TRANSFER_ERROR);
            }
            match block.kind {
                sgl::DATA_BLOCK => take(block)?,
                sgl::SEGMENT | sgl::LAST_SEGMENT => return Err(Status::SGL_SEGMENT_INVALID),
                _ => return Err(Status::SGL_TYPE_INVALID),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::memory::PAGE;
    use crate::soft::{Soft, SoftConfig};
    use crate::spec::sgl::{DATA_BLOCK, LAST_SEGMENT, SEGMENT};
    use crate::spec::{Command, SglDescriptor, Status, nvm};
    use cobalt_dma::{Arena, ArenaConfig};
    use cobalt_reactor::Reactor;
    use zerocopy::IntoBytes;

    /// A read of three blocks of 4 KiB, into page 1 and on; descriptors are in page 0.
    const BYTES: u32 = 3 * PAGE as u32;

    /// What becomes of it on a controller with `sgls`, and how many bytes it changed.
    fn read(sgls: u32, first: (u8, u64, u32), list: &[(u8, u64, u32)]) -> (Status, usize, usize) {
        let reactor = Reactor::new_virtual(1).expect("an eventfd");
        let soft = Soft::new(&reactor.ctx(), SoftConfig { sgls, ..SoftConfig::new(1 << 20) }, 1);
        let arena = Arena::new(ArenaConfig { limit: 1 << 20 }).expect("an arena");
        let mut buf = arena.try_alloc(8 * PAGE).expect("room");
        buf.fill(0xaa);
        let iova = soft.reach_all(&arena);
        let base = iova.offset(buf.as_ptr() as usize - arena.region().0 as usize).0;
        let at = |(kind, page, len): (u8, u64, u32)| SglDescriptor::new(kind, base + page, len);
        for (n, descriptor) in list.iter().enumerate() {
            buf[n * 16..][..16].copy_from_slice(at(*descriptor).as_bytes());
        }
        let before = buf.to_vec();
        let mut command = Command::new(nvm::READ, 1).blocks(0, 3);
        command.set_sgl(at(first));
        let status = soft.do_now(&command);
        let changed = buf.iter().zip(&before).filter(|(a, b)| a != b).count();
        (status, changed, soft.violations().len())
    }

    #[test]
    fn legal_descriptors_are_followed() {
        let (page, done) = (PAGE as u64, (Status::SUCCESS, BYTES as usize, 0));
        assert_eq!(read(1, (DATA_BLOCK, page, BYTES), &[]), done);
        assert_eq!(read(2, (DATA_BLOCK, page + 4, BYTES), &[]), done);
        let list = [(DATA_BLOCK, 6 * page, 4096), (DATA_BLOCK, page, 0), (DATA_BLOCK, 2 * page + 2, 8192)];
        assert_eq!(read(1, (LAST_SEGMENT, 0, 48), &list), done, "a block of no bytes is legal");
        assert_eq!(read(0x0401, (LAST_SEGMENT, 0, 48), &list), done);
        assert_eq!(
            read(0x0301, (LAST_SEGMENT, 0, 48), &list).2,
            1,
            "more than it recommends is done, and noted"
        );
    }

    #[test]
    fn illegal_descriptors_are_refused_with_their_status_and_move_no_byte() {
        let page = PAGE as u64;
        let whole = [(DATA_BLOCK, page, 4096), (DATA_BLOCK, 3 * page, 8192)];
        let short = [(DATA_BLOCK, page, 4096), (DATA_BLOCK, 3 * page, 4096)];
        let nested = [(DATA_BLOCK, page, 4096), (LAST_SEGMENT, 0, 32)];
        let keyed = [(DATA_BLOCK, page, 4096), (0x40, 3 * page, 8192)];
        let uneven = [(DATA_BLOCK, page, 4096), (DATA_BLOCK, 3 * page + 2, 8192)];
        for (sgls, first, list, status) in [
            (0, (DATA_BLOCK, page, BYTES), &[][..], Status::INVALID_FIELD),
            (3, (DATA_BLOCK, page, BYTES), &[], Status::INVALID_FIELD),
            (1, (DATA_BLOCK, page, BYTES - 4096), &[], Status::SGL_LENGTH_INVALID),
            (1, (DATA_BLOCK, page, BYTES + 4096), &[], Status::SGL_LENGTH_INVALID),
            (1, (0x10, page, BYTES), &[], Status::SGL_TYPE_INVALID),
            (1, (SEGMENT, 0, 32), &whole, Status::SGL_TYPE_INVALID),
            (2, (DATA_BLOCK, page + 2, BYTES), &[], Status::SGL_GRANULARITY_INVALID),
            (1, (LAST_SEGMENT, 0, 24), &whole, Status::SGL_SEGMENT_INVALID),
            (1, (LAST_SEGMENT, 0, 0), &whole, Status::SGL_SEGMENT_INVALID),
            (1, (LAST_SEGMENT, 4, 32), &whole, Status::SGL_SEGMENT_INVALID),
            (1, (LAST_SEGMENT, 0, 16), &whole, Status::SGL_LENGTH_INVALID),
            (1, (LAST_SEGMENT, 0, 32), &short, Status::SGL_LENGTH_INVALID),
            (1, (LAST_SEGMENT, 0, 32), &nested, Status::SGL_SEGMENT_INVALID),
            (1, (LAST_SEGMENT, 0, 32), &keyed, Status::SGL_TYPE_INVALID),
            (2, (LAST_SEGMENT, 0, 32), &uneven, Status::SGL_GRANULARITY_INVALID),
        ] {
            assert_eq!(read(sgls, first, list), (status, 0, 1), "{first:x?}, {list:x?}");
        }
        let out_of_reach = read(1, (LAST_SEGMENT, 1 << 40, 32), &whole);
        assert_eq!(out_of_reach, (Status::of(0, 0x04), 0, 0), "a list that the IOMMU blocks");
    }
}
