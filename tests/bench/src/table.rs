//! The figures as a table: aligned text for a terminal, and Markdown.

use std::fmt::Write as _;

use crate::figures::{Figure, shown, shown_target};
use crate::phases::Phase;

const HEADINGS: [&str; 6] = ["what", "median", "minimum", "maximum", "target", "runs"];

/// Text whose columns stand below one another.
#[must_use]
pub fn text(figures: &[Figure]) -> String {
    let mut text = aligned(&HEADINGS, figures, &cells, true);
    let with_phases = with_phases(figures);
    if with_phases.is_empty() {
        return text;
    }
    text.push_str("\nWhere the time goes, in milliseconds, in the run with the median:\n\n");
    text.push_str(&aligned(&phase_headings(), &with_phases, &phase_cells, false));
    text
}

/// Markdown, with a heading.
#[must_use]
pub fn markdown(figures: &[Figure], about: &str) -> String {
    let mut text = format!("# Measurements\n\n{about}\n\n![Plot of the times](bench.svg)\n\n");
    rows(&mut text, &HEADINGS, figures, &cells, true);
    let with_phases = with_phases(figures);
    if with_phases.is_empty() {
        return text;
    }
    text.push_str("\n## Where the time goes\n\nIn milliseconds, in the run with the median.\n\n");
    for phase in Phase::ALL {
        let _ = writeln!(text, "- **{}**: {}", phase.name(), phase.meaning());
    }
    text.push('\n');
    rows(&mut text, &phase_headings(), &with_phases, &phase_cells, false);
    text
}

fn with_phases(figures: &[Figure]) -> Vec<Figure> {
    figures.iter().filter(|figure| !figure.phases.is_empty()).cloned().collect()
}

type Cells = dyn Fn(&Figure) -> Vec<String>;

fn cells(figure: &Figure) -> Vec<String> {
    let value = |value| shown(value, figure.unit);
    let target = figure.target.map_or_else(String::new, |target| {
        let mark = if figure.reached() == Some(true) { "✓" } else { "✗" };
        format!("{mark} {}", shown_target(target, figure.unit))
    });
    vec![
        figure.name.clone(),
        value(figure.median()),
        value(figure.min()),
        value(figure.max()),
        target,
        figure.samples.len().to_string(),
    ]
}

fn phase_headings() -> Vec<&'static str> {
    ["what"].into_iter().chain(Phase::ALL.map(Phase::name)).collect()
}

fn phase_cells(figure: &Figure) -> Vec<String> {
    let seconds = |phase: Phase| figure.phases.iter().find(|(of, _)| *of == phase).map(|(_, seconds)| *seconds);
    let columns =
        Phase::ALL.map(|phase| seconds(phase).map_or_else(String::new, |seconds| format!("{:.0}", seconds * 1e3)));
    [format!("{}: {}", figure.group, figure.name)].into_iter().chain(columns).collect()
}

fn aligned(headings: &[&str], figures: &[Figure], cells: &Cells, grouped: bool) -> String {
    let table: Vec<Vec<String>> = figures.iter().map(cells).collect();
    let indent = if grouped { "  " } else { "" };
    let widths: Vec<usize> = (0..headings.len())
        .map(|column| {
            let cells = table.iter().map(|row| row[column].chars().count());
            cells.chain([headings[column].chars().count()]).max().unwrap_or_default()
        })
        .collect();
    let line = |row: &[String]| {
        let mut line = indent.to_owned();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // The first column is text, the target too; numbers end below one another.
            let gap = " ".repeat(width - cell.chars().count());
            let left = column == 0 || headings[column] == "target";
            let _ = if left { write!(line, "{cell}{gap}   ") } else { write!(line, "{gap}{cell}   ") };
        }
        format!("{}\n", line.trim_end())
    };
    let mut text = line(&headings.iter().map(|heading| (*heading).to_owned()).collect::<Vec<_>>());
    let mut group = "";
    for (figure, row) in figures.iter().zip(&table) {
        if grouped && figure.group != group {
            group = figure.group;
            let _ = writeln!(text, "\n{group}");
        }
        text.push_str(&line(row));
        if grouped && !figure.note.is_empty() {
            let _ = writeln!(text, "    {}", figure.note);
        }
    }
    text
}

fn rows(text: &mut String, headings: &[&str], figures: &[Figure], cells: &Cells, grouped: bool) {
    let _ = writeln!(text, "| {} |", headings.join(" | "));
    let _ = writeln!(text, "|---|{}", "---:|".repeat(headings.len() - 1));
    let mut group = "";
    for figure in figures {
        if grouped && figure.group != group {
            group = figure.group;
            let _ = writeln!(text, "| **{group}** |{}", " |".repeat(headings.len() - 1));
        }
        let mut row = cells(figure);
        if grouped && !figure.note.is_empty() {
            let _ = write!(row[0], "<br><sub>{}</sub>", figure.note);
        }
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
}

#[cfg(test)]
mod tests {
    use crate::figures::tests::examples;

    #[test]
    fn a_terminal_shows() {
        insta::assert_snapshot!(super::text(&examples()));
    }

    #[test]
    fn markdown_shows() {
        insta::assert_snapshot!(super::markdown(&examples(), "On two cores."));
    }
}
