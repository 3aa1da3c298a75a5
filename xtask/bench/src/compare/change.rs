//! Judges whether a figure is better or worse.

use crate::data::{Row, Target, Unit};

/// The noise of a figure in per cent, in percentage points: 0.2 % and 0.4 % of a core count as
/// equal.
const POINTS: f64 = 0.5;
/// The rounding error that arithmetic may add to a difference exactly at the bound.
const ROUNDING: f64 = 1e-9;

/// Which direction is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Larger is better.
    Up,
    /// Smaller is better.
    Down,
    /// Neither: the figure describes the measurement, and is not a result.
    Neither,
}

impl Direction {
    /// The target decides; without a target, the unit decides.
    pub(super) fn of(row: &Row) -> Self {
        match (row.target, row.unit) {
            (Some(Target::AtLeast(_)), _) => Self::Up,
            (Some(Target::AtMost(_)), _) => Self::Down,
            (None, Unit::Count | Unit::Pages) => Self::Neither,
            (None, unit) if unit.larger_is_better() => Self::Up,
            (None, _) => Self::Down,
        }
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Up => "more",
            Self::Down => "less",
            Self::Neither => "-",
        }
    }
}

/// How a figure changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The figures differ by no more than the noise.
    Noise,
    /// The second figure is better by more than the noise.
    Better,
    /// The second figure is worse by more than the noise.
    Worse,
    /// The figures differ by more than the noise, and neither direction is better.
    Differs,
}

impl Change {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Noise => "",
            Self::Better => "better",
            Self::Worse => "WORSE",
            Self::Differs => "differs",
        }
    }
}

/// Compares the same figure of two reports. `tolerance` is in per cent.
pub(super) fn judge(a: &Row, b: &Row, direction: Direction, tolerance: f64) -> Change {
    if is_noise(a.unit, a.value, b.value, tolerance) {
        return Change::Noise;
    }
    match (direction, b.value > a.value) {
        (Direction::Neither, _) => Change::Differs,
        (Direction::Up, true) | (Direction::Down, false) => Change::Better,
        (Direction::Up, false) | (Direction::Down, true) => Change::Worse,
    }
}

/// Whether the difference is noise. The check is symmetric: half as fast is as far away as twice as
/// fast.
fn is_noise(unit: Unit, a: f64, b: f64, tolerance: f64) -> bool {
    let (least, most) = (a.abs().min(b.abs()), a.abs().max(b.abs()));
    let same_side = a.signum() == b.signum() || a == b;
    (same_side && most <= least * (1.0 + tolerance / 100.0) + most * ROUNDING)
        || (unit == Unit::Percent && (b - a).abs() <= POINTS)
}
