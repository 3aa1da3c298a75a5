//! Violations of the promises, by kind.

use std::fmt;

use serde::Serialize;

/// The kind of a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Something acknowledged is gone (P3).
    Lost,
    /// The guest returned to a state before one that it had shown (P1).
    RolledBack,
    /// An effect left before its checkpoint was acknowledged (P1).
    Unacknowledged,
    /// An operation took effect more than once.
    Duplicated,
    /// No order of the operations explains the answers (P1, P3).
    NotLinearizable,
    /// Both hosts performed effects (P2).
    TwoActive,
    /// Memory or state differs, or the guest found a fault in itself (P4, P8).
    Corrupt,
    /// A process used more than its limit (P9).
    Unbounded,
    /// A part of the pair behaved against its specification.
    Behaviour,
}

/// One violation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its kind.
    pub kind: Kind,
    /// What was expected and what was found.
    pub what: String,
}

impl Finding {
    /// Creates a finding.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Lost => "lost",
            Kind::RolledBack => "rolled back",
            Kind::Unacknowledged => "unacknowledged",
            Kind::Duplicated => "duplicated",
            Kind::NotLinearizable => "not linearizable",
            Kind::TwoActive => "two active",
            Kind::Corrupt => "corrupt",
            Kind::Unbounded => "unbounded",
            Kind::Behaviour => "behaviour",
        };
        write!(f, "{kind}: {}", self.what)
    }
}
