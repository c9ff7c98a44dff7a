//! A picture of what `make bench ARGS="-o json"` or `make hammer ARGS="-o json"` measured: plot <report.json> <picture.svg>

use anyhow::{Context as _, Result, bail};
use plotters::coord::Shift;
use plotters::prelude::*;
use serde_json::Value;

/// The columns of the tables, with their colours.
const WAYS: [(&str, RGBColor); 5] = [
    ("calico-ipam", RGBColor(0xb4, 0x53, 0x09)),
    ("direct", RGBColor(0x60, 0xa5, 0xfa)),
    ("agent", RGBColor(0x25, 0x63, 0xeb)),
    ("ahead", RGBColor(0x16, 0xa3, 0x4a)),
    ("two writes", RGBColor(0x9c, 0xa3, 0xaf)),
];
/// Operations in panels from left to right.
const PANELS: [&str; 3] = ["ADD random", "DEL random", "100 ADDs at once"];
/// Milliseconds at the foot and the top of the scale.
const SCALE: (f64, f64) = (1.0, 40_000.0);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(input), Some(output), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        bail!(
            "give the report of `make bench` or `make hammer` with ARGS=\"-o json\", and the name of the picture (.svg)"
        );
    };
    let text = std::fs::read_to_string(&input).with_context(|| input.clone())?;
    let report: Value = serde_json::from_str(&text).with_context(|| input.clone())?;
    if report["rounds"].is_array() {
        return e2e::hammer::picture::draw(&report, &output);
    }
    let sections = report["sections"].as_array().with_context(|| format!("{input}: no sections"))?;
    let area = SVGBackend::new(&output, (1080, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    for (panel, operation) in area.split_evenly((1, PANELS.len())).iter().zip(PANELS) {
        draw(panel, operation, sections)?;
    }
    area.present()?;
    Ok(())
}

/// The median of single calls, or the whole of calls at once, in milliseconds.
fn milliseconds(section: &Value, way: &str, operation: &str) -> Option<f64> {
    let rows = section["rows"].as_array()?;
    let row = rows.iter().find(|row| row["way"] == way && row["operation"] == operation)?;
    row["all"].as_f64().or_else(|| row["spread"]["p50"].as_f64())
}

fn draw(panel: &DrawingArea<SVGBackend<'_>, Shift>, operation: &str, sections: &[Value]) -> Result<()> {
    let width = WAYS.len() as f64 + 1.0;
    let mut chart = ChartBuilder::on(panel)
        .caption(operation, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(56)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..width * sections.len() as f64, (SCALE.0..SCALE.1).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_desc("ms, logarithmic")
        .y_label_formatter(&|value| format!("{value}"))
        .draw()?;
    for (place, section) in sections.iter().enumerate() {
        let left = place as f64 * width;
        for (index, (way, colour)) in WAYS.iter().enumerate() {
            let Some(value) = milliseconds(section, way, operation) else { continue };
            let start = left + index as f64 + 0.5;
            let bar = Rectangle::new([(start, SCALE.0), (start + 0.85, value)], colour.filled());
            let number = if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") };
            let label = Text::new(number, (start + 0.05, value * 1.25), ("sans-serif", 9));
            let drawn = chart.draw_series([bar])?;
            if place == 0 {
                drawn.label(*way).legend(|(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()));
            }
            chart.draw_series([label])?;
        }
        let name = format!("{} blocks", section["blocks"]);
        let (x, y) = chart.backend_coord(&(left + width / 2.0, SCALE.0));
        let style = TextStyle::from(("sans-serif", 11)).pos(plotters::style::text_anchor::Pos::new(
            plotters::style::text_anchor::HPos::Center,
            plotters::style::text_anchor::VPos::Top,
        ));
        let offset = panel.get_pixel_range();
        let at = |line: i32| (x - offset.0.start, y - offset.1.start + 8 + 14 * line);
        panel.draw(&Text::new(name, at(0), style.clone()))?;
        let pods = section["pods"].as_u64().unwrap_or_default();
        panel.draw(&Text::new(format!("{pods} pod{}", if pods == 1 { "" } else { "s" }), at(1), style))?;
    }
    if operation != PANELS[0] {
        return Ok(());
    }
    chart.configure_series_labels().position(SeriesLabelPosition::UpperLeft).border_style(BLACK.mix(0.2)).draw()?;
    Ok(())
}
