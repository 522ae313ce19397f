//! Plots as SVG, by the plotters library.

use anyhow::{Result, anyhow};
use plotters::{coord::ranged1d::SegmentValue, prelude::*};

/// The width of all plots, in pixels: a page's.
const WIDTH: u32 = 860;
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(40, 44, 52);
/// Colours that differ in lightness as well, for readers who can't distinguish hues (after Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

/// A bar, with its name on the left and its value at its end.
pub struct Bar {
    /// Its label.
    pub name: String,
    /// How long it is.
    pub value: f64,
    /// Its kind: bars of one kind have one colour.
    pub kind: usize,
}

/// A curve.
pub struct Curve {
    /// As the legend calls it.
    pub name: String,
    /// Its points; from left to right.
    pub points: Vec<(f64, f64)>,
}

/// Bars that lie, from the top down. They begin at 0, so that their lengths can be compared.
///
/// # Errors
///
/// If it can't be drawn.
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> Result<String> {
    let count = bars.len().max(1);
    let longest = bars.iter().map(|bar| bar.value).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let height = 90 + 24 * u32::try_from(count)?;
    // The first is on top, and the axis goes up.
    let name = |value: &SegmentValue<usize>| match value {
        SegmentValue::Exact(n) | SegmentValue::CenterOf(n) => count
            .checked_sub(n + 1)
            .and_then(|n| bars.get(n))
            .map_or("", |bar| &bar.name)
            .to_owned(),
        SegmentValue::Last => String::new(),
    };
    draw(height, |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(title, (FONT, 17).into_font().color(&INK))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(300)
            .build_cartesian_2d(0.0..longest * 1.12, (0..count - 1).into_segmented())
            .map_err(wrong)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(WHITE)
            .x_label_formatter(&|value| short(*value))
            .y_labels(count)
            .y_label_formatter(&name)
            .label_style((FONT, 13).into_font().color(&INK))
            .x_desc(unit)
            .draw()
            .map_err(wrong)?;
        let places = || bars.iter().enumerate().map(|(n, bar)| (count - 1 - n, bar));
        let bodies = places().map(|(place, bar)| {
            let corners =
                [(0.0, SegmentValue::Exact(place)), (bar.value, SegmentValue::Exact(place + 1))];
            let mut body = Rectangle::new(corners, COLOURS[bar.kind % COLOURS.len()].filled());
            body.set_margin(3, 3, 0, 0);
            body
        });
        chart.draw_series(bodies).map_err(wrong)?;
        let style = (FONT, 12).into_font().color(&INK);
        let values = places().map(|(place, bar)| {
            let at = (bar.value, SegmentValue::CenterOf(place));
            EmptyElement::at(at) + Text::new(short(bar.value), (5, -6), style.clone())
        });
        chart.draw_series(values).map_err(wrong)?;
        Ok(())
    })
}

/// Curves over a logarithmic axis; the other begins at 0.
///
/// # Errors
///
/// If it can't be drawn, or a point is not above 0.
pub fn curves(title: &str, across: &str, up: &str, curves: &[Curve]) -> Result<String> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let least = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let most = points().map(|point| point.0).fold(0.0, f64::max);
    let top = points().map(|point| point.1).fold(0.0, f64::max);
    anyhow::ensure!(
        least > 0.0 && most > least,
        "{title}: nothing to draw over a logarithmic axis"
    );
    draw(380, |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(title, (FONT, 17).into_font().color(&INK))
            .margin(10)
            .margin_right(30)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d((least..most * 1.01).log_scale(), 0.0..top * 1.15)
            .map_err(wrong)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .label_style((FONT, 13).into_font().color(&INK))
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| short(*value))
            .x_desc(across)
            .y_desc(up)
            .draw()
            .map_err(wrong)?;
        for (n, curve) in curves.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            let line = LineSeries::new(curve.points.iter().copied(), colour.stroke_width(2));
            let drawn = chart.draw_series(line.point_size(3)).map_err(wrong)?;
            drawn.label(&curve.name).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2))
            });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .label_font((FONT, 13).into_font().color(&INK))
            .draw()
            .map_err(wrong)
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(height: u32, content: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE).map_err(wrong)?;
        content(&area)?;
        area.present().map_err(wrong)?;
    }
    Ok(svg)
}

/// plotters' errors are of types that are not `Sync`.
fn wrong(err: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("draw: {err}")
}

/// A number in a few digits: 0.42, 7.3, 151, 12k, 1.5M.
pub fn short(value: f64) -> String {
    let trimmed = |value: f64| {
        let text = if value.abs() < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") };
        text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
    };
    match value.abs() {
        small if small < 1.0 && small > 0.0 => format!("{value:.2}"),
        large if large >= 999_500.0 => trimmed(value / 1e6) + "M",
        large if large >= 10_000.0 => trimmed(value / 1e3) + "k",
        _ => trimmed(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 0.417, 7.31, 8.0, 151.2, 9_999.0, 12_345.0, 999_999.0, 16_777_216.0];
        let expected = ["0", "0.42", "7.3", "8", "151", "9999", "12k", "1M", "17M"];
        assert_eq!(texts.map(short), expected);
    }

    #[test]
    fn bars_have_their_names_and_values() -> Result<()> {
        let bar = |name: &str, value| Bar { name: name.into(), value, kind: 0 };
        let svg = bars("cost", "ns", &[bar("floor", 87.0), bar("dsr", 140.0)])?;
        for text in ["cost", "floor", "dsr", "87", "140", "ns"] {
            assert!(svg.contains(&format!("\n{text}\n")), "{text} in {svg}");
        }
        // The first is above.
        assert!(svg.find("\ndsr\n") != svg.find("\nfloor\n"));
        Ok(())
    }

    #[test]
    fn curves_have_a_legend() -> Result<()> {
        let points = vec![(1.0, 44.0), (1_000.0, 45.0), (16e6, 60.0)];
        let svg = curves("flat", "flows", "ns", &[Curve { name: "ipip".into(), points }])?;
        assert!(svg.contains("\nipip\n") && svg.contains("<polyline"), "{svg}");
        assert!(curves("none", "flows", "ns", &[]).is_err());
        Ok(())
    }
}
