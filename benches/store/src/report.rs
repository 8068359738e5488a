//! One line a row: JSON on stdout, and for people on stderr.

use crate::clock::Lap;
use serde_json::Value;
use std::fmt::Write;

/// A row's line, field by field.
pub struct Report {
    fields: Vec<(String, Value)>,
}

impl Report {
    pub fn new(row: &str) -> Report {
        Report { fields: vec![("row".into(), row.into())] }
    }

    /// Adds a field.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) -> &mut Report {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// Adds what a phase of `ops` operations took. The rate per second of CPU is the steadier one where the
    /// cores are shared; both count every thread of the process.
    pub fn lap(&mut self, ops: u64, lap: Lap) -> &mut Report {
        let rate = (ops as f64 / lap.seconds).round();
        self.set("ops", ops).set("seconds", round(lap.seconds)).set("ops_per_s", rate);
        let per_cpu = (ops as f64 / (lap.user + lap.system)).round();
        self.set("user_s", round(lap.user)).set("system_s", round(lap.system)).set("ops_per_cpu_s", per_cpu)
    }

    pub fn print(&self) {
        println!("{}", Value::Object(self.fields.iter().cloned().collect()));
        let mut line = String::new();
        for (name, value) in &self.fields {
            let space = if line.is_empty() { "" } else { " " };
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            write!(line, "{space}{name}={text}").expect("a string takes all that is written to it");
        }
        eprintln!("{line}");
    }
}

fn round(seconds: f64) -> f64 {
    (seconds * 1e4).round() / 1e4
}
