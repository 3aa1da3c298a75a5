//! Which of two images is newer (R6): recorded, not guessed. An image gets a new generation each
//! time its machine wins a term. Its former generations are its parents.

use alloc::vec::Vec;

pub use io_gate::host::DiskId;
use serde::{Deserialize, Serialize};

/// The machine that the images of a pair belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PairId(pub u128);

/// A period in which one machine wrote an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// The term in which the machine ran.
    pub term: u64,
    /// A random number: an arbiter whose data went back may give a term twice.
    pub id: u128,
}

impl core::fmt::Display for Generation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}/{:08x}", self.term, self.id as u32)
    }
}

/// The most parents that an image remembers: the oldest is forgotten.
pub const MAX_PARENTS: usize = 32;

/// The generation of an image, and its parents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    current: Generation,
    /// The newest first.
    parents: Vec<Generation>,
    /// Whether a parent was forgotten.
    cut: bool,
}

/// What one image is to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Both are of one generation.
    Same,
    /// The other image continues this one.
    Ancestor,
    /// This image continues the other one.
    Descendant,
    /// Both continue a third one, or nothing in common: each has what the other lacks.
    Diverged,
    /// Too many generations lie between them to tell.
    Unknown,
}

impl Lineage {
    /// An image without a past.
    #[must_use]
    pub fn new(current: Generation) -> Self {
        Self { current, parents: Vec::new(), cut: false }
    }

    /// The generation.
    #[must_use]
    pub fn current(&self) -> Generation {
        self.current
    }

    /// The image from now on, when its machine has won a term.
    #[must_use]
    pub fn continued(&self, by: Generation) -> Self {
        let mut parents = Vec::from([self.current]);
        parents.extend(self.parents.iter().take(MAX_PARENTS - 1));
        Self { current: by, parents, cut: self.cut || self.parents.len() >= MAX_PARENTS }
    }

    /// What this image is to `other`.
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

    /// Whether the list of parents is within its bound, as of an image that was read.
    #[must_use]
    pub(super) fn is_bounded(&self) -> bool {
        self.parents.len() <= MAX_PARENTS
    }
}
