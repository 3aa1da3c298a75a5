//! Judges the packet capture: both hosts must never send frames at the same time (P2).

use crate::capture::Frame;
use crate::findings::{Finding, Kind};

/// Which of the two hosts may send frames in a round.
#[derive(Debug, Clone, Copy)]
pub struct Succession {
    /// The switch port of the host that ran the guest when the round began.
    pub before: usize,
    /// The port of the other host.
    pub other: usize,
    /// Whether the guest moved to the other host in this round.
    pub moved: bool,
}

impl Succession {
    /// The first contradiction in `frames`, which are in order of arrival. A frame on a cut cable
    /// counts: it left its machine.
    pub fn check(&self, frames: &[Frame]) -> Option<Finding> {
        let of = |port| frames.iter().filter(move |frame| frame.port == port);
        let first = of(self.other).next()?;
        if !self.moved {
            let count = of(self.other).count();
            let what = format!("the guest did not move, but the other host sent {count} frames");
            return Some(Finding::new(Kind::TwoActive, what));
        }
        let late: Vec<_> = of(self.before).filter(|frame| frame.at > first.at).collect();
        let last = late.last()?;
        let (count, after) = (late.len(), last.at - first.at);
        let what = format!(
            "the old host sent {count} frames after the first of the new one, the last {after:?} after it"
        );
        Some(Finding::new(Kind::TwoActive, what))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::capture::Fate;

    const MOVED: Succession = Succession { before: 0, other: 1, moved: true };

    fn frames(ports: &[usize]) -> Vec<Frame> {
        let frame = |&port| Frame::describe(port, 1, &[0; 60], Fate::Forwarded).unwrap();
        ports.iter().map(frame).collect()
    }

    #[test]
    fn one_after_the_other_is_right() {
        assert!(MOVED.check(&frames(&[0, 2, 0, 2, 1, 2, 1])).is_none());
        assert!(MOVED.check(&frames(&[0, 2, 2])).is_none());
        assert!(Succession { moved: false, ..MOVED }.check(&frames(&[0, 2, 0])).is_none());
    }

    #[test]
    fn a_frame_of_the_old_host_after_the_new_ones_first_shows() {
        let found = MOVED.check(&frames(&[0, 1, 2, 0]));
        assert!(found.as_ref().unwrap().what.contains("sent 1 frames after"), "{found:?}");
    }

    #[test]
    fn a_frame_of_a_standby_shows() {
        let found = Succession { moved: false, ..MOVED }.check(&frames(&[0, 1, 0]));
        assert!(found.as_ref().unwrap().what.contains("the other host sent 1"), "{found:?}");
    }
}
