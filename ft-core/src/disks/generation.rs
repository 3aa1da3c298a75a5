//! Which of two images is newer (R6): read from recorded generations, not guessed. An image gets a
//! new generation each time its machine wins a term. Its former generations are its parents.

use alloc::vec::Vec;

pub use io_gate::host::DiskId;
use serde::{Deserialize, Serialize};

/// The machine that the images of a pair belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PairId(pub u128);

/// The text is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a UUID that is not zero, for instance 0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")]
pub struct IdError;

impl core::fmt::Display for PairId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // In the form of an image's id.
        DiskId(self.0).fmt(f)
    }
}

impl core::str::FromStr for PairId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let lens = text.split('-').map(str::len);
        let hex = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
        if !lens.eq([8, 4, 4, 4, 12]) || !text.bytes().all(hex) {
            return Err(IdError);
        }
        let digits: alloc::string::String = text.split('-').collect();
        let id = u128::from_str_radix(&digits, 16).map_err(|_| IdError)?;
        if id == 0 { Err(IdError) } else { Ok(Self(id)) }
    }
}

/// A period in which one machine wrote an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// The term in which the machine ran; 0: the image was made, and no machine has run on it.
    pub term: u64,
    /// A random number, since an arbiter with older data restored may grant a term twice.
    pub id: u128,
}

impl core::fmt::Display for Generation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}/{:08x}", self.term, self.id as u32)
    }
}

/// The most parents that an image records. Beyond this, the oldest parent is dropped.
pub const MAX_PARENTS: usize = 32;

/// The generation of an image, and its parents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    current: Generation,
    /// The newest first.
    parents: Vec<Generation>,
    /// Whether a parent was dropped.
    cut: bool,
}

/// The relation of one image to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Both are of one generation.
    Same,
    /// The other image continues this one.
    Ancestor,
    /// This image continues the other one.
    Descendant,
    /// Neither continues the other: each has writes that the other lacks.
    Diverged,
    /// A parent was dropped, so the relation is not known.
    Unknown,
}

impl Lineage {
    /// The lineage of an image without parents.
    #[must_use]
    pub fn new(current: Generation) -> Self {
        Self { current, parents: Vec::new(), cut: false }
    }

    /// The current generation.
    #[must_use]
    pub fn current(&self) -> Generation {
        self.current
    }

    /// Its former generations, the newest first.
    #[must_use]
    pub fn parents(&self) -> &[Generation] {
        &self.parents
    }

    /// The lineage of the image after its machine has won a term, with `by` as its generation.
    #[must_use]
    pub fn continued(&self, by: Generation) -> Self {
        let mut parents = Vec::from([self.current]);
        parents.extend(self.parents.iter().take(MAX_PARENTS - 1));
        Self { current: by, parents, cut: self.cut || self.parents.len() >= MAX_PARENTS }
    }

    /// The relation of this image to `other`.
    #[must_use]
    pub fn relation(&self, other: &Self) -> Relation {
        if self.current == other.current {
            Relation::Same
        } else if other.parents.contains(&self.current) {
            Relation::Ancestor
        } else if self.parents.contains(&other.current) {
            Relation::Descendant
        } else if self.cut || other.cut {
            Relation::Unknown
        } else {
            Relation::Diverged
        }
    }

    /// Whether a machine has run on the image, or on one that this one was made equal to.
    #[must_use]
    pub(super) fn has_run(&self) -> bool {
        self.current.term > 0
    }

    /// Whether the image has a generation of this term, or may have forgotten one.
    #[must_use]
    pub(super) fn knows_term(&self, term: u64) -> bool {
        let mut all = self.parents.iter().chain([&self.current]);
        all.any(|known| known.term == term)
            || self.cut && self.parents.last().is_some_and(|oldest| term < oldest.term)
    }

    /// Whether the list of parents is within its bound: a lineage that was read may violate it.
    #[must_use]
    pub(super) fn is_bounded(&self) -> bool {
        self.parents.len() <= MAX_PARENTS
    }
}
