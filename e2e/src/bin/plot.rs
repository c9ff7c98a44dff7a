//! A picture of what `make bench ARGS="-o json"` or `make hammer ARGS="-o json"` measured: plot <report.json> <picture.svg>

use anyhow::{Context as _, Result, bail};
use e2e::picture::colour::{BLUE, BROWN, GREEN, GREY, LIGHT};
use e2e::picture::{self, Panel};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;

/// The columns of the tables, with their colours.
const WAYS: [(&str, RGBColor); 5] =
    [("calico-ipam", BROWN), ("direct", LIGHT), ("agent", BLUE), ("ahead", GREEN), ("two writes", GREY)];
/// Operations in panels one below the other, with their captions.
const PANELS: [(&str, &str); 3] = [
    ("ADD random", "ADD, random address: p50"),
    ("DEL random", "DEL, random address: p50"),
    ("100 ADDs at once", "100 ADDs at once: until the last had ended"),
];

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
    let (area, panels) = picture::panels(&output, PANELS.len() as u32)?;
    for (panel, (operation, caption)) in panels.iter().zip(PANELS) {
        draw(panel, operation, caption, sections)?;
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

fn draw(panel: &Panel<'_>, operation: &str, caption: &str, sections: &[Value]) -> Result<()> {
    let values = sections.iter().flat_map(|section| WAYS.map(|(way, _)| milliseconds(section, way, operation)));
    let (least, most) = picture::decades(values.flatten());
    let present = |way: &str| sections.iter().any(|section| milliseconds(section, way, operation).is_some());
    let legend: Vec<(&str, RGBColor)> = WAYS.into_iter().filter(|(way, _)| present(way)).collect();
    // A group of bars, and as much space as one bar takes.
    let width = legend.len() as f64 + 1.0;
    let below = picture::headed(panel, caption, &legend)?;
    let mut chart =
        picture::chart(&below, 28).build_cartesian_2d(0.0..width * sections.len() as f64, (least..most).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .max_light_lines(4)
        .y_desc("ms, logarithmic")
        .y_label_formatter(&|value| format!("{value}"))
        .draw()?;
    let centred = |size: i32, vertical| TextStyle::from(("sans-serif", size)).pos(Pos::new(HPos::Center, vertical));
    for (place, section) in sections.iter().enumerate() {
        let left = place as f64 * width + 0.5;
        for (index, (way, colour)) in legend.iter().enumerate() {
            let Some(value) = milliseconds(section, way, operation) else { continue };
            let start = left + index as f64;
            chart.draw_series([Rectangle::new([(start + 0.06, least), (start + 0.94, value)], colour.filled())])?;
            let number = if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") };
            let text = Text::new(number, (0, -2), centred(13, VPos::Bottom));
            chart.draw_series([EmptyElement::at((start + 0.5, value)) + text])?;
        }
        let pods = section["pods"].as_u64().unwrap_or_default();
        let name = format!("{} blocks, {pods} pod{} on the node", section["blocks"], if pods == 1 { "" } else { "s" });
        let (x, y) = chart.backend_coord(&(left + (width - 1.0) / 2.0, least));
        let (right, down) = below.get_pixel_range();
        below.draw(&Text::new(name, (x - right.start, y - down.start + 8), centred(13, VPos::Top)))?;
    }
    Ok(())
}
