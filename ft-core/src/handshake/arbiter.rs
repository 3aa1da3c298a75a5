//! The arbiters of both sides: two different ones could both grant (P2).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::refusal::Refusal;

/// An arbiter, as one side sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArbiterView {
    /// The kind of arbiter: `none`, `file`, `etcd`.
    pub kind: String,
    /// How this side reaches it. For people; not compared.
    pub place: String,
    /// The arbiter's identity, made together with its data.
    pub id: String,
    /// The mark that this side finds there. The primary wrote it for this session, so a copy does
    /// not have it.
    pub mark: String,
    /// The mark that the standby has left there for this session, which the primary must find. A
    /// replica gets everything that the primary writes, but the primary does not see what is
    /// written to the replica.
    pub counter_mark: String,
}

impl ArbiterView {
    /// The view without an arbiter.
    #[must_use]
    pub fn none() -> Self {
        Self { kind: "none".to_string(), ..Self::default() }
    }

    /// Whether there is an arbiter.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.kind != "none"
    }
}

impl core::fmt::Display for ArbiterView {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { place, id, mark, .. } = self;
        write!(f, "{place} (id {id}, mark {mark})")
    }
}

/// P2: two different arbiters could both grant.
pub(super) fn compare_arbiters(
    primary: &ArbiterView,
    standby: &ArbiterView,
    reasons: &mut Vec<String>,
) {
    if primary.kind != standby.kind {
        return reasons.push(format!(
            "arbiter: primary `{}`, standby `{}`: give both the same --arbiter",
            primary.kind, standby.kind
        ));
    }
    if (&primary.id, &primary.mark) != (&standby.id, &standby.mark) {
        reasons.push(format!(
            "arbiter: primary {primary}, standby {standby}: they differ: --arbiter must name one place that both \
             hosts see, not a copy"
        ));
    }
}

/// P2: checks that the primary, which now sees `primary`, finds the mark that the standby says it
/// has left. If it does not, it would not see a term that the standby wins either.
///
/// # Errors
/// What each side has, where, and what to change.
pub fn compare_counter_marks(primary: &ArbiterView, standby: &ArbiterView) -> Result<(), Refusal> {
    let (expected, found) = (&standby.counter_mark, &primary.counter_mark);
    if expected == found && !expected.is_empty() {
        return Ok(());
    }
    Err(Refusal(Vec::from([format!(
        "arbiter: the standby wrote the counter-mark `{expected}` to {}, the primary found `{found}` in {}: they use \
         different arbiters: --arbiter must name one place that both hosts read and write, not a replica that is \
         updated in one direction",
        standby.place, primary.place
    )])))
}
