//! What was measured: samples, what they come to, and what they are held against.

use serde::Serialize;

use crate::phases::Phases;

/// What a figure counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// 2^20 bytes.
    MiB,
    /// A rate.
    PerSecond,
    /// A number of things.
    Count,
}

/// What a figure should reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What it belongs to.
    pub group: &'static str,
    /// What was measured.
    pub name: String,
    /// What it counts.
    pub unit: Unit,
    /// Each run's value, in the order of the runs.
    pub samples: Vec<f64>,
    /// Where the time went in the run with the median. Empty: it is not told.
    pub phases: Phases,
    /// What the median should reach.
    pub target: Option<Target>,
    /// What helps to read it.
    pub note: String,
}

impl Figure {
    /// One without phases, target and note.
    #[must_use]
    pub fn new(group: &'static str, name: &str, unit: Unit, samples: Vec<f64>) -> Self {
        Self {
            group,
            name: name.to_owned(),
            unit,
            samples,
            phases: Phases::default(),
            target: None,
            note: String::new(),
        }
    }

    /// Times, each with its phases.
    #[must_use]
    pub fn timed(group: &'static str, name: &str, samples: Vec<(f64, Phases)>) -> Self {
        let (seconds, mut phases): (Vec<f64>, Vec<Phases>) = samples.into_iter().unzip();
        let mut figure = Self::new(group, name, Unit::Seconds, seconds);
        if let Some(index) = figure.median_index() {
            figure.phases = phases.swap_remove(index);
        }
        figure
    }

    /// Held against a target.
    #[must_use]
    pub fn target(self, target: Target) -> Self {
        Self { target: Some(target), ..self }
    }

    /// With a note.
    #[must_use]
    pub fn note(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }

    /// Which run has the median; of an even number, the lower of the two in the middle.
    fn median_index(&self) -> Option<usize> {
        let mut order: Vec<usize> = (0..self.samples.len()).collect();
        order.sort_by(|a, b| self.samples[*a].total_cmp(&self.samples[*b]));
        order.get((order.len().max(1) - 1) / 2).copied()
    }

    /// The value in the middle; the lower of two.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.median_index().map_or(f64::NAN, |index| self.samples[index])
    }

    /// The least value.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.samples.iter().copied().fold(f64::NAN, f64::min)
    }

    /// The greatest value.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.samples.iter().copied().fold(f64::NAN, f64::max)
    }

    /// Whether the median reaches the target. `None`: there is none.
    #[must_use]
    pub fn reached(&self) -> Option<bool> {
        Some(match self.target? {
            Target::AtMost(limit) => self.median() <= limit,
            Target::AtLeast(limit) => self.median() >= limit,
        })
    }
}

/// A value as it is printed.
#[must_use]
pub fn shown(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Seconds if value.abs() < 10.0 => format!("{value:.3} s"),
        Unit::Seconds => format!("{value:.1} s"),
        Unit::MiB => format!("{value:.1} MiB"),
        Unit::PerSecond => format!("{value:.0} /s"),
        Unit::Count => format!("{value:.0}"),
    }
}

/// A target as it is printed.
#[must_use]
pub fn shown_target(target: Target, unit: Unit) -> String {
    let text = |limit: f64| match unit {
        Unit::Seconds => format!("{limit} s"),
        Unit::MiB => format!("{limit} MiB"),
        Unit::PerSecond => format!("{limit} /s"),
        Unit::Count => format!("{limit}"),
    };
    match target {
        Target::AtMost(limit) => format!("≤ {}", text(limit)),
        Target::AtLeast(limit) => format!("≥ {}", text(limit)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::phases::Phase;

    /// Figures of each kind.
    pub(crate) fn examples() -> Vec<Figure> {
        let phases = vec![(Phase::Resolve, 0.06), (Phase::Fetch, 0.05), (Phase::Build, 0.2), (Phase::Report, 0.01)];
        let timed = [0.5, 0.32, 0.3].map(|seconds| (seconds, phases.clone())).to_vec();
        vec![
            Figure::timed("warm builder", "Kiln, apply → digest", timed).target(Target::AtMost(0.3)),
            Figure::new("warm builder", "bare buildctl", Unit::Seconds, vec![0.11, 0.12, 0.13]),
            Figure::new("a new namespace", "apply → digest", Unit::Seconds, vec![11.0]).note("all is new & cold"),
            Figure::new("operator", "memory", Unit::MiB, vec![17.5]).target(Target::AtMost(20.0)),
            Figure::new("at rest", "reconciles", Unit::PerSecond, vec![900.0]).target(Target::AtLeast(200.0)),
        ]
    }

    fn figure(samples: &[f64]) -> Figure {
        Figure::new("group", "name", Unit::Seconds, samples.to_vec())
    }

    #[test]
    fn median_minimum_and_maximum() {
        for (samples, expected) in [
            (vec![3.0, 1.0, 2.0], (2.0, 1.0, 3.0)),
            (vec![4.0, 1.0, 3.0, 2.0], (2.0, 1.0, 4.0)),
            (vec![5.0], (5.0, 5.0, 5.0)),
        ] {
            let figure = figure(&samples);
            assert_eq!((figure.median(), figure.min(), figure.max()), expected, "{samples:?}");
        }
        assert!(figure(&[]).median().is_nan());
    }

    #[test]
    fn a_target_is_for_the_median() {
        let figure = figure(&[0.1, 0.5, 9.0]);
        assert_eq!(figure.reached(), None);
        assert_eq!(figure.clone().target(Target::AtMost(0.5)).reached(), Some(true));
        assert_eq!(figure.target(Target::AtLeast(0.6)).reached(), Some(false));
    }
}
