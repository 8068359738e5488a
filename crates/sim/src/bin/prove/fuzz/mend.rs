//! Makes every checksum of a changed image right again, so that the change gets past them.

use crate::layout::{
    COPIES, HEADER, NODE, RING, Super, nodes, seal_header, seal_node, seal_payload, seal_superblock, set_u64,
    tree_seed, u32_at,
};
use cobalt_base::checksum::xxh3;
use cobalt_sim::image::BLOCK;

/// From the leaves up: nodes, bitmap, journal, superblock. What `sb` says was changed with the rest.
pub fn mend(meta: &mut [u8], sb: &Super) {
    let mut roots = [0u64; 4];
    for node in nodes(meta, sb).into_iter().rev() {
        let sum = seal_node(&mut meta[node.at..node.at + NODE]);
        match node.parent {
            Some((parent, pointer)) => set_u64(meta, sb.node_at(parent) + pointer + 16, sum),
            None => roots[node.tree] = sum,
        }
    }
    let bitmap = sb.bitmap_at(sb.area % 2);
    let sum = xxh3(tree_seed(), &meta[bitmap..bitmap + sb.bitmap_len]);
    mend_ring(meta, sb);
    for (slot, at) in COPIES {
        let copy = &mut meta[at..at + BLOCK];
        if slot == sb.slot {
            for (i, root) in roots.iter().enumerate().filter(|(_, root)| **root != 0) {
                set_u64(copy, 168 + 32 * i + 16, *root);
            }
            set_u64(copy, 304, sum);
        }
        seal_superblock(copy);
    }
}

/// Makes the sums and the chain of the records right again, from the superblock's offset on, as far as their magic goes.
pub fn mend_ring(meta: &mut [u8], sb: &Super) {
    let ring = &mut meta[sb.ring_at()..][..RING];
    let (mut at, mut chain) = (sb.ring_tail % RING / BLOCK * BLOCK, sb.ring_chain);
    for _ in 0..RING / BLOCK {
        if &ring[at..at + 8] != b"COBALTJR" {
            break;
        }
        let payload = (u32_at(ring, at + 44) as usize).min(RING - HEADER);
        let bytes: Vec<u8> = (0..payload).map(|i| ring[(at + HEADER + i) % RING]).collect();
        seal_payload(&mut ring[at..at + HEADER], &bytes);
        set_u64(ring, at + 56, chain);
        chain = seal_header(&mut ring[at..at + HEADER]);
        at = (at + (HEADER + payload).next_multiple_of(BLOCK)) % RING;
    }
}
