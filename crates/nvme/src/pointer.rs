//! The data pointer of a command: where its bytes are. Up to two pages are two Physical Region Pages (Base 4.1.2); more are an
//! SGL (Base 4.1.3), where the controller takes them, else a list of PRPs.
//!
//! Memory that is one piece for the device is one descriptor in the command itself, however long: there is no list to write, nor one
//! to fetch. Lists of both kinds lie in the page of the command's slot. Pieces that do not fit into one are a list of PRPs.

use crate::function::Iova;
use crate::limits::{PRP_LIST_MAX, SGL_LIST_MAX};
use crate::memory::{Maps, PAGE, Shared};
use crate::spec::{Command, SglDescriptor, sgl};
use cobalt_bdev::Op;

/// Most bytes of one command: a first page and a list of one page.
pub const BYTES_MAX: usize = PRP_LIST_MAX * PAGE;

/// The page of a slot: byte `at` of the pages of all slots.
#[derive(Clone, Copy)]
pub struct List<'a> {
    pub pages: &'a Shared,
    pub at: usize,
}

impl List<'_> {
    /// Where the device finds it.
    pub fn iova(&self) -> u64 {
        self.pages.iova().offset(self.at).0
    }
}

/// How bytes were pointed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointer {
    Prps,
    /// One data block, in the command.
    SglBlock,
    /// A list of data blocks.
    SglList,
}

/// Points `command` to bytes `at .. at + len` of an operation's memory. The controller takes `sgl_max` descriptors of an SGL. `None`
/// if a part of the memory is not reachable for the device, or not page by page.
pub fn point(
    command: &mut Command,
    maps: &Maps,
    op: &Op,
    at: usize,
    len: usize,
    list: List<'_>,
    sgl_max: u32,
) -> Option<Pointer> {
    if len > 2 * PAGE
        && sgl_max > 0
        && let Some(pointer) = sgl(command, maps, op, at, len, list, sgl_max)?
    {
        return Some(pointer);
    }
    let mut pages = 0;
    pieces(maps, op, at, len, |iova, bytes| {
        for page in 0..bytes / PAGE {
            let iova = iova.offset(page * PAGE).0;
            match pages {
                0 => command.prp1 = iova.into(),
                n => list.pages.write64(list.at + (n - 1) * 8, iova),
            }
            // Two pages need no list; the second entry is the page itself.
            match pages {
                0 => {}
                1 => command.prp2 = iova.into(),
                _ => command.prp2 = list.iova().into(),
            }
            pages += 1;
        }
    })?;
    Some(Pointer::Prps)
}

/// By an SGL; `Some(None)` if it would have too many descriptors, or none.
fn sgl(
    command: &mut Command,
    maps: &Maps,
    op: &Op,
    at: usize,
    len: usize,
    list: List<'_>,
    sgl_max: u32,
) -> Option<Option<Pointer>> {
    const DESCRIPTOR: usize = size_of::<SglDescriptor>();
    let (mut first, mut blocks) = (SglDescriptor::default(), 0);
    pieces(maps, op, at, len, |iova, bytes| {
        let block = SglDescriptor::new(sgl::DATA_BLOCK, iova.0, bytes as u32);
        match blocks {
            0 => first = block,
            SGL_LIST_MAX.. => {}
            n => {
                if n == 1 {
                    list.pages.write(list.at, &first);
                }
                list.pages.write(list.at + n * DESCRIPTOR, &block);
            }
        }
        blocks += 1;
    })?;
    Some(match blocks {
        1 => {
            command.set_sgl(first);
            Some(Pointer::SglBlock)
        }
        // The command's own descriptor counts with those of its list.
        2..=SGL_LIST_MAX if blocks < sgl_max as usize => {
            let segment = SglDescriptor::new(sgl::LAST_SEGMENT, list.iova(), (blocks * DESCRIPTOR) as u32);
            command.set_sgl(segment);
            Some(Pointer::SglList)
        }
        _ => None,
    })
}

/// Tells of each piece of bytes `at .. at + len` in turn, as the device sees it: what adjoins is one piece. `None` as
/// [`point`].
fn pieces(maps: &Maps, op: &Op, at: usize, len: usize, mut put: impl FnMut(Iova, usize)) -> Option<()> {
    match op {
        Op::Read { buf, .. } => {
            let iova = maps.iova(buf.as_ptr().wrapping_add(at), len)?;
            aligned(iova, len)?;
            put(iova, len);
        }
        Op::Write { data, .. } => {
            let (mut skip, mut left) = (at, len);
            let mut piece: Option<(Iova, usize)> = None;
            for slice in data {
                let from = skip.min(slice.len());
                skip -= from;
                let bytes = (slice.len() - from).min(left);
                if bytes == 0 {
                    continue;
                }
                let iova = maps.iova(slice.as_ptr().wrapping_add(from), bytes)?;
                aligned(iova, bytes)?;
                left -= bytes;
                piece = match piece {
                    Some((start, so_far)) if start.offset(so_far) == iova => Some((start, so_far + bytes)),
                    Some((start, so_far)) => {
                        put(start, so_far);
                        Some((iova, bytes))
                    }
                    None => Some((iova, bytes)),
                };
            }
            if let Some((start, bytes)) = piece {
                put(start, bytes);
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

#[cfg(test)]
mod tests {
    use super::{List, Pointer, point};
    use crate::memory::{Maps, PAGE, Shared};
    use crate::soft::{Soft, SoftConfig};
    use crate::spec::{Command, nvm};
    use cobalt_bdev::{Op, WriteData};
    use cobalt_dma::{Arena, ArenaConfig, Slice};
    use cobalt_reactor::Reactor;
    use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
    use proptest::test_runner::TestCaseResult;
    use std::ops::Range;

    const PAGES: usize = 512;
    /// The middle one of three pages is the slot's.
    const OTHERS: [usize; 2] = [0, 2 * PAGE];
    const NOBODYS: u64 = 0x5a5a_5a5a_5a5a_5a5a;

    /// Memory of which every word is different, and a controller that reaches it, in two mappings.
    struct Bench {
        maps: Maps,
        memory: [Slice; 2],
        lists: Shared,
        soft: Soft,
    }

    impl Bench {
        fn new(sgls: u32) -> Bench {
            let reactor = Reactor::new_virtual(1).expect("an eventfd");
            let soft = Soft::new(&reactor.ctx(), SoftConfig { sgls, ..SoftConfig::new(8 << 20) }, 1);
            let mut maps = Maps::default();
            let arenas = [4 << 20, 8 << 20].map(|limit| Arena::new(ArenaConfig { limit }).expect("an arena"));
            let memory = [0, 1].map(|n: usize| {
                maps.add(&arenas[n], soft.reach_all(&arenas[n]));
                let mut buf = arenas[n].try_alloc(PAGES * PAGE).expect("room");
                for (at, word) in buf.chunks_exact_mut(8).enumerate() {
                    word.copy_from_slice(&((n << 32 | at) as u64 * 0x9e37_79b9).to_le_bytes());
                }
                buf.freeze()
            });
            let lists = Shared::new(&maps, &arenas[1], 3 * PAGE).expect("room");
            for at in OTHERS.iter().flat_map(|page| (*page..page + PAGE).step_by(8)) {
                lists.write64(at, NOBODYS);
            }
            Bench { maps, memory, lists, soft }
        }

        /// What a device finds behind bytes `at..` of the operation, through its own reading of the pointer.
        fn found(&self, op: &Op, at: Range<usize>, sgl_max: u32) -> (Option<Pointer>, Vec<u8>) {
            let list = List { pages: &self.lists, at: PAGE };
            let mut command = Command::new(nvm::WRITE, 1).blocks(0, (at.len() / PAGE) as u32);
            let pointer = point(&mut command, &self.maps, op, at.start, at.len(), list, sgl_max);
            (pointer, self.soft.behind(&command))
        }
    }

    fn same_bytes(sgls: u32, shape: &[(bool, bool, usize, usize)], cut: (usize, usize)) -> TestCaseResult {
        let bench = Bench::new(sgls);
        let (mut data, mut whole, mut next) = (WriteData::new(), Vec::new(), (0, 0));
        for (adjoins, which, first, pages) in shape {
            let (memory, first) = if *adjoins { next } else { (usize::from(*which), first % PAGES) };
            let end = (first + pages).min(PAGES);
            let slice = bench.memory[memory].slice(first * PAGE..end * PAGE);
            next = (memory, end % PAGES);
            whole.extend_from_slice(&slice);
            data.push(slice);
        }
        let pages = whole.len() / PAGE;
        let from = cut.0 % pages;
        let at = from * PAGE..(from + 1 + cut.1 % (pages - from).min(PAGES)) * PAGE;
        let op = Op::Write { offset: 0, data, fua: false };
        let most = match sgls >> 8 {
            0 => u32::MAX,
            most => most,
        };
        let (prps, by_prps) = bench.found(&op, at.clone(), 0);
        let (sgl, by_sgl) = bench.found(&op, at.clone(), most);
        prop_assert_eq!(prps, Some(Pointer::Prps));
        prop_assert!(sgl.is_some() && (at.len() > 2 * PAGE || sgl == prps));
        prop_assert!(by_prps == whole[at.clone()], "PRPs of {} pages", at.len() / PAGE);
        prop_assert!(by_sgl == whole[at.clone()], "{sgl:?} of {} pages", at.len() / PAGE);
        let others = OTHERS.iter().flat_map(|page| (*page..page + PAGE).step_by(4));
        prop_assert!(
            others.map(|at| bench.lists.read32(at)).all(|word| word == NOBODYS as u32),
            "another slot's list"
        );
        prop_assert_eq!(bench.soft.violations(), Vec::<String>::new());
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn an_sgl_and_a_list_of_prps_find_the_same_bytes_in_their_slots_page_alone(
            recommended in 0u32..5,
            shape in proptest::collection::vec((any::<bool>(), any::<bool>(), 0..PAGES, 1usize..24), 1..40),
            cut in (any::<usize>(), any::<usize>()),
        ) {
            same_bytes((recommended * recommended) << 8 | 1, &shape, cut)?;
            // One page at a time: more pieces than an SGL's list has room for.
            let single: Vec<_> = (0..400).map(|n| (false, n % 2 == 0, n * 7, 1)).collect();
            same_bytes(1, &single, cut)?;
        }
    }

    #[test]
    fn one_piece_needs_no_list_and_what_adjoins_is_one_piece() {
        let bench = Bench::new(1);
        // Pieces of memory by their first page and how many.
        let of = |pieces: &[(usize, usize)]| {
            let slice =
                |(first, pages): &(usize, usize)| bench.memory[0].slice(first * PAGE..(first + pages) * PAGE);
            let op = Op::Write { offset: 0, data: pieces.iter().map(slice).collect(), fua: false };
            let pages = pieces.iter().map(|(_, pages)| pages).sum::<usize>();
            bench.found(&op, 0..pages * PAGE, u32::MAX).0
        };
        assert_eq!(of(&[(0, 2)]), Some(Pointer::Prps), "two pages need no list as they are");
        assert_eq!(of(&[(0, 3)]), Some(Pointer::SglBlock));
        assert_eq!(of(&[(0, 512)]), Some(Pointer::SglBlock));
        assert_eq!(of(&[(4, 2), (6, 1), (7, 25)]), Some(Pointer::SglBlock));
        assert_eq!(of(&[(4, 2), (7, 1)]), Some(Pointer::SglList));
        assert_eq!(of(&[(4, 2), (2, 2)]), Some(Pointer::SglList), "the wrong way round");
        let apart = |pieces: usize| (0..pieces).map(|n| (2 * n % PAGES, 1)).collect::<Vec<_>>();
        assert_eq!(of(&apart(256)), Some(Pointer::SglList));
        assert_eq!(of(&apart(257)), Some(Pointer::Prps), "the list is full");
        assert_eq!(bench.soft.violations(), Vec::<String>::new());
    }
}
