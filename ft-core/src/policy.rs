//! When to end an epoch: on output (Kemari), with a timer as upper bound (Remus) and a budget of
//! dirty pages, and rarely for an idle guest.
//!
//! Output waits for the checkpoint that contains its cause, so an early end of the epoch reduces
//! latency; but each checkpoint costs a pause. A guest that is silent after its output
//! ([`PolicyOptions::linger`]), or has produced as much as in the epochs before
//! ([`PolicyInputs::expected`]), most likely waits for a reaction: the epoch ends at once. A guest
//! that continues to produce output shares each checkpoint among enough effects to keep the time in
//! pauses below [`PolicyOptions::pause_percent`].
//! The timer bounds what is executed again after a takeover. This is invisible outside, so the
//! interval may be long while the guest is idle.

use core::time::Duration;

use crate::time::Time;

/// Settings of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyOptions {
    /// The minimum time that the guest runs between two pauses. The guest also runs at least as
    /// long as the last pause lasted, up to 0.5 s.
    pub min_gap: Duration,
    /// No epoch of a busy guest lasts longer than this.
    pub interval: Duration,
    /// No epoch of an idle guest lasts longer than this.
    pub idle_interval: Duration,
    /// How long a busy guest must produce no output before it counts as waiting for its output.
    pub linger: Duration,
    /// The share of time, in percent, that a guest with continual output may spend in pauses.
    pub pause_percent: u32,
    /// The longest time that output waits to keep that share.
    pub max_wait: Duration,
    /// Number of dirty pages at which an epoch ends early. It bounds the pause and the standby's
    /// memory.
    pub dirty_budget: u64,
}

impl Default for PolicyOptions {
    fn default() -> Self {
        Self {
            min_gap: Duration::from_micros(100),
            interval: Duration::from_millis(25),
            idle_interval: Duration::from_secs(1),
            linger: Duration::from_micros(50),
            pause_percent: 10,
            max_wait: Duration::from_millis(3),
            dirty_budget: 8192,
        }
    }
}

/// The longest time that the guest runs undisturbed after a pause to make progress.
const LONGEST_GAP: Duration = Duration::from_millis(500);

/// The state of the guest and the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyInputs {
    /// Effects staged in the current epoch.
    pub held: usize,
    /// When the first of them was staged.
    pub first_held_at: Option<Time>,
    /// When the last of them was first seen as staged.
    pub last_held_at: Option<Time>,
    /// Recent effects per epoch: once this many are held, no more are waited for.
    pub expected: usize,
    /// The length of the last pause.
    pub last_pause: Duration,
    /// Pages written since the last seal, as far as known. At least 1 if the guest has run and no
    /// better number is known.
    pub dirty_pages: u64,
    /// When the last epoch was sealed.
    pub last_seal: Time,
    /// Whether all virtual CPUs are halted.
    pub guest_idle: bool,
}

/// Why an epoch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealReason {
    /// Effects wait for the end of the epoch.
    Output,
    /// Too many pages are dirty.
    DirtyBudget,
    /// The epoch has lasted long enough.
    Timer,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// End the epoch.
    SealNow(SealReason),
    /// Ask again at this time, or earlier when an input changes.
    WaitUntil(Time),
}

/// The policy. It has no state.
#[derive(Clone, Copy, Debug, Default)]
pub struct EpochPolicy {
    options: PolicyOptions,
}

impl EpochPolicy {
    /// A policy with these options.
    #[must_use]
    pub fn new(options: PolicyOptions) -> Self {
        Self { options }
    }

    /// Its options.
    #[must_use]
    pub fn options(&self) -> &PolicyOptions {
        &self.options
    }

    /// Decides whether the epoch ends now, for a primary that [may
    /// seal](crate::primary::Primary::may_seal).
    #[must_use]
    pub fn next(&self, now: Time, inputs: &PolicyInputs) -> Decision {
        let (due, reason) = [self.output_due(now, inputs), self.budget_due(inputs)]
            .into_iter()
            .flatten()
            .chain([self.timer_due(inputs)])
            .min_by_key(|(due, _)| *due)
            .expect("the timer always has a due time");
        let due = due.max(inputs.last_seal + self.least_gap(inputs.last_pause));
        if due <= now { Decision::SealNow(reason) } else { Decision::WaitUntil(due) }
    }

    /// The minimum time that the guest runs after a pause: as long as the pause. A pause that was
    /// extremely long, for instance because a backend hung, counts only up to a limit, since output
    /// would wait equally long without need.
    #[must_use]
    pub fn least_gap(&self, last_pause: Duration) -> Duration {
        self.options.min_gap.max(last_pause.min(LONGEST_GAP))
    }

    fn output_due(&self, now: Time, inputs: &PolicyInputs) -> Option<(Time, SealReason)> {
        if inputs.held == 0 {
            return None;
        }
        let first = inputs.first_held_at.unwrap_or(now);
        if inputs.held >= inputs.expected {
            return Some((first, SealReason::Output));
        }
        let silent = inputs.last_held_at.unwrap_or(first) + self.options.linger;
        let paced = (inputs.last_seal + self.pace(inputs.last_pause)).max(first);
        let due = silent.min(paced).min(first + self.options.max_wait);
        Some((due, SealReason::Output))
    }

    /// The time from seal to seal at which pauses like the last one have their share.
    fn pace(&self, pause: Duration) -> Duration {
        pause * 100 / self.options.pause_percent.max(1)
    }

    fn budget_due(&self, inputs: &PolicyInputs) -> Option<(Time, SealReason)> {
        (inputs.dirty_pages >= self.options.dirty_budget)
            .then_some((inputs.last_seal, SealReason::DirtyBudget))
    }

    fn timer_due(&self, inputs: &PolicyInputs) -> (Time, SealReason) {
        let quiet = inputs.guest_idle || inputs.dirty_pages == 0;
        let interval = if quiet {
            self.options.idle_interval.max(self.options.interval)
        } else {
            self.options.interval
        };
        (inputs.last_seal + interval, SealReason::Timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const US: u64 = 1_000;

    fn policy() -> EpochPolicy {
        EpochPolicy::new(PolicyOptions {
            min_gap: Duration::from_millis(1),
            interval: Duration::from_millis(25),
            idle_interval: Duration::from_millis(1000),
            linger: Duration::from_micros(200),
            pause_percent: 10,
            max_wait: Duration::from_millis(3),
            dirty_budget: 100,
        })
    }

    fn busy() -> PolicyInputs {
        PolicyInputs { dirty_pages: 1, last_seal: Time(100 * MS), ..PolicyInputs::default() }
    }

    fn next(now: u64, inputs: PolicyInputs) -> Decision {
        policy().next(Time(now), &inputs)
    }

    #[test]
    fn the_share_of_pauses_is_a_share_down_to_one_in_a_hundred() {
        let pace = |pause_percent| {
            let options = PolicyOptions { pause_percent, ..PolicyOptions::default() };
            EpochPolicy::new(options).pace(Duration::from_millis(1)).as_millis()
        };
        assert_eq!([0, 1, 2, 10].map(pace), [100, 100, 50, 10]);
    }

    #[test]
    fn output_ends_an_epoch_after_lingering() {
        let at = Some(Time(110 * MS));
        // Its share of pauses would let it wait until 160 ms.
        let last_pause = Duration::from_millis(6);
        let inputs = PolicyInputs {
            held: 1,
            expected: 2,
            first_held_at: at,
            last_held_at: at,
            last_pause,
            ..busy()
        };
        let due = Time(110 * MS + 200 * US);
        assert_eq!(next(110 * MS, inputs), Decision::WaitUntil(due));
        assert_eq!(next(due.0, inputs), Decision::SealNow(SealReason::Output));
        let all = PolicyInputs { held: 2, ..inputs };
        assert_eq!(next(110 * MS, all), Decision::SealNow(SealReason::Output));
    }

    #[test]
    fn output_without_end_waits_for_the_share_of_pauses_but_not_for_ever() {
        let inputs = |now: u64, pause: u64| PolicyInputs {
            held: 9,
            expected: 10,
            first_held_at: Some(Time(101 * MS)),
            last_held_at: Some(Time(now)),
            last_pause: Duration::from_micros(pause),
            ..busy()
        };
        // A pause of 0.2 ms in every 2 ms.
        let paced = Decision::WaitUntil(Time(102 * MS));
        assert_eq!(next(102 * MS - 100 * US, inputs(102 * MS - 100 * US, 200)), paced);
        let output = Decision::SealNow(SealReason::Output);
        assert_eq!(next(102 * MS, inputs(102 * MS, 200)), output);
        // For pauses of 2 ms it would wait 20 ms; the limit is 3 ms.
        assert!(matches!(next(103 * MS, inputs(103 * MS, 2000)), Decision::WaitUntil(_)));
        assert_eq!(next(104 * MS, inputs(104 * MS, 2000)), output);
    }

    #[test]
    fn a_guest_runs_as_long_as_it_stood() {
        let inputs = PolicyInputs { held: 9, last_pause: Duration::from_millis(6), ..busy() };
        let due = Decision::WaitUntil(Time(106 * MS));
        assert_eq!(next(105 * MS, inputs), due);
        assert!(matches!(next(106 * MS, inputs), Decision::SealNow(_)));
        // But not after a pause of 30 s.
        let hung = PolicyInputs { last_pause: Duration::from_secs(30), ..inputs };
        assert!(matches!(next(600 * MS, hung), Decision::SealNow(_)));
    }

    #[test]
    fn epochs_keep_their_distance() {
        let inputs = PolicyInputs {
            held: 9,
            first_held_at: Some(Time(100 * MS)),
            dirty_pages: 200,
            ..busy()
        };
        assert_eq!(next(100 * MS + 500 * US, inputs), Decision::WaitUntil(Time(101 * MS)));
        assert!(matches!(next(101 * MS, inputs), Decision::SealNow(_)));
    }

    #[test]
    fn the_timer_bounds_a_busy_epoch_and_stretches_for_an_idle_guest() {
        assert_eq!(next(124 * MS, busy()), Decision::WaitUntil(Time(125 * MS)));
        assert_eq!(next(125 * MS, busy()), Decision::SealNow(SealReason::Timer));
        for quiet in
            [PolicyInputs { dirty_pages: 0, ..busy() }, PolicyInputs { guest_idle: true, ..busy() }]
        {
            assert_eq!(next(125 * MS, quiet), Decision::WaitUntil(Time(1100 * MS)));
        }
    }

    #[test]
    fn an_idle_guest_makes_hardly_any_checkpoints() {
        let mut inputs = PolicyInputs { dirty_pages: 3, guest_idle: true, ..busy() };
        let (mut now, mut seals) = (inputs.last_seal, 0);
        let end = now + Duration::from_secs(10);
        while now < end {
            match policy().next(now, &inputs) {
                Decision::SealNow(_) => {
                    seals += 1;
                    inputs.last_seal = now;
                }
                Decision::WaitUntil(due) => now = due,
            }
        }
        assert!(seals <= 10, "{seals} checkpoints in ten idle seconds");
    }

    #[test]
    fn the_dirty_budget_ends_an_epoch() {
        let inputs = PolicyInputs { dirty_pages: 100, ..busy() };
        assert_eq!(next(102 * MS, inputs), Decision::SealNow(SealReason::DirtyBudget));
    }
}
