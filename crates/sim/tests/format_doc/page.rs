//! docs/format.md, taken apart: its sections, the fields of its tables, and the notations in its sentences.

use cobalt_base::checksum::xxh3;
use std::collections::BTreeMap;
use std::fmt::Debug;

pub type Doubt<T> = Result<T, String>;

pub fn same<T: PartialEq + Debug>(what: &str, page: T, code: T) -> Doubt<()> {
    if page == code {
        Ok(())
    } else {
        Err(format!("{what}: the page leads to {page:?}, the store says {code:?}"))
    }
}

/// A section of the page: its text, and the rows of its first table.
pub struct Section {
    pub text: String,
    pub rows: Vec<Vec<String>>,
}

pub fn section(page: &str, title: &str) -> Doubt<Section> {
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
pub fn number(text: &str) -> Doubt<u64> {
    text.trim().replace(',', "").parse().map_err(|_| format!("not a number: {text}"))
}

/// What follows `mark` in a text, up to one of `ends`.
pub fn after<'a>(text: &'a str, mark: &str, ends: &[char]) -> Doubt<&'a str> {
    let from = text.find(mark).ok_or_else(|| format!("the page does not say {mark:?}"))? + mark.len();
    let rest = &text[from..];
    Ok(&rest[..rest.find(ends).unwrap_or(rest.len())])
}

pub fn hex(text: &str) -> Doubt<u64> {
    u64::from_str_radix(text, 16).map_err(|_| format!("not hexadecimal: {text}"))
}

#[derive(Clone, Debug)]
pub struct Field {
    pub at: usize,
    pub bytes: usize,
    pub name: String,
}

/// The fields of a structure, which they fill from 0 to `size` without a hole.
pub struct Layout(pub Vec<Field>);

impl Layout {
    pub fn of(section: &Section, size: usize) -> Doubt<Layout> {
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

    pub fn field(&self, name: &str) -> Doubt<&Field> {
        self.0.iter().find(|field| field.name.starts_with(name)).ok_or_else(|| format!("no field {name}"))
    }

    pub fn bytes<'a>(&self, image: &'a [u8], name: &str) -> Doubt<&'a [u8]> {
        let Field { at, bytes, .. } = self.field(name)?;
        image.get(*at..at + bytes).ok_or_else(|| format!("{name} lies outside"))
    }

    pub fn number(&self, image: &[u8], name: &str) -> Doubt<u64> {
        le(self.bytes(image, name)?)
    }

    /// The sum of the structure with the field of that name zero.
    pub fn sum(&self, image: &[u8], name: &str, seed: u64) -> Doubt<u64> {
        let Field { at, bytes, .. } = self.field(name)?;
        let mut image = image.to_vec();
        image.get_mut(*at..at + bytes).ok_or("the checksum lies outside")?.fill(0);
        Ok(xxh3(seed, &image))
    }

    pub fn magic(&self, image: &[u8]) -> Doubt<()> {
        let Field { name, .. } = self.field("magic")?;
        same("magic", name.split('`').nth(1).unwrap_or_default().as_bytes(), self.bytes(image, "magic")?)
    }

    pub fn zeros(&self, image: &[u8]) -> Doubt<()> {
        for field in self.0.iter().filter(|field| field.name == "zero") {
            let zero = image[field.at..field.at + field.bytes].iter().all(|b| *b == 0);
            same(&format!("zeros at {}", field.at), true, zero)?;
        }
        Ok(())
    }
}

pub fn le(bytes: &[u8]) -> Doubt<u64> {
    if bytes.len() > 8 {
        return Err(format!("a number of {} bytes", bytes.len()));
    }
    Ok(bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
}

pub fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

/// `block 8, generation 8, checksum 8`: names and lengths of parts that follow each other.
pub fn parts(text: &str) -> Doubt<Vec<(String, usize)>> {
    let part = |part: &str| {
        let (name, bytes) = part.trim().rsplit_once(' ').ok_or_else(|| format!("no length: {part}"))?;
        Ok((name.to_owned(), number(bytes)? as usize))
    };
    text.split(", ").map(part).collect()
}

pub fn split<'a>(bytes: &'a [u8], parts: &[(String, usize)]) -> Doubt<Vec<&'a [u8]>> {
    let mut at = 0;
    let mut out = Vec::new();
    for (name, len) in parts {
        out.push(bytes.get(at..at + len).ok_or_else(|| format!("{name} lies outside"))?);
        at += len;
    }
    same("bytes of the parts", at, bytes.len())?;
    Ok(out)
}

/// Where a node's slots begin, and the length of each.
pub fn slots(page: &Section) -> Doubt<(usize, usize)> {
    let row = page.rows.iter().find(|row| row[2].starts_with("slots")).ok_or("no slots")?;
    Ok((number(&row[0])? as usize, number(row[1].trim_end_matches(" each"))? as usize))
}

pub fn varint(bytes: &mut &[u8]) -> Doubt<u64> {
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
pub fn postcard(spec: &str, mut bytes: &[u8]) -> Doubt<BTreeMap<String, Vec<u64>>> {
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
pub fn known_type(kind: &str) -> Doubt<()> {
    same("a type", true, ["u32", "u64"].contains(&kind))
}

/// A key by its spec, `1, fid 16`: the kind byte, if it has one, and the bytes after it.
pub fn key<'a>(spec: &str, key: &'a [u8]) -> Option<&'a [u8]> {
    let (kind, rest) = spec.split_once(", ").unwrap_or((spec, ""));
    let (first, bytes) = key.split_first()?;
    let len = if rest.is_empty() { 0 } else { rest.rsplit_once(' ')?.1.parse().ok()? };
    (kind.parse() == Ok(*first) && bytes.len() == len).then_some(bytes)
}

pub fn braces(text: &str) -> Doubt<&str> {
    after(text, "postcard {", &['}'])
}
