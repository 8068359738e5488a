//! docs/format.md is enough to read a target: this reader takes every offset, length and constant from the page's own
//! tables and sentences, walks an image that the store has just written, and compares what it finds with what the store
//! says. The page and the code cannot drift apart, and each number of the page is needed: changed, it fails.

#![allow(clippy::unwrap_used, reason = "a test, with helpers of its own")]

use cobalt_base::checksum::xxh3;
use cobalt_dma::{Arena, ArenaConfig};
use cobalt_reactor::Reactor;
use cobalt_sim::image::ImageDisk;
use cobalt_sim::populate::{self, Moment, limits, populate};
use cobalt_store::superblock::{Superblock, Verdict, read_all};
use cobalt_store::tree::TreeId;
use cobalt_store::{OpenOptions, RecordRow, Regions, Store, TreeRow, dump_journal};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

const PAGE: &str = include_str!("../../../docs/format.md");

type Doubt<T> = Result<T, String>;

fn same<T: PartialEq + Debug>(what: &str, page: T, code: T) -> Doubt<()> {
    if page == code {
        Ok(())
    } else {
        Err(format!("{what}: the page leads to {page:?}, the store says {code:?}"))
    }
}

/// A section of the page: its text, and the rows of its first table.
struct Section {
    text: String,
    rows: Vec<Vec<String>>,
}

fn section(page: &str, title: &str) -> Doubt<Section> {
    let from = page.find(&format!("\n## {title}")).ok_or_else(|| format!("no section {title}"))?;
    let rest = &page[from + 4..];
    let text = rest[..rest.find("\n## ").unwrap_or(rest.len())].to_owned();
    let mut rows = Vec::new();
    for line in
        text.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'))
    {
        rows.push(line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect());
    }
    Ok(Section { text: text.replace('\n', " "), rows: rows.split_off(rows.len().min(2)) })
}

/// A number, with commas between thousands.
fn number(text: &str) -> Doubt<u64> {
    text.trim().replace(',', "").parse().map_err(|_| format!("not a number: {text}"))
}

/// What follows `mark` in a text, up to one of `ends`.
fn after<'a>(text: &'a str, mark: &str, ends: &[char]) -> Doubt<&'a str> {
    let from = text.find(mark).ok_or_else(|| format!("the page does not say {mark:?}"))? + mark.len();
    let rest = &text[from..];
    Ok(&rest[..rest.find(ends).unwrap_or(rest.len())])
}

fn hex(text: &str) -> Doubt<u64> {
    u64::from_str_radix(text, 16).map_err(|_| format!("not hexadecimal: {text}"))
}

#[derive(Clone, Debug)]
struct Field {
    at: usize,
    bytes: usize,
    name: String,
}

/// The fields of a structure, which they fill from 0 to `size` without a hole.
struct Layout(Vec<Field>);

impl Layout {
    fn of(section: &Section, size: usize) -> Doubt<Layout> {
        let mut fields = Vec::new();
        for row in &section.rows {
            let [at, bytes, name] = row.as_slice() else { return Err(format!("not three cells: {row:?}")) };
            let ats: Vec<&str> = at.split(", ").collect();
            let bytes: Vec<u64> = match (bytes.strip_suffix(" each"), bytes.split_once(" × ")) {
                (Some(each), _) => vec![number(each)?; ats.len()],
                (_, Some((count, each))) => vec![number(count)? * number(each)?],
                _ => bytes.split(", ").map(number).collect::<Doubt<_>>()?,
            };
            let separator = if name.contains("; ") && ats.len() > 1 { "; " } else { ", " };
            let names: Vec<&str> =
                if ats.len() > 1 { name.split(separator).collect() } else { vec![name.as_str()] };
            if (ats.len(), ats.len()) != (bytes.len(), names.len()) {
                return Err(format!("cells of different lengths: {row:?}"));
            }
            for ((at, bytes), name) in ats.iter().zip(bytes).zip(names) {
                let name = name.trim().to_owned();
                fields.push(Field { at: number(at)? as usize, bytes: bytes as usize, name });
            }
        }
        fields.sort_by_key(|field| field.at);
        let mut end = 0;
        for field in &fields {
            same(&format!("where {} begins", field.name), field.at, end)?;
            end = field.at + field.bytes;
        }
        // Slots go on behind a node's header.
        let slots =
            fields.last().filter(|field| field.name.starts_with("slots")).map_or(0, |field| field.bytes);
        same("where the structure ends", end - slots, size)?;
        Ok(Layout(fields))
    }

    fn field(&self, name: &str) -> Doubt<&Field> {
        self.0.iter().find(|field| field.name.starts_with(name)).ok_or_else(|| format!("no field {name}"))
    }

    fn bytes<'a>(&self, image: &'a [u8], name: &str) -> Doubt<&'a [u8]> {
        let Field { at, bytes, .. } = self.field(name)?;
        image.get(*at..at + bytes).ok_or_else(|| format!("{name} lies outside"))
    }

    fn number(&self, image: &[u8], name: &str) -> Doubt<u64> {
        le(self.bytes(image, name)?)
    }

    /// The sum of the structure with the field of that name zero.
    fn sum(&self, image: &[u8], name: &str, seed: u64) -> Doubt<u64> {
        let Field { at, bytes, .. } = self.field(name)?;
        let mut image = image.to_vec();
        image.get_mut(*at..at + bytes).ok_or("the checksum lies outside")?.fill(0);
        Ok(xxh3(seed, &image))
    }

    fn magic(&self, image: &[u8]) -> Doubt<()> {
        let Field { name, .. } = self.field("magic")?;
        same("magic", name.split('`').nth(1).unwrap_or_default().as_bytes(), self.bytes(image, "magic")?)
    }

    fn zeros(&self, image: &[u8]) -> Doubt<()> {
        for field in self.0.iter().filter(|field| field.name == "zero") {
            let zero = image[field.at..field.at + field.bytes].iter().all(|b| *b == 0);
            same(&format!("zeros at {}", field.at), true, zero)?;
        }
        Ok(())
    }
}

fn le(bytes: &[u8]) -> Doubt<u64> {
    if bytes.len() > 8 {
        return Err(format!("a number of {} bytes", bytes.len()));
    }
    Ok(bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

/// `block 8, generation 8, checksum 8`: names and lengths of parts that follow each other.
fn parts(text: &str) -> Doubt<Vec<(String, usize)>> {
    let part = |part: &str| {
        let (name, bytes) = part.trim().rsplit_once(' ').ok_or_else(|| format!("no length: {part}"))?;
        Ok((name.to_owned(), number(bytes)? as usize))
    };
    text.split(", ").map(part).collect()
}

fn split<'a>(bytes: &'a [u8], parts: &[(String, usize)]) -> Doubt<Vec<&'a [u8]>> {
    let mut at = 0;
    let mut out = Vec::new();
    for (name, len) in parts {
        out.push(bytes.get(at..at + len).ok_or_else(|| format!("{name} lies outside"))?);
        at += len;
    }
    same("bytes of the parts", at, bytes.len())?;
    Ok(out)
}

/// An image of the meta region, read by the page.
struct Reader<'a> {
    page: &'a str,
    meta: &'a [u8],
    /// Numbers that the superblock gives: B, J, n, the node size.
    b: u64,
    j: u64,
    n: u64,
    node_size: u64,
}

/// What a walk of the trees gives.
#[derive(Default)]
struct Walked {
    rows: [Vec<(Vec<u8>, Vec<u8>)>; 4],
    blocks: BTreeSet<u64>,
}

impl Reader<'_> {
    /// A place or a length, as the first table writes them.
    fn value(&self, text: &str) -> Doubt<u64> {
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

    fn place(&self, what: &str) -> Doubt<(usize, usize)> {
        let region = section(self.page, "Meta region")?;
        let row = region.rows.iter().find(|row| row[2].starts_with(what)).ok_or(format!("no {what}"))?;
        Ok((self.value(&row[0])? as usize, self.value(&row[1])? as usize))
    }

    /// Each piece of the region begins where the one before ends.
    fn regions_touch(&self) -> Doubt<()> {
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

    fn piece(&self, what: &str) -> Doubt<&[u8]> {
        let (at, len) = self.place(what)?;
        self.meta.get(at..at + len).ok_or_else(|| format!("{what} lies outside"))
    }

    fn target_seed(&self, name: &str, target: &[u8]) -> Doubt<u64> {
        let text = self.page.replace('\n', " ");
        Ok(xxh3(hex(after(&text, &format!("{name} seed is xxh3(0x"), &[','])?)?, target))
    }

    fn walk(&self, layout: &Layout, sb: &[u8], target: &[u8]) -> Doubt<Walked> {
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

    fn node(&self, tree: usize, level: u64, referrer: [u64; 3], seed: u64, walked: &mut Walked) -> Doubt<()> {
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
    fn records(&self, at: u64, chain: u64, target: &[u8], rows: &[RecordRow]) -> Doubt<usize> {
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
    fn payload(&self, page: &Section, mut payload: &[u8], row: &RecordRow) -> Doubt<()> {
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

/// Where a node's slots begin, and the length of each.
fn slots(page: &Section) -> Doubt<(usize, usize)> {
    let row = page.rows.iter().find(|row| row[2].starts_with("slots")).ok_or("no slots")?;
    Ok((number(&row[0])? as usize, number(row[1].trim_end_matches(" each"))? as usize))
}

fn varint(bytes: &mut &[u8]) -> Doubt<u64> {
    let (mut n, mut shift) = (0, 0);
    loop {
        let (byte, rest) = bytes.split_first().ok_or("a number is cut")?;
        *bytes = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(n);
        }
        shift += 7;
        if shift > 63 {
            return Err("a number is too long".into());
        }
    }
}

/// `{chunk size u32, extents: list of (first block u64, blocks u32), ...}`, all numbers in postcard's form, flattened; a list
/// begins with its count.
fn postcard(spec: &str, mut bytes: &[u8]) -> Doubt<BTreeMap<String, Vec<u64>>> {
    let mut out = BTreeMap::new();
    let mut rest = spec;
    while !rest.is_empty() {
        let list = rest.find(": list of ").filter(|at| rest.find(", ").is_none_or(|comma| *at < comma));
        let (name, item, len) = match list {
            Some(at) => {
                let item = &rest[at + ": list of ".len()..];
                let end = item.find(')').map_or(item.find(", ").unwrap_or(item.len()), |close| {
                    if item.starts_with('(') { close + 1 } else { item.find(", ").unwrap_or(item.len()) }
                });
                (&rest[..at], &item[..end], at + ": list of ".len() + end)
            }
            None => {
                let end = rest.find(", ").unwrap_or(rest.len());
                let (name, kind) = rest[..end].rsplit_once(' ').ok_or("a field without a type")?;
                known_type(kind)?;
                (name, kind, end)
            }
        };
        let per = item.split(", ").count() as u64;
        let kinds =
            item.trim_matches(['(', ')']).split(", ").map(|part| part.rsplit(' ').next().unwrap_or(part));
        for kind in kinds {
            known_type(kind)?;
        }
        let count = if list.is_some() { varint(&mut bytes)? } else { 1 };
        let mut values = Vec::new();
        for _ in 0..count.checked_mul(per).filter(|n| *n < 100_000).ok_or("too many")? {
            values.push(varint(&mut bytes)?);
        }
        out.insert(name.trim().to_owned(), values);
        rest = rest[len..].trim_start_matches(", ");
    }
    same("bytes after a value", 0, bytes.len())?;
    Ok(out)
}

/// The types that the page may give a number.
fn known_type(kind: &str) -> Doubt<()> {
    same("a type", true, ["u32", "u64"].contains(&kind))
}

/// A key by its spec, `1, fid 16`: the kind byte, if it has one, and the bytes after it.
fn key<'a>(spec: &str, key: &'a [u8]) -> Option<&'a [u8]> {
    let (kind, rest) = spec.split_once(", ").unwrap_or((spec, ""));
    let (first, bytes) = key.split_first()?;
    let len = if rest.is_empty() { 0 } else { rest.rsplit_once(' ')?.1.parse().ok()? };
    (kind.parse() == Ok(*first) && bytes.len() == len).then_some(bytes)
}

fn braces(text: &str) -> Doubt<&str> {
    after(text, "postcard {", &['}'])
}

/// The rows of the trees, by the page, beside what the store makes of them.
fn rows_agree(page: &str, walked: &Walked, rows: &[Vec<TreeRow>; 4]) -> Doubt<()> {
    let cob = section(page, "Cob tree")?;
    let extmap = section(page, "Extent-map tree")?;
    let balloc = section(page, "Allocator tree")?;
    let ctg = section(page, "Catalogue tree")?;
    let fid_len = parts(after(&cob.text, "A fid is ", &['.'])?.replace(" and ", ", ").as_str())?;
    let cob_value = braces(&cob.rows[1][1])?;
    known_type(after(&cob.rows[0][1], "postcard ", &[':'])?)?;
    for (tree, (found, says)) in walked.rows.iter().zip(rows).enumerate() {
        same(&format!("rows of tree {tree}"), found.len(), says.len())?;
    }
    let fid = |bytes: &[u8]| {
        let parts = split(bytes, &fid_len)?;
        Ok::<_, String>((be(parts[0]), be(parts[1])))
    };
    for ((k, value), row) in walked.rows[0].iter().zip(&rows[0]) {
        let (at, bytes) =
            cob.rows.iter().enumerate().find_map(|(i, r)| Some((i, key(&r[0], k)?))).ok_or("no key")?;
        match (at, row) {
            (0, TreeRow::CobCount { count }) => same("count", varint(&mut value.as_slice())?, *count)?,
            (1, TreeRow::Cob { fid: f, info }) | (4, TreeRow::Dead { fid: f, info }) => {
                same("fid", fid(bytes)?, (f.session.0, f.counter))?;
                let value = postcard(cob_value, value)?;
                let blocks = info.allocated / 4096;
                let says = [u64::from(info.chunk_size), info.incarnation, info.generation, info.size, blocks];
                let names = ["chunk size", "incarnation", "generation", "size", "blocks"];
                for (name, says) in names.into_iter().zip(says) {
                    same(name, value.get(name), Some(&vec![says]))?;
                }
            }
            (2, TreeRow::Tombstone { fid: f }) => same("fid", fid(bytes)?, (f.session.0, f.counter))?,
            (3, TreeRow::Fence { first, last }) => {
                let len = number(after(&cob.rows[3][1], "last session, ", &[' '])?)?;
                same("bytes of a fence", value.len() as u64, len)?;
                same("fence", (be(bytes), be(value)), (first.0, last.0))?;
            }
            (at, row) => return Err(format!("row {at} of the page is {row:?}")),
        }
    }
    let extmap_key = parts(after(&extmap.text, "Key: ", &['.'])?)?;
    let extmap_value = braces(&extmap.text)?;
    for ((k, value), row) in walked.rows[1].iter().zip(&rows[1]) {
        let TreeRow::Extents { fid: f, offset, len, generation, extents, crcs } = row else {
            return Err(format!("not an extent: {row:?}"));
        };
        let k = split(k, &extmap_key)?;
        same("place", (fid(k[0])?, be(k[1])), ((f.session.0, f.counter), *offset))?;
        let value = postcard(extmap_value, value)?;
        same("len", value.get("len"), Some(&vec![*len]))?;
        same("generation", value.get("generation"), Some(&vec![*generation]))?;
        let flat = extents.iter().flat_map(|e| [e.start, u64::from(e.blocks)]).collect();
        same("extents", value.get("extents"), Some(&flat))?;
        same("checksums", value.get("checksums"), Some(&crcs.iter().map(|c| u64::from(*c)).collect()))?;
    }
    for ((k, value), row) in walked.rows[2].iter().zip(&rows[2]) {
        let (at, bytes) =
            balloc.rows.iter().enumerate().find_map(|(i, r)| Some((i, key(&r[0], k)?))).ok_or("no key")?;
        let bytes_of_value: usize = balloc.rows[at][1]
            .rsplit_once(", ")
            .ok_or("no length")?
            .1
            .trim_end_matches(" bytes")
            .parse()
            .map_err(|_| "no length")?;
        same("bytes of a count", value.len(), bytes_of_value)?;
        match (at, row) {
            (0, TreeRow::GroupSummary { group, free }) => {
                same("group", (be(bytes), le(value)?), (*group, u64::from(*free)))?
            }
            (1, TreeRow::Free { start, blocks }) => {
                same("free", (be(bytes), le(value)?), (*start, u64::from(*blocks)))?
            }
            (at, row) => return Err(format!("row {at} of the page is {row:?}")),
        }
    }
    let number_len = number(after(&ctg.text, "catalogue number ", &[','])?)? as usize;
    for ((k, value), row) in walked.rows[3].iter().zip(&rows[3]) {
        let (number, rest) = k.split_at_checked(number_len).ok_or("a short key")?;
        let found = TreeRow::Entry { ctg: be(number) as u32, key: rest.to_vec(), value: value.clone() };
        same("entry", &found, row)?;
    }
    Ok(())
}

/// What the store itself says of an image.
struct Says {
    meta: Vec<u8>,
    sb: Superblock,
    records: Vec<RecordRow>,
    /// Rows of the checkpoint; none where the journal has changed them since.
    rows: Option<[Vec<TreeRow>; 4]>,
    journal: u64,
}

fn read(page: &str, says: &Says) -> Doubt<()> {
    let sb = &says.sb;
    let title = section(page, "Superblock")?;
    let size = number(after(&title.text, "superblock.rs`, ", &[' '])?)? as usize;
    let layout = Layout::of(&title, size)?;
    let slot = sb.generation % number(after(&title.text, "slot g mod ", &[','])?)?;
    let mut reader = Reader { page, meta: &says.meta, b: 0, j: 0, n: 0, node_size: 0 };
    let block = reader.piece(&format!("superblock slot {slot}, copy 0"))?.to_vec();
    same("both copies", block.as_slice(), reader.piece(&format!("superblock slot {slot}, copy 1"))?)?;
    let block = block.as_slice();
    layout.magic(block)?;
    layout.zeros(block)?;
    let get = |name: &str| layout.number(block, name);
    let version = layout.field("format version")?.name.rsplit_once(' ').ok_or("no version")?.1.to_owned();
    same("format version", get("format version")?, number(&version)?)?;
    let seed = hex(after(&layout.field("checksum: xxh3(")?.name, "xxh3(0x", &[')'])?)?;
    same("sum of the superblock", layout.sum(block, "checksum: xxh3(", seed)?, get("checksum: xxh3(")?)?;
    let target = layout.bytes(block, "target uuid")?;
    same("target", target, sb.target.as_bytes().as_slice())?;
    same("cluster", layout.bytes(block, "cluster uuid")?, sb.cluster.as_bytes().as_slice())?;
    let name = &layout.bytes(block, "name")?[..get("length of the name")? as usize];
    same("name", name, sb.name.as_bytes())?;
    for (name, code) in [
        ("generation", sb.generation),
        ("mount epoch", sb.mount_epoch),
        ("epoch start", sb.epoch_start.0),
        ("checkpoint lsn", sb.checkpoint_lsn.0),
        ("ring offset", sb.journal.offset),
        ("checksum of the header", sb.journal.chain),
        ("bytes of the bitmap", sb.bitmap.len),
        ("xxh3(tree seed)", sb.bitmap.checksum),
        ("bitmap area", u64::from(sb.bitmap.area)),
        ("region length", says.meta.len() as u64),
        ("J", says.journal),
        ("B", sb.geometry.bitmap_len),
        ("n", sb.geometry.node_blocks),
        ("node size", u64::from(sb.geometry.node_size)),
        ("blocks of the data region", sb.data_blocks),
        ("free ones", sb.data_free),
    ] {
        let field = layout.0.iter().find(|field| {
            field.name == name
                || field.name.starts_with(&format!("{name} "))
                || field.name.starts_with(&format!("{name}:"))
                || field.name.starts_with(&format!("{name},"))
        });
        let field = field.ok_or_else(|| format!("no field {name}"))?;
        same(name, le(&block[field.at..field.at + field.bytes])?, code)?;
    }
    (reader.b, reader.j) = (get("B")?, get("J")?);
    (reader.n, reader.node_size) = (sb.geometry.node_blocks, get("node size")?);
    reader.regions_touch()?;
    same("bits in the bitmap", reader.b, (reader.n.div_ceil(8)).next_multiple_of(4096))?;
    let walked = reader.walk(&layout, block, target)?;
    let bitmap = reader.piece(&format!("node bitmap, area {}", sb.bitmap.area))?;
    same("sum of the bitmap", xxh3(reader.target_seed("The tree", target)?, bitmap), sb.bitmap.checksum)?;
    let marked = (0..bitmap.len() as u64 * 8).filter(|b| bitmap[*b as usize / 8] & (1 << (b % 8)) != 0);
    same("used node blocks", &marked.collect::<BTreeSet<u64>>(), &walked.blocks)?;
    let followed = reader.records(sb.journal.offset, sb.journal.chain, target, &says.records)?;
    same("records that follow the superblock", true, followed > 0)?;
    match &says.rows {
        Some(rows) => rows_agree(page, &walked, rows),
        None => {
            // The journal has changed them since; their kinds are those of the page.
            let cob = section(page, "Cob tree")?;
            let known = |k: &[u8]| cob.rows.iter().any(|row| key(&row[0], k).is_some());
            same("keys of the cob tree", true, walked.rows[0].iter().all(|(k, _)| known(k)))
        }
    }
}

fn says() -> Vec<Says> {
    let reactor = Reactor::new_virtual(1).unwrap();
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let made = populate(&ctx).await;
        let arena = Arena::new(ArenaConfig { limit: 16 << 20 }).unwrap();
        let mut all = Vec::new();
        for moment in [&made.closed, &made.busy] {
            let Moment { meta, data, .. } = moment;
            let regions = Regions {
                meta: ImageDisk::new(meta.clone()).region(),
                data: ImageDisk::new(data.clone()).region(),
            };
            let copies = read_all(&regions.meta, &arena).await;
            let valid = copies.into_iter().filter_map(|copy| match copy.verdict {
                Verdict::Valid(sb) => Some(*sb),
                _ => None,
            });
            let sb = valid.max_by_key(|sb| sb.generation).unwrap();
            let options = OpenOptions { limits: limits(), read_only: true, ..OpenOptions::default() };
            let store = Store::open(ctx.clone(), regions.clone(), arena.clone(), options).await.unwrap();
            let mut rows = <[Vec<TreeRow>; 4]>::default();
            for tree in TreeId::ALL {
                rows[tree as usize] = store.rows(tree, &[], usize::MAX).await.unwrap().0;
            }
            let records = dump_journal(&regions, &arena).await.unwrap();
            let rows = (moment.name == "closed").then_some(rows);
            all.push(Says { meta: meta.to_vec(), sb, records, rows, journal: populate::JOURNAL_LEN });
        }
        all
    })
}

#[test]
fn the_page_s_tables_alone_read_a_target() {
    for says in says() {
        read(PAGE, &says).unwrap();
    }
}

#[test]
fn every_number_of_the_tables_is_needed() {
    let says = says();
    let mut changed = 0;
    let mut unseen = Vec::new();
    for (at, line) in PAGE.lines().enumerate() {
        let cells: Vec<&str> = line.split('|').collect();
        if !line.starts_with('|') || !cells[1].contains(|c: char| c.is_ascii_digit()) {
            continue;
        }
        // The first number of a row's first cell, and that of its second: an offset and a length.
        for cell in [1, 2] {
            let Some(digit) = cells[cell].find(|c: char| c.is_ascii_digit()) else { continue };
            let old = cells[cell].as_bytes()[digit];
            let new = if old == b'9' { '1' } else { char::from(old + 1) };
            let mut cells: Vec<String> = cells.iter().map(|cell| (*cell).to_owned()).collect();
            cells[cell].replace_range(digit..=digit, &new.to_string());
            let mut lines: Vec<String> = PAGE.lines().map(str::to_owned).collect();
            lines[at] = cells.join("|");
            let page = lines.join("\n");
            changed += 1;
            if says.iter().all(|says| read(&page, says).is_ok()) {
                unseen.push(lines[at].clone());
            }
        }
    }
    assert!(changed > 80, "{changed} numbers");
    assert!(unseen.is_empty(), "{} of {changed}:\n{}", unseen.len(), unseen.join("\n"));
}
