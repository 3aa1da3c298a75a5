//! Repeated failures: each reason is reported once, and all are counted (P9).

/// Number of reasons that are remembered. Any other reason is reported each time.
const REMEMBERED: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    told: Vec<String>,
    count: u64,
}

impl Repeats {
    /// Counts a failure. Returns `true` if its reason has not been reported since the last
    /// [`over`](Self::over).
    pub(crate) fn failed(&mut self, reason: &str) -> bool {
        self.count += 1;
        if self.told.iter().any(|told| told == reason) {
            return false;
        }
        if self.told.len() < REMEMBERED {
            self.told.push(reason.to_owned());
        }
        true
    }

    /// Ends the series of failures: the next failure is reported again, whatever its reason.
    pub(crate) fn over(&mut self) {
        *self = Self::default();
    }

    /// Number of failures since the last [`over`](Self::over).
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_once_until_it_is_over() {
        let mut repeats = Repeats::default();
        let told = ["a", "a", "b", "a", "b"].map(|reason| repeats.failed(reason));
        assert_eq!((told, repeats.count()), ([true, false, true, false, false], 5));
        repeats.over();
        assert_eq!((repeats.count(), repeats.failed("a")), (0, true));
    }

    /// P9. Fails if the memory used grows with the number of reasons.
    #[test]
    fn what_is_remembered_is_bounded() {
        let mut repeats = Repeats::default();
        (0..1000).for_each(|reason| assert!(repeats.failed(&reason.to_string())));
        assert_eq!(repeats.told.len(), REMEMBERED);
    }
}
