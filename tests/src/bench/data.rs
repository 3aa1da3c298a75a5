//! What a run of the benchmark found: figures beside the limits of the machine that were measured in the same run, and curves.

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
    /// The machine: processor, cores, memory, kernel and whatever else names it.
    pub machine: BTreeMap<String, String>,
    /// Whether it was the short run.
    pub quick: bool,
    /// How long it took, in seconds.
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
    /// What was measured; unlike any other in the group: `16 dirty pages`.
    pub name: String,
    /// The unit of `value`, `limit` and `spread`.
    pub unit: Unit,
    /// The figure; a median where there is a spread.
    pub value: f64,
    /// How it was distributed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
    /// What the machine, or the same work without protection, could do at best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// What the ratio of value to limit is to be.
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
    /// A second's worth.
    PerSecond,
    /// Megabytes (10^6 bytes) in a second.
    MegabytesPerSecond,
    /// Bytes.
    Bytes,
    /// Guest pages of 4 KiB.
    Pages,
    /// Hundredths.
    Percent,
    /// A plain count.
    Count,
}

impl Unit {
    /// As it is printed behind a number.
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

    /// Whether a larger number is the better one.
    #[must_use]
    pub const fn larger_is_better(self) -> bool {
        matches!(self, Self::PerSecond | Self::MegabytesPerSecond)
    }
}

/// A distribution, in the unit of its row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many values.
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

/// What is compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// In the unit of the row.
    pub value: f64,
    /// What it is: `collect + copy of the same pages`.
    pub of: String,
}

/// What the ratio of a figure to its limit is to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// No more than.
    AtMost(f64),
    /// No less than.
    AtLeast(f64),
}

/// One picture: lines over a common axis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// A short name without spaces, unlike any other's: the name of the picture's file.
    pub name: String,
    /// Its title.
    pub title: String,
    /// The axis of what was set.
    pub x: Axis,
    /// The axis of what was measured.
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
    /// What it is: `pause, p50`.
    pub name: String,
    /// Its points, by ascending x.
    pub points: Vec<(f64, f64)>,
}

/// What could not be measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// What.
    pub what: String,
    /// Why, and what would have to be done about it.
    pub why: String,
}

impl Row {
    /// A figure without a limit.
    #[must_use]
    pub fn new(name: impl Into<String>, unit: Unit, value: f64) -> Self {
        Self { name: name.into(), unit, value, spread: None, limit: None, target: None }
    }

    /// With what it is compared with.
    #[must_use]
    pub fn limit(mut self, value: f64, of: impl Into<String>) -> Self {
        self.limit = Some(Limit { value, of: of.into() });
        self
    }

    /// With what the ratio is to be.
    #[must_use]
    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// With its distribution.
    #[must_use]
    pub fn spread(mut self, spread: Spread) -> Self {
        self.spread = Some(spread);
        self
    }

    /// The figure in units of its limit.
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
