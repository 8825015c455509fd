//! The figures as a picture: a bar to the median with its phases, a line from the least to the greatest value.

use std::fmt::Write as _;

use crate::figures::{Figure, Target, Unit, shown};
use crate::phases::Phase;

/// All in the picture's own units.
const WIDTH: f64 = 980.0;
const LEFT: f64 = 330.0;
const RIGHT: f64 = 800.0;
const ROW: f64 = 26.0;
const BAR: f64 = 14.0;
/// Times whose maximum is below this share one axis, longer ones another: side by side the short ones would be nothing.
const SHORT: f64 = 2.0;

/// Colours follow the picture's surroundings: a page may be light or dark.
const STYLE: &str = "<style>
text { font-family: system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; font-size: 12px; fill: #24292f; }
.title { font-size: 18px; font-weight: 600; } .panel { font-size: 14px; font-weight: 600; }
.group { font-weight: 600; } .quiet { fill: #6e7781; } .yes { fill: #1a7f37; } .no { fill: #cf222e; }
.page { fill: #ffffff; } .grid { stroke: #d8dee4; } .range { stroke: #24292f; stroke-width: 1.5; }
.target { stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 3 2; } .plain { fill: #8c959f; }
.resolve { fill: #6f83b5; } .queue { fill: #a9b4c6; } .start { fill: #8d6cc0; } .fetch { fill: #2d8fc4; }
.build { fill: #e09f2b; } .push { fill: #3d9e6c; } .publish { fill: #d2605c; } .report { fill: #96745a; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .quiet { fill: #9198a1; } .yes { fill: #3fb950; } .no { fill: #f85149; }
.page { fill: #0d1117; } .grid { stroke: #30363d; } .range { stroke: #e6edf3; } .target { stroke: #f85149; }
.plain { fill: #6e7681; }
}
</style>
";

/// An SVG document.
#[must_use]
pub fn svg(figures: &[Figure], about: &str) -> String {
    let of = |unit: Unit| figures.iter().filter(move |figure| figure.unit == unit);
    // All of a group stand together.
    let long = |figure: &Figure| of(Unit::Seconds).any(|other| other.group == figure.group && other.max() > SHORT);
    let panels = [
        ("Seconds", of(Unit::Seconds).filter(|figure| !long(figure)).collect::<Vec<_>>()),
        ("Seconds, longer ones", of(Unit::Seconds).filter(|figure| long(figure)).collect()),
        ("MiB", of(Unit::MiB).collect()),
    ];
    let mut body = String::new();
    let mut y = 30.0;
    label(&mut body, 20.0, y, "title", "Kiln: where the time goes");
    y += 20.0;
    label(&mut body, 20.0, y, "quiet", about);
    y += 24.0;
    legend(&mut body, y);
    y += 14.0;
    for (title, figures) in panels.iter().filter(|(_, figures)| !figures.is_empty()) {
        y = panel(&mut body, y + 28.0, title, figures);
    }
    let height = y + 16.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" role=\"img\" \
         aria-label=\"Kiln: where the time goes\">\n{STYLE}<rect class=\"page\" width=\"{WIDTH}\" \
         height=\"{height:.0}\" rx=\"8\"/>\n{body}</svg>\n"
    )
}

fn legend(body: &mut String, y: f64) {
    let mut x = 20.0;
    for phase in Phase::ALL {
        let name = phase.name();
        rect(body, x, y - 10.0, 12.0, name);
        label(body, x + 17.0, y, "", name);
        x += 82.0;
    }
    let _ = writeln!(
        body,
        "<path class=\"range\" d=\"M{x} {m} h24 M{x} {t} v8 M{e} {t} v8\"/>",
        m = y - 4.0,
        t = y - 8.0,
        e = x + 24.0
    );
    label(body, x + 30.0, y, "", "minimum to maximum");
    x += 176.0;
    let _ = writeln!(body, "<path class=\"target\" d=\"M{x} {} v14\"/>", y - 11.0);
    label(body, x + 7.0, y, "", "target");
}

fn panel(body: &mut String, mut y: f64, title: &str, figures: &[&Figure]) -> f64 {
    let limit = |figure: &Figure| match figure.target {
        Some(Target::AtMost(limit) | Target::AtLeast(limit)) => limit,
        None => 0.0,
    };
    let greatest = figures.iter().map(|figure| figure.max().max(limit(figure))).fold(0.0, f64::max);
    let step = step(greatest);
    let steps = (greatest / step).ceil().max(1.0);
    let x = |value: f64| LEFT + value.max(0.0) / (step * steps) * (RIGHT - LEFT);
    label(body, 20.0, y, "panel", title);
    let groups = figures.windows(2).filter(|pair| pair[0].group != pair[1].group).count() + 1;
    let bottom = y + ROW * (figures.len() + groups) as f64 + 6.0;
    let mut number = 0.0;
    while number <= steps {
        let at = x(number * step);
        let _ = writeln!(body, "<path class=\"grid\" d=\"M{at:.1} {:.1} V{bottom:.1}\"/>", y + 4.0);
        let digits = if step < 0.1 { 2 } else { usize::from(step < 1.0) };
        let _ = writeln!(
            body,
            "<text class=\"quiet\" x=\"{at:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{:.digits$}</text>",
            number * step
        );
        number += 1.0;
    }
    let mut group = "";
    for figure in figures {
        if figure.group != group {
            group = figure.group;
            y += ROW;
            label(body, 20.0, y, "group", group);
        }
        y += ROW;
        row(body, y, figure, &x);
    }
    bottom
}

fn row(body: &mut String, y: f64, figure: &Figure, x: &impl Fn(f64) -> f64) {
    label(body, 32.0, y, "", &figure.name);
    let top = y - BAR + 3.0;
    let bar = |body: &mut String, class: &str, begin: f64, end: f64, title: &str| {
        let _ = writeln!(
            body,
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{BAR}\"><title>{title}</title></rect>",
            x(begin),
            (x(end) - x(begin)).max(0.5)
        );
    };
    let median = figure.median();
    if figure.phases.is_empty() {
        bar(body, "plain", 0.0, median, &shown(median, figure.unit));
    }
    let mut begin = 0.0;
    for (phase, seconds) in &figure.phases {
        bar(body, phase.name(), begin, begin + seconds, &format!("{} {}", phase.name(), shown(*seconds, figure.unit)));
        begin += seconds;
    }
    let (from, to, middle) = (x(figure.min()), x(figure.max()), top + BAR / 2.0);
    if figure.samples.len() > 1 {
        let _ = writeln!(
            body,
            "<path class=\"range\" d=\"M{from:.1} {middle:.1} H{to:.1} M{from:.1} {t:.1} v8 M{to:.1} {t:.1} v8\"/>",
            t = middle - 4.0
        );
    }
    let (mut class, mut mark) = ("", String::new());
    if let Some(Target::AtMost(limit) | Target::AtLeast(limit)) = figure.target {
        let _ = writeln!(body, "<path class=\"target\" d=\"M{:.1} {:.1} v{}\"/>", x(limit), top - 4.0, BAR + 8.0);
        (class, mark) =
            if figure.reached() == Some(true) { ("yes", " ✓".to_owned()) } else { ("no", " ✗".to_owned()) };
    }
    label(body, RIGHT + 14.0, y, class, &format!("{}{mark}", shown(median, figure.unit)));
}

/// A round distance of the axis' numbers, such that there are five to ten of them.
fn step(greatest: f64) -> f64 {
    let power = 10_f64.powf((greatest.max(1e-3) / 10.0).log10().ceil());
    [0.2, 0.5, 1.0].map(|part| part * power).into_iter().find(|step| greatest / step <= 10.0).unwrap_or(power)
}

fn rect(body: &mut String, x: f64, y: f64, size: f64, class: &str) {
    let _ = writeln!(body, "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{size}\" height=\"{size}\" rx=\"2\"/>");
}

fn label(body: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(body, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::examples;

    #[test]
    fn a_picture() {
        insta::assert_snapshot!(svg(&examples(), "On two cores."));
    }

    #[test]
    fn an_axis_has_round_numbers() {
        for (greatest, expected) in [(0.5, 0.05), (0.9, 0.1), (1.5, 0.2), (4.0, 0.5), (11.0, 2.0), (40.0, 5.0)] {
            assert!((step(greatest) - expected).abs() < 1e-9, "{greatest}: {}", step(greatest));
        }
    }
}
