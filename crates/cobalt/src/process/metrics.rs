//! The numbers of a process for Prometheus: those of its report, read when they are asked for.

use crate::control::Report;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

type Labels = Vec<(String, String)>;

/// The report as metrics.
pub fn of(report: &Report) -> Registry {
    let mut registry = Registry::with_prefix("cobalt");
    let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let by_target = |value: fn(&crate::control::Target) -> u64| {
        let family = Family::<Labels, Gauge>::default();
        for target in &report.targets {
            family.get_or_create(&vec![("target".into(), target.name.clone())]).set(gauge(value(target)));
        }
        family
    };
    registry.register("target_up", "Whether the target serves", by_target(|t| u64::from(t.up)));
    registry.register("target_total_bytes", "Size of the data region", by_target(|t| t.total));
    registry.register("target_used_bytes", "Bytes of it that objects hold", by_target(|t| t.used));
    registry.register("target_free_bytes", "Bytes of it that are free", by_target(|t| t.free));
    for (name, help, value) in [
        ("arena_limit_bytes", "Payload memory", report.arena.limit),
        ("arena_used_bytes", "Payload memory in use", report.arena.in_use),
    ] {
        let metric = Gauge::<i64>::default();
        metric.set(gauge(value));
        registry.register(name, help, metric);
    }
    for (name, count) in &report.counters {
        let metric = Counter::<u64>::default();
        metric.inc_by(*count);
        registry.register(name.clone(), "Exact count since the process started", metric);
    }
    registry
}

#[cfg(test)]
mod tests {
    use super::of;
    use crate::control::{Report, Target};

    #[test]
    fn counters_and_targets_are_metrics() {
        let target = Target { name: "t0".into(), up: true, used: 4096, ..Target::default() };
        let report = Report {
            targets: vec![target],
            counters: [("data_writes".to_owned(), 12)].into(),
            ..Report::default()
        };
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &of(&report)).unwrap();
        for line in ["cobalt_data_writes_total 12", "cobalt_target_used_bytes{target=\"t0\"} 4096"] {
            assert!(text.contains(line), "{text}");
        }
    }
}
