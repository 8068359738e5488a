//! A buddy allocator over page numbers (Knowlton 1965). It splits and merges blocks of 2^order
//! pages; one contiguous region means one registration with a device or a peer.

/// Pages per block of the highest order: 4 MiB of 4 KiB pages.
pub(crate) const ORDER_MAX: usize = 10;
const NONE: u32 = u32::MAX;

/// Free blocks of each order as doubly linked lists over page numbers: every operation takes at
/// most `ORDER_MAX` steps and allocates nothing.
pub(crate) struct Buddy {
    head: [u32; ORDER_MAX + 1],
    next: Vec<u32>,
    prev: Vec<u32>,
    /// The order of the free block that starts at this page, or `USED`.
    order: Vec<u8>,
}

const USED: u8 = u8::MAX;

impl Buddy {
    /// All of `blocks` blocks of the highest order free.
    pub(crate) fn new(blocks: u32) -> Buddy {
        let pages = (blocks as usize) << ORDER_MAX;
        let mut buddy = Buddy {
            head: [NONE; ORDER_MAX + 1],
            next: vec![NONE; pages],
            prev: vec![NONE; pages],
            order: vec![USED; pages],
        };
        // In reverse, so that low pages are handed out first and high ones stay untouched.
        for block in (0..blocks).rev() {
            buddy.push(block << ORDER_MAX, ORDER_MAX);
        }
        buddy
    }

    /// Takes a block of 2^`order` pages, and returns its first page.
    pub(crate) fn take(&mut self, order: usize) -> Option<u32> {
        let from = (order..=ORDER_MAX).find(|o| self.head[*o] != NONE)?;
        let page = self.head[from];
        self.unlink(page, from);
        for split in (order..from).rev() {
            self.push(page + (1 << split), split);
        }
        Some(page)
    }

    /// Gives a block back and merges it with its free buddies.
    pub(crate) fn give(&mut self, page: u32, order: usize) {
        assert!(self.order[page as usize] == USED, "page {page} was given back twice");
        let (mut page, mut order) = (page, order);
        while order < ORDER_MAX {
            let buddy = page ^ (1 << order);
            if usize::from(self.order[buddy as usize]) != order {
                break;
            }
            self.unlink(buddy, order);
            page &= !(1 << order);
            order += 1;
        }
        self.push(page, order);
    }

    #[expect(clippy::cast_possible_truncation, reason = "an order is at most ORDER_MAX")]
    fn push(&mut self, page: u32, order: usize) {
        let head = self.head[order];
        self.next[page as usize] = head;
        self.prev[page as usize] = NONE;
        if head != NONE {
            self.prev[head as usize] = page;
        }
        self.head[order] = page;
        self.order[page as usize] = order as u8;
    }

    fn unlink(&mut self, page: u32, order: usize) {
        let (prev, next) = (self.prev[page as usize], self.next[page as usize]);
        if prev == NONE {
            self.head[order] = next;
        } else {
            self.next[prev as usize] = next;
        }
        if next != NONE {
            self.prev[next as usize] = prev;
        }
        self.order[page as usize] = USED;
    }
}

#[cfg(test)]
mod tests {
    use super::{Buddy, ORDER_MAX};
    use proptest::prelude::{Strategy, prop_assert, proptest};

    proptest! {
        #[test]
        fn blocks_never_overlap_and_all_come_back(ops in proptest::collection::vec((0..=ORDER_MAX, proptest::prelude::any::<u16>()), 1..300)
            .prop_map(|v| v)) {
            let mut buddy = Buddy::new(4);
            let mut held: Vec<(u32, usize)> = Vec::new();
            let mut used = vec![false; 4 << ORDER_MAX];
            for (order, pick) in ops {
                if pick % 3 == 0 && !held.is_empty() {
                    let (page, order) = held.swap_remove(usize::from(pick) % held.len());
                    used[page as usize..page as usize + (1 << order)].fill(false);
                    buddy.give(page, order);
                } else if let Some(page) = buddy.take(order) {
                    prop_assert!(page % (1 << order) == 0);
                    for p in &mut used[page as usize..page as usize + (1 << order)] {
                        prop_assert!(!*p);
                        *p = true;
                    }
                    held.push((page, order));
                }
            }
            for (page, order) in held.drain(..) {
                buddy.give(page, order);
            }
            for _ in 0..4 {
                prop_assert!(buddy.take(ORDER_MAX).is_some());
            }
            prop_assert!(buddy.take(0).is_none());
        }
    }
}
