//! The right to write to an image (R7): a won term, whose set names the image.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::commit::{GateId, Term};

/// One image of an own disk, by a random number that no other image has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DiskId(pub u128);

/// As a UUID.
impl core::fmt::Display for DiskId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let part = |shift: u32, bits: u32| (self.0 >> shift) & ((1 << bits) - 1);
        let (a, b, c, d, e) = (part(96, 32), part(80, 16), part(64, 16), part(48, 16), part(0, 48));
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}")
    }
}

/// The one authority that says which term a gate's machine has won. Moved to the driver that asks
/// the arbiter. It is neither `Clone` nor constructible elsewhere.
///
/// ```compile_fail,E0599
/// # use io_gate::host::TermAuthority;
/// fn second(authority: &TermAuthority) -> TermAuthority { authority.clone() }
/// ```
#[derive(Debug)]
pub struct TermAuthority {
    gate: GateId,
    last: Term,
}

/// A term that this machine has won, and the images of the term's set.
///
/// ```compile_fail,E0451
/// # use io_gate::host::{DiskId, GateId, Term, WonTerm};
/// fn made_up(gate: GateId, image: DiskId) -> WonTerm {
///     WonTerm { gate, term: Term(1), set: vec![image] }
/// }
/// ```
#[derive(Debug)]
pub struct WonTerm {
    gate: GateId,
    term: Term,
    set: Vec<DiskId>,
}

/// The right of a gate's machine to write to one image, spent when the image is opened for writing.
///
/// ```compile_fail,E0451
/// # use io_gate::host::{DiskId, GateId, ImageRight, Term};
/// fn made_up(gate: GateId, image: DiskId) -> ImageRight {
///     ImageRight { gate, term: Term(1), image }
/// }
/// ```
#[derive(Debug)]
#[must_use = "an image is opened for writing by spending the right to it"]
pub struct ImageRight {
    gate: GateId,
    term: Term,
    image: DiskId,
}

/// The set of a term does not name an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotInSet {
    /// The term.
    pub term: Term,
    /// The image.
    pub image: DiskId,
}

impl core::fmt::Display for NotInSet {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "expected image {:08x} in the set of term {}, found other images: start the machine \
             from one of those",
            self.image.0 as u32, self.term
        )
    }
}

impl core::error::Error for NotInSet {}

impl TermAuthority {
    pub(crate) fn new(gate: GateId) -> Self {
        Self { gate, last: Term(0) }
    }

    /// The arbiter has granted `term` with this set, by its record. A machine without an arbiter
    /// has term 0.
    ///
    /// # Panics
    /// When the term is older than one won before: terms only grow (P2).
    #[must_use]
    pub fn won(&mut self, term: Term, set: Vec<DiskId>) -> WonTerm {
        assert!(self.last <= term, "P2: term {term} was won after {}", self.last);
        self.last = term;
        WonTerm { gate: self.gate, term, set }
    }
}

impl WonTerm {
    /// The term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// The right to write to an image of the set.
    ///
    /// # Errors
    /// When the set does not name the image.
    pub fn right_to(&self, image: DiskId) -> Result<ImageRight, NotInSet> {
        let Self { gate, term, .. } = *self;
        let named = self.set.contains(&image);
        if named { Ok(ImageRight { gate, term, image }) } else { Err(NotInSet { term, image }) }
    }
}

impl ImageRight {
    /// The gate whose machine has the right.
    #[must_use]
    pub fn gate(&self) -> GateId {
        self.gate
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> DiskId {
        self.image
    }

    /// The term in which it was won.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }
}
