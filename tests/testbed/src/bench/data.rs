//! The results of a benchmark run: figures beside the limits of the machine, measured in the same run, and curves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version of the JSON that [`Report`] is written as.
pub const FORMAT: u32 = 1;

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// The commit that was measured, with `+` when the tree had changes; empty when unknown.
    pub revision: String,
    /// The machine: processor, cores, memory, kernel and other facts that identify it.
    pub machine: BTreeMap<String, String>,
    /// Whether this was the short run.
    pub quick: bool,
    /// Duration in seconds.
    pub seconds: u64,
    /// What was measured, in order.
    pub groups: Vec<Group>,
    /// What could not be measured here, and why.
    pub skipped: Vec<Skipped>,
}

/// Figures that belong together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// A short name without spaces: `pause`.
    pub name: String,
    /// Its title.
    pub title: String,
    /// How it was measured, in a sentence or two.
    pub how: String,
    /// The figures.
    pub rows: Vec<Row>,
    /// The curves.
    pub curves: Vec<Curve>,
}

/// A figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured; unique in the group: `16 dirty pages`.
    pub name: String,
    /// The unit of `value`, `limit` and `spread`.
    pub unit: Unit,
    /// The figure; a median where there is a spread.
    pub value: f64,
    /// The distribution of the values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
    /// The best that the machine, or the same work without protection, can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// The required ratio of value to limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
}

/// A unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
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
    pub const fn symbol(self) -> &'static str {
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
    pub const fn larger_is_better(self) -> bool {
        matches!(self, Self::PerSecond | Self::MegabytesPerSecond)
    }
}

/// A distribution, in the unit of its row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The number of values.
    pub count: u64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// The largest.
    pub max: f64,
}

/// The value that a figure is compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// In the unit of the row.
    pub value: f64,
    /// Its meaning: `collect + copy of the same pages`.
    pub of: String,
}

/// The required ratio of a figure to its limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// At most.
    AtMost(f64),
    /// At least.
    AtLeast(f64),
}

/// One picture: lines over a common axis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// A short name without spaces, unique among the curves: the name of the picture's file.
    pub name: String,
    /// Its title.
    pub title: String,
    /// The axis of the parameter.
    pub x: Axis,
    /// The axis of the measured value.
    pub y: Axis,
    /// The lines.
    pub lines: Vec<Line>,
}

/// An axis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Axis {
    /// What it shows, with the unit: `dirty pages in an epoch`.
    pub title: String,
    /// Whether it is logarithmic.
    pub logarithmic: bool,
}

/// A line of a curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Its meaning: `pause, p50`.
    pub name: String,
    /// Its points, by ascending x.
    pub points: Vec<(f64, f64)>,
}

/// What could not be measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// What.
    pub what: String,
    /// The reason, and the remedy.
    pub why: String,
}

impl Row {
    /// A figure without a limit.
    #[must_use]
    pub fn new(name: impl Into<String>, unit: Unit, value: f64) -> Self {
        Self { name: name.into(), unit, value, spread: None, limit: None, target: None }
    }

    /// Adds the value to compare with.
    #[must_use]
    pub fn limit(mut self, value: f64, of: impl Into<String>) -> Self {
        self.limit = Some(Limit { value, of: of.into() });
        self
    }

    /// Adds the required ratio.
    #[must_use]
    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// Adds the distribution.
    #[must_use]
    pub fn spread(mut self, spread: Spread) -> Self {
        self.spread = Some(spread);
        self
    }

    /// The figure divided by its limit.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        let limit = self.limit.as_ref()?;
        (limit.value > 0.0).then(|| self.value / limit.value)
    }

    /// Whether the target is met; none without a target.
    #[must_use]
    pub fn met(&self) -> Option<bool> {
        let (target, ratio) = (self.target?, self.ratio()?);
        Some(match target {
            Target::AtMost(bound) => ratio <= bound,
            Target::AtLeast(bound) => ratio >= bound,
        })
    }
}
