//! An axis of a picture, linear or logarithmic, with round numbers along it.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};

use crate::report::number::digits;

/// The range of numbers that an axis shows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    from: f64,
    to: f64,
    logarithmic: bool,
}

impl Scale {
    /// A scale for these values, with a margin. A linear scale begins at 0: a partial axis makes
    /// small differences look large.
    pub(super) fn around(values: impl Iterator<Item = f64>, logarithmic: bool) -> Self {
        let ends = |(from, to): (f64, f64), value: f64| (from.min(value), to.max(value));
        let (least, most) = values.fold((f64::INFINITY, f64::NEG_INFINITY), ends);
        if least > most {
            return Self { from: if logarithmic { 1.0 } else { 0.0 }, to: 10.0, logarithmic };
        }
        if logarithmic {
            return Self { from: least / 1.4, to: most * 1.4, logarithmic };
        }
        let (from, to) = (least.min(0.0) * 1.06, most.max(0.0) * 1.06);
        Self { from, to: if to > from { to } else { 1.0 }, logarithmic }
    }

    fn place(&self, value: f64) -> f64 {
        if self.logarithmic { value.log10() } else { value }
    }

    fn contains(&self, value: f64) -> bool {
        (self.from..=self.to).contains(&value)
    }

    /// The multiples of the smallest round step (1, 2 or 5 times a power of ten) that has at most
    /// `most` multiples.
    fn multiples(&self, most: usize) -> Vec<f64> {
        let rough = (self.to - self.from) / most.max(1) as f64;
        let power = rough.log10().floor() as i32;
        // Multiply or divide steps by whole numbers, so that 0.3 is 0.3 and not
        // 0.30000000000000004.
        let steps = [(1.0, power), (2.0, power), (5.0, power), (1.0, power + 1)];
        let times = |count: f64, power: i32| {
            let ten = 10_f64.powi(power.abs());
            if power < 0 { count / ten } else { count * ten }
        };
        let fits = |step: &&(f64, i32)| times(step.0, step.1) >= rough;
        let Some((step, power)) = steps.iter().find(fits) else { return Vec::new() };
        let width = times(*step, *power);
        let (first, last) = ((self.from / width).ceil() as i64, (self.to / width).floor() as i64);
        (first..=last).map(|count| times(count as f64 * step, *power)).collect()
    }

    /// Powers of ten times `mantissas`, but only every `every`th power.
    fn powers(&self, mantissas: &[f64], every: usize) -> Vec<f64> {
        let (first, last) = (self.from.log10().floor() as i32, self.to.log10().ceil() as i32);
        let decades = (first..=last).step_by(every.max(1)).map(|power| 10_f64.powi(power));
        let values = decades.flat_map(|ten| mantissas.iter().map(move |it| it * ten));
        values.filter(|value| self.contains(*value)).collect()
    }

    /// The numbers along a logarithmic axis.
    fn logarithmic_labels(&self, most: usize) -> Vec<f64> {
        let decades = (self.to / self.from).log10();
        if decades > 2.5 {
            let every = (decades / most.max(1) as f64).ceil() as usize;
            return self.powers(&[1.0], every);
        }
        match self.powers(&[1.0, 2.0, 5.0], 1) {
            labels if labels.len() >= 3 => labels,
            _ => self.multiples(most.min(5)),
        }
    }
}

impl Ranged for Scale {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let (from, to) = (self.place(self.from), self.place(self.to));
        let part = (self.place(*value) - from) / (to - from);
        first + (part * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match (self.logarithmic, hint.weight().allow_light_points()) {
            (true, true) => self.powers(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], 1),
            (true, false) => self.logarithmic_labels(hint.max_num_points()),
            (false, true) => Vec::new(),
            (false, false) => self.multiples(hint.max_num_points()),
        }
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

/// The text of a number along an axis.
pub(super) fn label(value: f64) -> String {
    let text = digits(value);
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}
