//! What a client did and was told, and what a disk may hold for it.
//!
//! Each line is one operation on one key, in the order of that key: `put KEY CONTENT SIZE BEGUN ACKNOWLEDGED` or `delete KEY 0 0
//! BEGUN ACKNOWLEDGED`. The last two are lengths of the write log: when it was asked for, and when its answer had come, or `-` where none
//! came. What was not asked for yet is in no entry up to there; what was answered is durable by the entries up to there.

use std::collections::BTreeMap;

/// An object's content, a number, and its size; none where there is no object.
pub type Value = Option<(u32, u64)>;

struct Step {
    value: Value,
    begun: u64,
    acknowledged: Option<u64>,
}

#[derive(Default)]
pub struct Client {
    keys: BTreeMap<String, Vec<Step>>,
}

impl Client {
    /// # Errors
    /// The line that cannot be read.
    pub fn parse(text: &str) -> Result<Client, String> {
        let mut client = Client::default();
        for line in text.lines() {
            let step = Client::step(line).ok_or_else(|| format!("{line:?} is no operation"))?;
            client.keys.entry(step.0).or_default().push(step.1);
        }
        Ok(client)
    }

    fn step(line: &str) -> Option<(String, Step)> {
        let words: Vec<&str> = line.split(' ').collect();
        let [kind, key, content, size, begun, acknowledged] = words[..] else { return None };
        let value = match kind {
            "put" => Some((content.parse().ok()?, size.parse().ok()?)),
            "delete" => None,
            _ => return None,
        };
        let acknowledged = match acknowledged {
            "-" => None,
            end => Some(end.parse().ok()?),
        };
        Some((key.to_owned(), Step { value, begun: begun.parse().ok()?, acknowledged }))
    }

    /// Operations, and how many of them were answered.
    pub fn counts(&self) -> (usize, usize) {
        let steps = || self.keys.values().flatten();
        (steps().count(), steps().filter(|step| step.acknowledged.is_some()).count())
    }

    /// Holds what a disk has against what it may have when the log is cut after byte `cut`.
    ///
    /// # Errors
    /// The first key that differs.
    pub fn compare(&self, found: &BTreeMap<String, (u32, u64)>, cut: u64) -> Result<(), String> {
        if let Some(key) = found.keys().find(|key| !self.keys.contains_key(*key)) {
            return Err(format!("object {key} was never written"));
        }
        for (key, steps) in &self.keys {
            let value = found.get(key).copied();
            let told = steps.iter().rposition(|step| step.acknowledged.is_some_and(|end| end <= cut));
            let least = told.and_then(|n| steps[n].value);
            let since = steps.iter().skip(told.map_or(0, |n| n + 1)).filter(|step| step.begun < cut);
            let mut may = std::iter::once(least).chain(since.map(|step| step.value));
            if !may.any(|may| may == value) {
                return Err(format!(
                    "object {key} is {value:?} (content, size), but {least:?} was acknowledged, and nothing since would make it so"
                ));
            }
        }
        Ok(())
    }
}

/// The content of which a block of an object's body is: each block of 4 KiB repeats the number of the content and its own.
pub fn content_of(block: usize, bytes: &[u8]) -> Option<u32> {
    let (content, _) = bytes.split_first_chunk::<4>()?;
    let number = u32::try_from(block).ok()?.to_le_bytes();
    let word = [content.as_slice(), &number].concat();
    let same = bytes.chunks(8).all(|chunk| word.starts_with(chunk));
    same.then_some(u32::from_le_bytes(*content))
}
