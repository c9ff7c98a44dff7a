//! What the pictures of measurements have in common: panels one below the other, each with a caption and a legend above
//! its chart, where they hide nothing.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A part of a picture.
pub type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Colours that keep apart on white, in every picture for the same.
pub mod colour {
    use plotters::style::RGBColor;

    /// An agent's.
    pub const BLUE: RGBColor = RGBColor(0x25, 0x63, 0xeb);
    /// Less of the same.
    pub const LIGHT: RGBColor = RGBColor(0x60, 0xa5, 0xfa);
    /// Ahead of time, or given back.
    pub const GREEN: RGBColor = RGBColor(0x16, 0xa3, 0x4a);
    /// Somebody else's, or fixed.
    pub const BROWN: RGBColor = RGBColor(0xb4, 0x53, 0x09);
    /// For comparison.
    pub const GREY: RGBColor = RGBColor(0x9c, 0xa3, 0xaf);
}

/// Width of a picture, which a page of text shows at about its size.
pub const WIDTH: u32 = 900;
/// Height of one panel.
pub const HEIGHT: u32 = 240;
/// Room for the numbers at the left of a chart, and for their unit.
const LEFT: u32 = 64;
/// Left of that: letters that stand upright reach beyond it.
const EDGE: u32 = 8;
const HEAD: i32 = 28;
/// Of a letter of the legend, generously: browsers choose the font.
const LETTER: i32 = 7;

/// A white picture with so many panels. It is white in pages with dark backgrounds, too.
///
/// # Errors
/// The file cannot be written.
pub fn panels(file: &str, count: u32) -> Result<(Panel<'_>, Vec<Panel<'_>>)> {
    let picture = SVGBackend::new(file, (WIDTH, HEIGHT * count)).into_drawing_area();
    picture.fill(&WHITE)?;
    let panels = picture.split_evenly((count as usize, 1));
    Ok((picture, panels))
}

/// Writes a panel's caption, and at its right what each colour stands for. What is left below is for the chart.
///
/// # Errors
/// It cannot be drawn.
pub fn headed<'a>(panel: &Panel<'a>, caption: &str, legend: &[(&str, RGBColor)]) -> Result<Panel<'a>> {
    let (head, chart) = panel.split_vertically(HEAD);
    let middle = Pos::new(HPos::Left, VPos::Center);
    let caption_style = TextStyle::from(("sans-serif", 18)).pos(middle);
    head.draw(&Text::new(caption.to_owned(), ((EDGE + LEFT) as i32, HEAD / 2 + 2), caption_style))?;
    let width = |name: &str| name.chars().count() as i32 * LETTER + 34;
    let mut x = WIDTH as i32 - 12 - legend.iter().map(|(name, _)| width(name)).sum::<i32>();
    for (name, colour) in legend {
        let top = HEAD / 2 - 3;
        head.draw(&Rectangle::new([(x, top), (x + 10, top + 10)], colour.filled()))?;
        head.draw(&Text::new(
            (*name).to_owned(),
            (x + 15, HEAD / 2 + 2),
            TextStyle::from(("sans-serif", 14)).pos(middle),
        ))?;
        x += width(name);
    }
    Ok(chart)
}

/// A chart on what [`headed`] left of a panel: as wide as those of all panels, with so much room for what stands under it.
pub fn chart<'a, 'b>(below: &'a Panel<'b>, under: u32) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut chart = ChartBuilder::on(below);
    chart.margin_left(EDGE).margin_right(16).margin_top(4).x_label_area_size(under).y_label_area_size(LEFT);
    chart
}

/// Where a logarithmic scale begins and ends that shows these: with room below the least, and for a number above the
/// highest.
pub fn decades(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (least, most) =
        values.filter(|v| *v > 0.0).fold((f64::MAX, f64::MIN), |(least, most), v| (least.min(v), most.max(v)));
    if least > most {
        return (1.0, 10.0);
    }
    (10f64.powf((least * 0.6).log10().floor()), most * 2.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_begins_at_a_power_of_ten_below_everything_and_leaves_room_above() {
        assert_eq!(decades([340.0, 3600.0].into_iter()), (100.0, 9000.0));
        assert_eq!(decades([106.0, 0.0].into_iter()), (10.0, 265.0));
        assert_eq!(decades(std::iter::empty()), (1.0, 10.0));
    }
}
