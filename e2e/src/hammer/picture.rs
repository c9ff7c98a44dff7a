//! A picture of what `make hammer ARGS="-o json"` measured: throughput, times and conflicts, round by round.

use anyhow::{Context as _, Result};
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use serde_json::Value;

use crate::picture::colour::{BLUE, BROWN, GREEN, LIGHT};
use crate::picture::{self, Panel};

/// Lines of the panel of times: the operation, which percentile, and its colour.
const TIMES: [(&str, &str, RGBColor); 4] = [
    ("ADD random", "p50", LIGHT),
    ("ADD random", "p99", BLUE),
    ("ADD fixed", "p99", BROWN),
    ("DEL random", "p99", GREEN),
];
const THIN: u32 = 2;
/// Of a line that another one may cover.
const WIDE: u32 = 5;

/// A line of a panel.
struct Line {
    name: String,
    colour: RGBColor,
    width: u32,
    /// By round; nothing where a round has no such figure.
    values: Vec<Option<f64>>,
}

/// Draws a report, as JSON, to a file.
///
/// # Errors
/// It is no report of this tool, or the file cannot be written.
pub fn draw(report: &Value, output: &str) -> Result<()> {
    let rounds = report["rounds"].as_array().context("the report has no rounds")?;
    let (area, panels) = picture::panels(output, 3)?;
    let names: Vec<&str> = rounds.iter().map(|round| round["name"].as_str().unwrap_or_default()).collect();
    let figure = |field: &str| rounds.iter().map(|round| round[field].as_f64().filter(|v| *v > 0.0)).collect();
    let line =
        |name: &str, colour, width, field: &str| Line { name: name.into(), colour, width, values: figure(field) };

    // In every round but the first and the last there are as many DELs as ADDs.
    let throughput = [line("ADD", LIGHT, WIDE, "adds_per_second"), line("DEL", GREEN, THIN, "dels_per_second")];
    let most = throughput.iter().flat_map(figures).fold(0.0, f64::max);
    chart(&panels[0], "Calls in a second", &names, 0.0..most * 1.15, &throughput, "1/s")?;

    let times = TIMES.map(|(operation, percentile, colour)| {
        let values = rounds.iter().map(|round| milliseconds(round, operation, percentile)).collect();
        Line { name: format!("{operation}, {percentile}"), colour, width: THIN, values }
    });
    let (least, most) = picture::decades(times.iter().flat_map(figures));
    chart(&panels[1], "Time of a call", &names, (least..most).log_scale(), &times, "ms, logarithmic")?;

    let conflicts = [line("conflicts", BROWN, THIN, "conflicts_per_add")];
    let most = conflicts.iter().flat_map(figures).fold(0.01, f64::max);
    chart(&panels[2], "Conflicts for one ADD", &names, 0.0..most * 1.15, &conflicts, "conflicts / ADD")?;
    area.present()?;
    Ok(())
}

fn figures(line: &Line) -> impl Iterator<Item = f64> {
    line.values.iter().flatten().copied()
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
    let legend: Vec<(&str, RGBColor)> = lines.iter().map(|line| (line.name.as_str(), line.colour)).collect();
    // One line is named by the caption.
    let below = picture::headed(panel, caption, if lines.len() > 1 { &legend } else { &[] })?;
    let mut chart =
        picture::chart(&below, 40).build_cartesian_2d(RangedCoordf64::from(-0.5..names.len() as f64 - 0.5), scale)?;
    let name = |at: &f64| {
        let whole = at.fract().abs() < 1e-6 && *at >= 0.0;
        whole.then(|| names.get(*at as usize)).flatten().map_or(String::new(), |name| (*name).to_owned())
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .max_light_lines(5)
        .y_labels(5)
        .x_labels(names.len() + 2)
        .x_label_formatter(&name)
        .x_desc("round")
        .y_desc(unit)
        .y_label_formatter(&|value| format!("{}", (value * 1e6).round() / 1e6))
        .draw()?;
    for Line { colour, width, values, .. } in lines {
        let points: Vec<(f64, f64)> =
            values.iter().enumerate().filter_map(|(round, value)| Some((round as f64, (*value)?))).collect();
        chart.draw_series([PathElement::new(points.clone(), colour.stroke_width(*width))])?;
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, (*width).max(3), colour.filled())))?;
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
        for part in ["Calls in a second", "fill", "empty", "ADD random, p99", "Conflicts for one ADD"] {
            assert!(text.contains(part), "{part} is missing");
        }
    }
}
