//! Latencies over time as an SVG: a point for each interval's p99.9, by whether a checkpoint ran.

use crate::tail::{Sample, percentile};
use plotters::prelude::{
    ChartBuilder, Circle, Color, IntoDrawingArea, IntoLogRange, RGBColor, SVGBackend, SeriesLabelPosition,
    WHITE,
};
use std::path::Path;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(20);
const SIZE: (u32, u32) = (1200, 500);

/// Draws.
pub fn draw(path: &Path, samples: &[Sample]) -> anyhow::Result<()> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let seconds = samples.iter().map(|s| s.at.as_secs_f64()).fold(0.1, f64::max);
    let slowest = samples.iter().map(|s| s.took.as_secs_f64() * 1e6).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(&root)
        .caption("4 KiB durable writes, p99.9 of each 20 ms", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..seconds, (10.0..slowest * 1.5).log_scale())?;
    chart.configure_mesh().x_desc("seconds").y_desc("microseconds").draw()?;
    let series = [
        ("no checkpoint", false, RGBColor(40, 110, 180)),
        ("checkpoint running", true, RGBColor(215, 90, 20)),
    ];
    for (name, beside, color) in series {
        let points = points(samples, beside);
        chart
            .draw_series(points.into_iter().map(|point| Circle::new(point, 2, color.filled())))?
            .label(name)
            .legend(move |at| Circle::new(at, 4, color.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .border_style(RGBColor(0, 0, 0))
        .draw()?;
    root.present()?;
    Ok(())
}

fn points(samples: &[Sample], beside: bool) -> Vec<(f64, f64)> {
    let mut by_interval = std::collections::BTreeMap::<u128, Vec<Duration>>::new();
    for sample in samples.iter().filter(|s| s.beside == beside) {
        by_interval.entry(sample.at.as_nanos() / INTERVAL.as_nanos()).or_default().push(sample.took);
    }
    let middle = |n: u128| (n as f64 + 0.5) * INTERVAL.as_secs_f64();
    by_interval
        .into_iter()
        .map(|(n, mut took)| {
            took.sort_unstable();
            (middle(n), percentile(&took, 999))
        })
        .collect()
}
