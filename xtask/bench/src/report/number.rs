//! Numbers for people: three significant digits, and a suitable unit.

use crate::data::Unit;

/// From this number on, the next larger unit is easier to read.
const LARGE: f64 = 10_000.0;
const TIME: [(f64, &str); 4] = [(1.0, "ns"), (1e3, "us"), (1e6, "ms"), (1e9, "s")];
const BYTES: [(f64, &str); 4] = [(1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB")];

/// The unit in which a row is shown. All numbers of a row have the same unit, so that a reader can
/// compare them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// How many of the row's own units this unit has.
    per: f64,
    symbol: &'static str,
}

impl Scale {
    /// The scale that fits `value`.
    pub(crate) fn of(unit: Unit, value: f64) -> Self {
        match unit {
            Unit::Nanoseconds => Self::fit(&TIME, value),
            Unit::Microseconds => {
                let scale = Self::fit(&TIME[1..], value * 1e3);
                Self { per: scale.per / 1e3, ..scale }
            }
            Unit::Bytes => Self::fit(&BYTES, value),
            _ => Self { per: 1.0, symbol: unit.symbol() },
        }
    }

    /// The unit that fits `value`, which is given in the first unit; no smaller unit is chosen.
    fn fit(units: &[(f64, &'static str)], value: f64) -> Self {
        let fits = units.iter().find(|(per, _)| value.abs() / per < LARGE);
        let (per, symbol) = *fits.or(units.last()).expect("the lists above are not empty");
        Self { per, symbol }
    }

    /// A number of the row, without its unit.
    pub(crate) fn number(&self, value: f64) -> String {
        digits(value / self.per)
    }

    /// A number of the row, with its unit.
    pub(crate) fn text(&self, value: f64) -> String {
        format!("{} {}", self.number(value), self.symbol).trim_end().to_owned()
    }
}

/// A ratio with three decimal places: with fewer, a ratio that misses its bound could look equal to
/// the bound.
pub(crate) fn ratio(ratio: f64) -> String {
    if ratio.abs() < 10.0 { format!("{ratio:.3}") } else { digits(ratio) }
}

/// Three significant digits, or all digits before the point, in groups of three.
pub(crate) fn digits(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    let magnitude = value.abs();
    let places = if value.fract() == 0.0 || magnitude >= 100.0 {
        0
    } else if magnitude >= 10.0 {
        1
    } else if magnitude >= 1.0 {
        2
    } else {
        // The first digit that is not 0, and two more. Values below a billionth are shown as 0.
        (2.0 - magnitude.log10().floor()).min(9.0) as usize
    };
    grouped(&format!("{value:.places$}"))
}

fn grouped(number: &str) -> String {
    let (sign, rest) = number.strip_prefix('-').map_or(("", number), |rest| ("-", rest));
    let (whole, fraction) = rest.split_at(rest.find('.').unwrap_or(rest.len()));
    let mut text = sign.to_owned();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text + fraction
}
