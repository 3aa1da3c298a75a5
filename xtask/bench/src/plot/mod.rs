//! Draws curves as SVG pictures on white, which are readable on a light and on a dark page. The
//! same data gives the same bytes.

mod axis;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use plotters::backend::SVGBackend;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Text};
use plotters::prelude::ChartBuilder;
use plotters::series::LineSeries;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{BLACK, Color, IntoFont, RGBColor, ShapeStyle, TextStyle, WHITE};

use self::axis::{Scale, label};
use super::report::text::clean;
use crate::data::{self, Curve, Line, Report};

/// The directory of the pictures, beside the document that shows them.
pub(super) const DIRECTORY: &str = "performance";

const WIDTH: u32 = 800;
const CHART: u32 = 500;
/// Height of a line of the legend.
const ENTRY: u32 = 24;
const FONT: &str = "sans-serif";

/// The colours of Okabe and Ito, which people with any colour vision can distinguish. Yellow is
/// omitted, because it is hard to see on white.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

type Area<'b> = DrawingArea<SVGBackend<'b>, Shift>;

/// Draws every curve of the report into `directory`, which is created if needed. Returns the
/// written files.
pub(super) fn write_all(report: &Report, directory: &Path) -> Result<Vec<PathBuf>> {
    let mut names = BTreeSet::new();
    let mut pictures = Vec::new();
    // Draw all curves before writing the first file.
    for curve in report.groups.iter().flat_map(|group| &group.curves) {
        let name = file(curve)?;
        ensure!(
            names.insert(name.clone()),
            "expected each curve to have a name of its own, found two with the name {:?}",
            curve.name
        );
        pictures.push((directory.join(name), draw(curve)?));
    }
    if !pictures.is_empty() {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    }
    for (path, picture) in &pictures {
        xtask_common::report_file::write(path, picture)?;
    }
    Ok(pictures.into_iter().map(|(path, _)| path).collect())
}

/// The name of the curve's file. Only a few characters are allowed, because the name becomes part
/// of a path and of a link.
pub(super) fn file(curve: &Curve) -> Result<String> {
    let fit = |it: char| it.is_ascii_alphanumeric() || it == '-' || it == '_';
    ensure!(
        !curve.name.is_empty() && curve.name.chars().all(fit),
        "expected the name of a curve to be letters, digits, `-` and `_`, found {:?}",
        curve.name
    );
    Ok(format!("{}.svg", curve.name))
}

/// The picture of a curve.
fn draw(curve: &Curve) -> Result<String> {
    let mut picture = String::new();
    let height = CHART + ENTRY * curve.lines.len() as u32 + ENTRY / 2;
    let root = SVGBackend::with_string(&mut picture, (WIDTH, height)).into_drawing_area();
    let drawn =
        draw_on(&root, curve).map_err(|error| anyhow!("cannot draw {:?}: {error}", curve.name));
    drop(root);
    drawn.map(|()| picture)
}

fn draw_on(root: &Area<'_>, curve: &Curve) -> Result<()> {
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(CHART);
    let lines: Vec<Shown<'_>> =
        curve.lines.iter().enumerate().map(|(at, line)| Shown::new(at, line, curve)).collect();
    draw_chart(&upper, curve, &lines)?;
    for (at, line) in lines.iter().enumerate() {
        line.draw_entry(&lower, at)?;
    }
    root.present()?;
    Ok(())
}

fn draw_chart(area: &Area<'_>, curve: &Curve, lines: &[Shown<'_>]) -> Result<()> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let x = Scale::around(points().map(|point| point.0), curve.x.logarithmic);
    let y = Scale::around(points().map(|point| point.1), curve.y.logarithmic);
    let mut chart = ChartBuilder::on(area)
        .caption(clean(&curve.title), (FONT, 22))
        .margin(14)
        .x_label_area_size(52)
        .y_label_area_size(84)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .x_desc(title(&curve.x))
        .y_desc(title(&curve.y))
        .x_labels(10)
        .y_labels(8)
        .label_style((FONT, 15))
        .x_label_formatter(&|value| label(*value))
        .y_label_formatter(&|value| label(*value))
        .draw()?;
    for line in lines {
        chart.draw_series(LineSeries::new(line.points.iter().copied(), line.stroke()))?;
        let marks = line.points.iter().map(|point| Circle::new(*point, 4, line.mark));
        chart.draw_series(marks)?;
    }
    Ok(())
}

fn title(axis: &data::Axis) -> String {
    clean(&axis.title)
}

/// A line as drawn.
struct Shown<'l> {
    line: &'l Line,
    colour: RGBColor,
    mark: ShapeStyle,
    /// The points that have a place on both axes.
    points: Vec<(f64, f64)>,
}

impl<'l> Shown<'l> {
    fn new(at: usize, line: &'l Line, curve: &Curve) -> Self {
        let has_place =
            |value: f64, axis: &data::Axis| value.is_finite() && (value > 0.0 || !axis.logarithmic);
        let shown =
            |point: &&(f64, f64)| has_place(point.0, &curve.x) && has_place(point.1, &curve.y);
        let colour = COLOURS[at % COLOURS.len()];
        // When the colours repeat, the marks are hollow.
        let hollow = (at / COLOURS.len()) % 2 == 1;
        let mark = if hollow { colour.stroke_width(2) } else { colour.filled() };
        Self { line, colour, mark, points: line.points.iter().filter(shown).copied().collect() }
    }

    fn stroke(&self) -> ShapeStyle {
        self.colour.stroke_width(2)
    }

    /// The name, and the number of missing points, so that a reader does not mistake a gap for a
    /// measurement.
    fn name(&self) -> String {
        let name = clean(&self.line.name);
        match self.line.points.len() - self.points.len() {
            0 => name,
            1 => format!("{name} (1 point has no place on a logarithmic axis)"),
            missing => format!("{name} ({missing} points have no place on a logarithmic axis)"),
        }
    }

    fn draw_entry(&self, area: &Area<'_>, at: usize) -> Result<()> {
        let y = (at as u32 * ENTRY + ENTRY / 2) as i32;
        let style = TextStyle::from((FONT, 16).into_font())
            .color(&BLACK)
            .pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&PathElement::new([(98, y), (138, y)], self.stroke()))?;
        area.draw(&Circle::new((118, y), 4, self.mark))?;
        area.draw(&Text::new(self.name(), (148, y), style))?;
        Ok(())
    }
}
