//! An image of a meta region, read by the page alone.

use super::page::{
    Doubt, Layout, Section, after, hex, le, number, parts, same, section, slots, split, varint,
};
use cobalt_base::checksum::xxh3;
use cobalt_store::RecordRow;
use std::collections::BTreeSet;

/// An image of the meta region, read by the page.
pub struct Reader<'a> {
    pub page: &'a str,
    pub meta: &'a [u8],
    /// Numbers that the superblock gives: B, J, n, the node size.
    pub b: u64,
    pub j: u64,
    pub n: u64,
    pub node_size: u64,
}

/// What a walk of the trees gives.
#[derive(Default)]
pub struct Walked {
    pub rows: [Vec<(Vec<u8>, Vec<u8>)>; 4],
    pub blocks: BTreeSet<u64>,
}

impl Reader<'_> {
    /// A place or a length, as the first table writes them.
    pub fn value(&self, text: &str) -> Doubt<u64> {
        if let Some(rest) = text.strip_prefix("end − ") {
            return Ok(self.meta.len() as u64 - number(rest)?);
        }
        if let Some((count, each)) = text.split_once(" × ") {
            return Ok(self.value(count)? * self.value(each)?);
        }
        let term = |term: &str| match term {
            "B" => Ok(self.b),
            "2B" => Ok(2 * self.b),
            "J" => Ok(self.j),
            "n" => Ok(self.n),
            "node size" => Ok(self.node_size),
            plain => number(plain),
        };
        text.split(" + ").map(term).sum()
    }

    pub fn place(&self, what: &str) -> Doubt<(usize, usize)> {
        let region = section(self.page, "Meta region")?;
        let row = region.rows.iter().find(|row| row[2].starts_with(what)).ok_or(format!("no {what}"))?;
        Ok((self.value(&row[0])? as usize, self.value(&row[1])? as usize))
    }

    /// Each piece of the region begins where the one before ends.
    pub fn regions_touch(&self) -> Doubt<()> {
        let mut end = 0;
        for row in section(self.page, "Meta region")?.rows {
            let at = self.value(&row[0])?;
            let spare = if row[0].starts_with("end") && at > end { at - end } else { 0 };
            same(&format!("where {} begins", row[2]), at, end + spare)?;
            same("less than a node is spare", true, spare < self.node_size.max(4096))?;
            end = at + self.value(&row[1])?;
        }
        same("the end of the region", end, self.meta.len() as u64)
    }

    pub fn piece(&self, what: &str) -> Doubt<&[u8]> {
        let (at, len) = self.place(what)?;
        self.meta.get(at..at + len).ok_or_else(|| format!("{what} lies outside"))
    }

    pub fn target_seed(&self, name: &str, target: &[u8]) -> Doubt<u64> {
        let text = self.page.replace('\n', " ");
        Ok(xxh3(hex(after(&text, &format!("{name} seed is xxh3(0x"), &[','])?)?, target))
    }

    pub fn walk(&self, layout: &Layout, sb: &[u8], target: &[u8]) -> Doubt<Walked> {
        let roots = layout.field("roots")?;
        let spec = roots.name.rsplit_once(": ").ok_or("no parts of a root")?.1;
        let root_parts = parts(spec)?;
        let each: usize = root_parts.iter().map(|(_, bytes)| bytes).sum();
        same("four roots", 4 * each, roots.bytes)?;
        let mut walked = Walked::default();
        for (tree, root) in sb[roots.at..roots.at + roots.bytes].chunks(each).enumerate() {
            let root = split(root, &root_parts)?;
            let root: Vec<u64> = root.into_iter().map(le).collect::<Doubt<_>>()?;
            same("zeros of a root", 0, root[4])?;
            if root[3] > 0 {
                let seed = self.target_seed("The tree", target)?;
                self.node(tree, root[3] - 1, [root[0], root[1], root[2]], seed, &mut walked)?;
            }
        }
        Ok(walked)
    }

    pub fn node(
        &self,
        tree: usize,
        level: u64,
        referrer: [u64; 3],
        seed: u64,
        walked: &mut Walked,
    ) -> Doubt<()> {
        let page = section(self.page, "Node")?;
        let (slots_at, slot_len) = slots(&page)?;
        let layout = Layout::of(&page, slots_at)?;
        let size = self.node_size as usize;
        let node = self.piece("node blocks")?.chunks(size).nth(referrer[0] as usize).ok_or("no such node")?;
        layout.magic(node)?;
        layout.zeros(node)?;
        let names = layout.field("tree")?.name.split_once(": ").ok_or("no trees")?.1.to_owned();
        same("numbers of trees", 4, names.split(", ").count())?;
        same("tree", layout.number(node, "tree")?, tree as u64)?;
        same("levels below", layout.number(node, "levels below")?, level)?;
        same("own block", layout.number(node, "own block")?, referrer[0])?;
        same("generation", layout.number(node, "generation")?, referrer[1])?;
        same("checksum and its referrer's", layout.number(node, "checksum")?, referrer[2])?;
        same("checksum", layout.sum(node, "checksum", seed)?, referrer[2])?;
        same("a node has one referrer", true, walked.blocks.insert(referrer[0]))?;
        let lengths =
            parts(after(&page.text, "A cell is ", &[])?.split(", key, value").next().unwrap_or(""))?;
        let child = parts(after(&page.text, "value is a child: ", &[';'])?)?;
        let mut end = size;
        let mut last: Option<Vec<u8>> = None;
        for i in 0..layout.number(node, "entries")? as usize {
            let slot = node.get(slots_at + i * slot_len..slots_at + (i + 1) * slot_len);
            let cell = le(slot.ok_or("a slot lies outside")?)? as usize;
            let heads: usize = lengths.iter().map(|(_, bytes)| bytes).sum();
            let heads = split(node.get(cell..cell + heads).ok_or("a cell lies outside")?, &lengths)?;
            let begin = cell + heads.iter().map(|head| head.len()).sum::<usize>();
            let (key, value) = (le(heads[0])? as usize, le(heads[1])? as usize);
            same("cells without a hole", begin + key + value, end)?;
            end = cell;
            let (key, value) = (&node[begin..begin + key], &node[begin + key..begin + key + value]);
            same("keys in order", true, last.as_ref().is_none_or(|last| key > last.as_slice()))?;
            last = Some(key.to_vec());
            if level == 0 {
                walked.rows[tree].push((key.to_vec(), value.to_vec()));
            } else {
                same("the first key of an interior node is empty", i == 0, key.is_empty())?;
                let child: Vec<u64> = split(value, &child)?.into_iter().map(le).collect::<Doubt<_>>()?;
                self.node(tree, level - 1, [child[0], child[1], child[2]], seed, walked)?;
            }
        }
        same("lowest cell", layout.number(node, "offset of the lowest cell")?, end as u64)
    }

    /// The records from a ring offset on.
    pub fn records(&self, at: u64, chain: u64, target: &[u8], rows: &[RecordRow]) -> Doubt<usize> {
        let page = section(self.page, "Journal record")?;
        let size = number(after(&page.text, "a header of ", &[' '])?)? as usize;
        let layout = Layout::of(&page, size)?;
        let seed = self.target_seed("The journal", target)?;
        let ring = self.piece("journal ring")?;
        let (mut at, mut chain, mut count) = (at as usize, chain, 0);
        while let Some(row) = rows.iter().find(|row| row.offset == at as u64) {
            let header = &ring[at..at + size];
            if layout.number(header, "chain")? != chain {
                break;
            }
            layout.magic(header)?;
            layout.zeros(header)?;
            same("target of a record", layout.bytes(header, "target uuid")?, target)?;
            let sum = layout.0.last().ok_or("no fields")?;
            same("sum of a header", layout.sum(header, &sum.name, seed)?, le(&header[sum.at..])?)?;
            same("first lsn", layout.number(header, "lsn of the first")?, row.first.0)?;
            same(
                "last lsn",
                layout.number(header, "lsn of the last")?,
                row.first.0 + u64::from(row.count) - 1,
            )?;
            same("transactions", layout.number(header, "transactions")?, u64::from(row.count))?;
            same("own offset", layout.number(header, "own offset")?, at as u64)?;
            same("mount epoch", layout.number(header, "mount epoch")?, row.epoch)?;
            same("durable", layout.number(header, "durable")?, row.durable.0)?;
            same("named", layout.number(header, "highest superblock generation")?, row.named)?;
            let len = layout.number(header, "bytes of payload")? as usize;
            let payload: Vec<u8> = (0..len).map(|i| ring[(at + size + i) % ring.len()]).collect();
            same(
                "sum of the payload",
                xxh3(seed, &payload),
                layout.number(header, "xxh3(journal seed) of the p")?,
            )?;
            self.payload(&page, &payload, row)?;
            let whole = (size + len).next_multiple_of(4096);
            same("bytes of a record", whole as u64, row.bytes)?;
            chain = le(&header[sum.at..])?;
            at = (at + whole) % ring.len();
            count += 1;
        }
        Ok(count)
    }

    /// The first intent of each transaction is of the kind that its number means.
    pub fn payload(&self, page: &Section, mut payload: &[u8], row: &RecordRow) -> Doubt<()> {
        let prefix = number(after(&page.text, "each transaction as a length of ", &[' '])?)? as usize;
        let kinds = after(&page.text, "is the format): ", &['.'])?;
        let mut firsts = Vec::new();
        let mut intents = 0;
        for _ in 0..row.count {
            let len = le(payload.get(..prefix).ok_or("no length")?)? as usize;
            let body = payload.get(prefix..prefix + len).ok_or("a transaction lies outside")?;
            payload = &payload[prefix + len..];
            let mut body = body;
            let count = varint(&mut body)?;
            firsts.push((intents, varint(&mut body)?));
            intents += count as usize;
        }
        same("bytes after the transactions", 0, payload.len())?;
        same("intents", intents, row.intents.len())?;
        for (at, kind) in firsts {
            let name = kinds.split(", ").find_map(|k| k.trim().strip_prefix(&format!("{kind} ")));
            let name = name.ok_or_else(|| format!("no intent {kind}"))?;
            let says = match name {
                "free step" => "free",
                "superblock named" => "superblock",
                name if name.starts_with("catalogue") => "ctg",
                name => name.split(':').next().unwrap_or(name),
            };
            same(
                &format!("intent {kind}, {name}, is {}", row.intents[at]),
                true,
                row.intents[at].starts_with(says),
            )?;
        }
        Ok(())
    }
}
