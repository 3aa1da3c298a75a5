//! The results of a benchmark run: figures beside the limits of the machine, measured in the same run, and curves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version of the JSON that [`Report`] is written as.
pub(crate) const FORMAT: u32 = 1;

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// [`FORMAT`].
    pub(crate) format: u32,
    /// The commit that was measured, with `+` when the tree had changes; empty when unknown.
    pub(crate) revision: String,
    /// The machine: processor, cores, memory, kernel and other facts that identify it.
    pub(crate) machine: BTreeMap<String, String>,
    /// Whether this was the short run.
    pub(crate) quick: bool,
    /// Duration in seconds.
    pub(crate) seconds: u64,
    /// What was measured, in order.
    pub(crate) groups: Vec<Group>,
    /// What could not be measured here, and why.
    pub(crate) skipped: Vec<Skipped>,
}

/// Figures that belong together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Group {
    /// A short name without spaces: `pause`.
    pub(crate) name: String,
    /// Its title.
    pub(crate) title: String,
    /// How it was measured, in a sentence or two.
    pub(crate) how: String,
    /// The figures.
    pub(crate) rows: Vec<Row>,
    /// The curves.
    pub(crate) curves: Vec<Curve>,
}

/// A figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// What was measured; unique in the group: `16 dirty pages`.
    pub(crate) name: String,
    /// The unit of `value`, `limit` and `spread`.
    pub(crate) unit: Unit,
    /// The figure; a median where there is a spread.
    pub(crate) value: f64,
    /// The distribution of the values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) spread: Option<Spread>,
    /// The best that the machine, or the same work without protection, can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<Limit>,
    /// The required ratio of value to limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<Target>,
}

/// A unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unit {
    /// Microseconds.
    Microseconds,
    /// Nanoseconds.
    Nanoseconds,
    /// Per second.
    PerSecond,
    /// Megabytes (10^6 bytes) per second.
    MegabytesPerSecond,
    /// Bytes.
    Bytes,
    /// Guest pages of 4 KiB.
    Pages,
    /// Per cent.
    Percent,
    /// A plain count.
    Count,
}

impl Unit {
    /// The symbol that is printed after a number.
    #[must_use]
    pub(crate) const fn symbol(self) -> &'static str {
        match self {
            Self::Microseconds => "us",
            Self::Nanoseconds => "ns",
            Self::PerSecond => "/s",
            Self::MegabytesPerSecond => "MB/s",
            Self::Bytes => "B",
            Self::Pages => "pages",
            Self::Percent => "%",
            Self::Count => "",
        }
    }

    /// Whether larger is better.
    #[must_use]
    pub(crate) const fn larger_is_better(self) -> bool {
        matches!(self, Self::PerSecond | Self::MegabytesPerSecond)
    }
}

/// A distribution, in the unit of its row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// The number of values.
    pub(crate) count: u64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// The largest.
    pub(crate) max: f64,
}

/// The value that a figure is compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Limit {
    /// In the unit of the row.
    pub(crate) value: f64,
    /// Its meaning: `collect + copy of the same pages`.
    pub(crate) of: String,
}

/// The required ratio of a figure to its limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Target {
    /// At most.
    AtMost(f64),
    /// At least.
    AtLeast(f64),
}

/// One picture: lines over a common axis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Curve {
    /// A short name without spaces, unique among the curves: the name of the picture's file.
    pub(crate) name: String,
    /// Its title.
    pub(crate) title: String,
    /// The axis of the parameter.
    pub(crate) x: Axis,
    /// The axis of the measured value.
    pub(crate) y: Axis,
    /// The lines.
    pub(crate) lines: Vec<Line>,
}

/// An axis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Axis {
    /// What it shows, with the unit: `dirty pages in an epoch`.
    pub(crate) title: String,
    /// Whether it is logarithmic.
    pub(crate) logarithmic: bool,
}

/// A line of a curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// Its meaning: `pause, p50`.
    pub(crate) name: String,
    /// Its points, by ascending x.
    pub(crate) points: Vec<(f64, f64)>,
}

/// What could not be measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Skipped {
    /// What.
    pub(crate) what: String,
    /// The reason, and the remedy.
    pub(crate) why: String,
}

impl Row {
    /// A figure without a limit.
    #[must_use]
    pub(crate) fn new(name: impl Into<String>, unit: Unit, value: f64) -> Self {
        Self { name: name.into(), unit, value, spread: None, limit: None, target: None }
    }

    /// Adds the value to compare with.
    #[must_use]
    pub(crate) fn limit(mut self, value: f64, of: impl Into<String>) -> Self {
        self.limit = Some(Limit { value, of: of.into() });
        self
    }

    /// Adds the required ratio.
    #[must_use]
    pub(crate) fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// Adds the distribution.
    #[must_use]
    pub(crate) fn spread(mut self, spread: Spread) -> Self {
        self.spread = Some(spread);
        self
    }

    /// The figure divided by its limit.
    #[must_use]
    pub(crate) fn ratio(&self) -> Option<f64> {
        let limit = self.limit.as_ref()?;
        (limit.value > 0.0).then(|| self.value / limit.value)
    }

    /// Whether the target is met; none without a target.
    #[must_use]
    pub(crate) fn met(&self) -> Option<bool> {
        let (target, ratio) = (self.target?, self.ratio()?);
        Some(match target {
            Target::AtMost(bound) => ratio <= bound,
            Target::AtLeast(bound) => ratio >= bound,
        })
    }
}
