//! The report of the suite when a device breaks the contract.

use std::fmt;

/// One violation of the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub(crate) rule: Rule,
    pub(crate) seen: String,
}

/// The rules of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    Continuity,
    RoundTrip,
    StateRefused,
    UnchangedByRefusal,
    Reset,
    Features,
    Negotiated,
    Determinism,
    NoPanic,
    Returns,
    Room,
    Used,
    TakesInput,
    Script,
}

impl Rule {
    /// The text of the rule.
    fn says(self) -> &'static str {
        match self {
            Self::Continuity => {
                "a device that is saved and restored between two steps goes on as if nothing had happened"
            }
            Self::RoundTrip => "what is restored is what was saved",
            Self::StateRefused => {
                "a saved state that this device cannot have written is an error of `restore`"
            }
            Self::UnchangedByRefusal => "a refused state leaves the device as it was",
            Self::Reset => "`reset` brings back the state after power-on",
            Self::Features => {
                "every set of offered features can be accepted, again after each reset"
            }
            Self::Negotiated => {
                "a request that needs a feature is served when the driver has accepted it, and only then"
            }
            Self::Determinism => "the same requests cause the same effects",
            Self::NoPanic => "no request makes a device panic or breaks the gate's counts",
            Self::Returns => "every call returns",
            Self::Room => "a device says it has written at most what it had room for",
            Self::Used => {
                "the bytes that a device says it has written are written, from the chain's beginning on"
            }
            Self::TakesInput => "a device with room for it takes input",
            Self::Script => "the example in the test is one that the device can serve",
        }
    }

    /// Advice on how to fix the device.
    fn advice(self) -> &'static str {
        match self {
            Self::Continuity | Self::RoundTrip => {
                "look for a field that `save` or `restore` leaves out; what a request in flight needs later is read again \
                 from its chain in `complete`"
            }
            Self::StateRefused => {
                "open the state with `SavedState::open`, read each number with `small`, check its range, and end with \
                 `Fields::close`"
            }
            Self::UnchangedByRefusal => {
                "in `restore`, read and check every field before the first is assigned"
            }
            Self::Reset => "assign every field in `reset`, most simply `*self = Self::new(..)`",
            Self::Features => "let `activate` depend on its argument alone",
            Self::Negotiated => {
                "keep what `activate` was told, and refuse in `process` and `intake` what needs a feature that is not among it; \
                 in the test, say of each request with `needs` which features it needs, and with `without_requests` of which \
                 features no request depends"
            }
            Self::Determinism => {
                "look for state outside the device, such as a static; a device has no clock and no random numbers but the \
                 gate's"
            }
            Self::NoPanic => {
                "check lengths and offsets before they are used; return `DeviceError` for what makes no sense; stage or \
                 drop every token"
            }
            Self::Returns => {
                "bound every loop by what the guest has given, never by a value it has written"
            }
            Self::Room => {
                "count what `Chain::write` has written and what the outcome says, nothing else"
            }
            Self::Used => {
                "write the whole room up to the last byte that counts (zeroes where there is nothing to say), or count less"
            }
            Self::TakesInput => "consume at least a byte, or all of a packet that does not fit",
            Self::Script => "correct the example, or the device",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the contract: {}", self.rule.says())?;
        writeln!(f, "seen:         {}", self.seen)?;
        write!(f, "to mend it:   {}", self.rule.advice())
    }
}

impl std::error::Error for Violation {}

impl Rule {
    pub(crate) fn broken<T>(self, seen: impl Into<String>) -> Result<T, Violation> {
        Err(Violation { rule: self, seen: seen.into() })
    }
}
