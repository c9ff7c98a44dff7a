//! A picture of what `make hammer ARGS="-o json"` measured: throughput, times and conflicts, round by round.

use anyhow::{Context as _, Result};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use serde_json::Value;

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const BLUE: RGBColor = RGBColor(0x25, 0x63, 0xeb);
const LIGHT: RGBColor = RGBColor(0x60, 0xa5, 0xfa);
const GREEN: RGBColor = RGBColor(0x16, 0xa3, 0x4a);
const BROWN: RGBColor = RGBColor(0xb4, 0x53, 0x09);
/// Lines of the panel of times: the operation, which percentile, and its colour.
const TIMES: [(&str, &str, RGBColor); 4] = [
    ("ADD random", "p50", LIGHT),
    ("ADD random", "p99", BLUE),
    ("ADD fixed", "p99", BROWN),
    ("DEL random", "p99", GREEN),
];

/// A line of a panel.
struct Line {
    name: String,
    colour: RGBColor,
    /// By round; nothing where a round has no such figure.
    values: Vec<Option<f64>>,
}

/// Draws a report, as JSON, to a file.
///
/// # Errors
/// It is no report of this tool, or the file cannot be written.
pub fn draw(report: &Value, output: &str) -> Result<()> {
    let rounds = report["rounds"].as_array().context("the report has no rounds")?;
    let area = SVGBackend::new(output, (1080, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let panels = area.split_evenly((1, 3));
    let names: Vec<&str> = rounds.iter().map(|round| round["name"].as_str().unwrap_or_default()).collect();
    let figure = |field: &str| rounds.iter().map(|round| round[field].as_f64().filter(|v| *v > 0.0)).collect();
    let line = |name: &str, colour, field: &str| Line { name: name.to_owned(), colour, values: figure(field) };

    let throughput = [line("ADD", BLUE, "adds_per_second"), line("DEL", GREEN, "dels_per_second")];
    let most = highest(&throughput);
    chart(&panels[0], "calls in a second", &names, 0.0..most * 1.2, &throughput, "1/s")?;

    let times = TIMES.map(|(operation, percentile, colour)| {
        let values = rounds.iter().map(|round| milliseconds(round, operation, percentile)).collect();
        Line { name: format!("{operation} {percentile}"), colour, values }
    });
    let most = highest(&times);
    chart(&panels[1], "time of a call", &names, (1.0..most * 4.0).log_scale(), &times, "ms, logarithmic")?;

    let conflicts = [Line {
        name: "conflicts per ADD".to_owned(),
        colour: BROWN,
        values: rounds.iter().map(|round| round["conflicts_per_add"].as_f64()).collect(),
    }];
    let most = highest(&conflicts).max(0.01);
    chart(&panels[2], "conflicts for one ADD", &names, 0.0..most * 1.2, &conflicts, "")?;
    area.present()?;
    Ok(())
}

fn highest(lines: &[Line]) -> f64 {
    lines.iter().flat_map(|line| &line.values).flatten().copied().fold(0.0, f64::max)
}

fn milliseconds(round: &Value, operation: &str, percentile: &str) -> Option<f64> {
    let operations = round["operations"].as_array()?;
    operations.iter().find(|row| row["operation"] == operation)?["spread"][percentile].as_f64()
}

fn chart<Y>(panel: &Panel<'_>, caption: &str, names: &[&str], scale: Y, lines: &[Line], unit: &str) -> Result<()>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(panel)
        .caption(caption, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(RangedCoordf64::from(-0.5..names.len() as f64 - 0.5), scale)?;
    let name = |at: &f64| {
        let whole = at.fract().abs() < 1e-6 && *at >= 0.0;
        whole.then(|| names.get(*at as usize)).flatten().map_or(String::new(), |name| (*name).to_owned())
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(names.len() + 2)
        .x_label_formatter(&name)
        .x_desc("round")
        .y_desc(unit)
        .y_label_formatter(&|value| format!("{}", (value * 1e6).round() / 1e6))
        .draw()?;
    for Line { name, colour, values } in lines {
        let points: Vec<(f64, f64)> =
            values.iter().enumerate().filter_map(|(round, value)| Some((round as f64, (*value)?))).collect();
        let style = colour.stroke_width(2);
        chart
            .draw_series([PathElement::new(points.clone(), style)])?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], style));
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, 3, colour.filled())))?;
    }
    if lines.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2))
            .draw()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_round_and_every_line_is_in_the_picture() {
        let round = |name: &str| {
            json!({
                "name": name, "adds_per_second": 100.5, "dels_per_second": 0.0, "conflicts_per_add": 0.01,
                "operations": [{"operation": "ADD random", "spread": {"count": 1, "p50": 4.0, "p99": 90.0}}],
            })
        };
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("hammer.svg");
        draw(&json!({"rounds": [round("fill"), round("1"), round("empty")]}), file.to_str().unwrap()).unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        for part in ["calls in a second", "fill", "empty", "ADD random p99", "conflicts for one ADD"] {
            assert!(text.contains(part), "{part} is missing");
        }
    }
}
