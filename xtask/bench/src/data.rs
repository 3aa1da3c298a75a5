//! The results of a benchmark run: curves, and figures beside the limits of the machine, which are
//! measured in the same run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version of the JSON form of [`Report`].
pub(crate) const FORMAT: u32 = 1;

/// The results of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The version, [`FORMAT`].
    pub(crate) format: u32,
    /// The measured commit, with `+` if the tree had changes; empty if unknown.
    pub(crate) revision: String,
    /// The machine: processor, cores, memory, kernel and other facts that identify it.
    pub(crate) machine: BTreeMap<String, String>,
    /// Whether this was the short run.
    pub(crate) quick: bool,
    /// Duration in seconds.
    pub(crate) seconds: u64,
    /// The measured figures and curves, in order.
    pub(crate) groups: Vec<Group>,
    /// The measurements that could not be made here, and why.
    pub(crate) skipped: Vec<Skipped>,
}

/// Figures that belong together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Group {
    /// A short name without spaces: `pause`.
    pub(crate) name: String,
    /// The title for people.
    pub(crate) title: String,
    /// How the group was measured, in a sentence or two.
    pub(crate) how: String,
    /// The figures.
    pub(crate) rows: Vec<Row>,
    /// The curves.
    pub(crate) curves: Vec<Curve>,
}

/// A figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// The name of the measurement, unique in the group: `16 dirty pages`.
    pub(crate) name: String,
    /// The unit of `value`, `limit` and `spread`.
    pub(crate) unit: Unit,
    /// The figure; the median if there is a spread.
    pub(crate) value: f64,
    /// The distribution of the values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) spread: Option<Spread>,
    /// The best that the machine can do, or the figure for the same work without protection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<Limit>,
    /// The required ratio of value to limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<Target>,
}

/// The unit of a figure.
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

/// The value with which a figure is compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Limit {
    /// The value, in the unit of the row.
    pub(crate) value: f64,
    /// The meaning of the value: `collect + copy of the same pages`.
    pub(crate) of: String,
}

/// The required ratio of a figure to its limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Target {
    /// The ratio is at most this.
    AtMost(f64),
    /// The ratio is at least this.
    AtLeast(f64),
}

/// One picture: lines over common axes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Curve {
    /// A short name without spaces, unique among the curves: the name of the picture's file.
    pub(crate) name: String,
    /// The title for people.
    pub(crate) title: String,
    /// The axis of the parameter.
    pub(crate) x: Axis,
    /// The axis of the measured value.
    pub(crate) y: Axis,
    /// The lines.
    pub(crate) lines: Vec<Line>,
}

/// An axis of a curve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Axis {
    /// The quantity that the axis shows, with its unit: `dirty pages in an epoch`.
    pub(crate) title: String,
    /// Whether the axis is logarithmic.
    pub(crate) logarithmic: bool,
}

/// A line of a curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// The meaning of the line: `pause, p50`.
    pub(crate) name: String,
    /// The points, by ascending x.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A measurement that could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Skipped {
    /// The name of the measurement.
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

    /// Adds the value with which the figure is compared.
    #[must_use]
    pub(crate) fn limit(mut self, value: f64, of: impl Into<String>) -> Self {
        self.limit = Some(Limit { value, of: of.into() });
        self
    }

    /// Adds the required ratio to the limit.
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

    /// Whether the target is met; `None` without a target or a limit.
    #[must_use]
    pub(crate) fn met(&self) -> Option<bool> {
        let (target, ratio) = (self.target?, self.ratio()?);
        Some(match target {
            Target::AtMost(bound) => ratio <= bound,
            Target::AtLeast(bound) => ratio >= bound,
        })
    }
}
