//! Results on stdout: aligned columns for people, JSON with a schema version for programs.

use super::failure::Failure;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use serde::Serialize;
use serde_json::{Map, Value};
use std::io::Write;

/// Version of the JSON of every command. Rises when a field goes or changes its meaning; new fields do not count.
pub const SCHEMA_VERSION: u32 = 1;

/// Prints `value`, an object, with `schema_version` in it.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let failed = |e: serde_json::Error| Failure::new("the result cannot be printed as JSON").cause(e);
    let mut object = Map::new();
    object.insert("schema_version".into(), SCHEMA_VERSION.into());
    match serde_json::to_value(value).map_err(failed)? {
        Value::Object(fields) => object.extend(fields),
        other => {
            object.insert("value".into(), other);
        }
    }
    let text = serde_json::to_string_pretty(&object).map_err(failed)?;
    line(&text)
}

/// Prints a line on stdout. A reader that closed its end has seen enough.
pub fn line(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new("cannot write to stdout").cause(e))
        }
        _ => Ok(()),
    }
}

/// Prints columns without borders. Those whose header begins with `>` are aligned to the right.
pub fn table(headers: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    let right = |i: usize| headers.get(i).is_some_and(|h| h.starts_with('>'));
    let align = |i: usize| if right(i) { CellAlignment::Right } else { CellAlignment::Left };
    table.set_header(
        headers.iter().enumerate().map(|(i, h)| Cell::new(h.trim_start_matches('>')).set_alignment(align(i))),
    );
    for row in rows {
        table.add_row(row.into_iter().enumerate().map(|(i, c)| Cell::new(c).set_alignment(align(i))));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    line(&text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"))
}

/// A size for people: three digits and a binary unit.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1 << 20, "1.00 MiB"),
            (268_435_456, "256 MiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
