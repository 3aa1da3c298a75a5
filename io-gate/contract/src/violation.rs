//! The suite's report when a device breaks the contract.

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
    Written,
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
                "a device that is saved and restored between two steps continues as if nothing had happened"
            }
            Self::RoundTrip => "the restored state is the saved state",
            Self::StateRefused => {
                "`restore` refuses a saved state that this device cannot have written"
            }
            Self::UnchangedByRefusal => "a refused state does not change the device",
            Self::Written => {
                "a field of the configuration space that the driver writes has its former value or the written one"
            }
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
            Self::Room => "a device reports at most as many written bytes as there was room for",
            Self::Used => {
                "the bytes that a device reports as written are written, from the beginning of the chain"
            }
            Self::TakesInput => "a device with room for input accepts it",
            Self::Script => "the device can serve the example in the test",
        }
    }

    /// Advice on how to fix the device.
    fn advice(self) -> &'static str {
        match self {
            Self::Continuity | Self::RoundTrip => {
                "look for a field that `save` or `restore` leaves out; data that a request in flight needs later is \
                 read again from its chain in `complete`"
            }
            Self::StateRefused => {
                "open the state with `SavedState::open`, return its error, and check the range of each field whose type \
                 allows more than the device does"
            }
            Self::UnchangedByRefusal => {
                "in `restore`, open the state and check every field before you assign the first"
            }
            Self::Written => {
                "in `write_config`, assign the value of `Writable::change` as it is, or refuse it; in `config`, give the \
                 assigned value back"
            }
            Self::Reset => "assign every field in `reset`, most simply `*self = Self::new(..)`",
            Self::Features => "let `activate` depend only on its argument",
            Self::Negotiated => {
                "keep the features that `activate` received, and refuse in `process` and `intake` each request that \
                 needs another feature; in the test, name with `needs` the features that each request needs, and with \
                 `without_requests` the features that no request depends on"
            }
            Self::Determinism => {
                "look for state outside the device, for instance a static; a device takes time and random numbers \
                 only from the gate"
            }
            Self::NoPanic => {
                "check lengths and offsets before you use them; return `DeviceError` for an invalid request; stage or \
                 drop every token"
            }
            Self::Returns => {
                "bound every loop by the length of the request, never by a value that the guest has written"
            }
            Self::Room => "count only what `Chain::write` has written and what the outcome says",
            Self::Used => {
                "write all bytes up to the last byte that counts (zeroes where there is no data), or count fewer"
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
        write!(f, "to fix it:    {}", self.rule.advice())
    }
}

impl std::error::Error for Violation {}

impl Rule {
    pub(crate) fn broken<T>(self, seen: impl Into<String>) -> Result<T, Violation> {
        Err(Violation { rule: self, seen: seen.into() })
    }
}
