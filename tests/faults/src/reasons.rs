//! Why a call on a list is not reached, and which outcomes are as they should be although they look like a broken promise.

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::results::Line;

/// `tests/faults/reasons.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reasons {
    /// Calls that no life here reaches.
    #[serde(default)]
    never: Vec<Never>,
    /// Outcomes that are right.
    #[serde(default)]
    argued: Vec<Argued>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Never {
    /// All, unless named.
    roles: Option<Vec<String>>,
    calls: Vec<String>,
    why: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Argued {
    /// What is part of the violation's text.
    outcome: String,
    /// All, unless named.
    threads: Option<Vec<String>>,
    calls: Option<Vec<String>>,
    faults: Option<Vec<String>>,
    #[serde(rename = "why")]
    _why: String,
}

pub(crate) fn read() -> Result<Reasons> {
    toml::from_str(include_str!("../reasons.toml")).context("tests/faults/reasons.toml")
}

fn has(names: Option<&Vec<String>>, name: &str) -> bool {
    names.is_none_or(|names| names.iter().any(|known| known == name))
}

impl Reasons {
    /// Why nothing is reached of this row.
    pub(crate) fn never(&self, role: &str, call: &str) -> Option<&str> {
        let is_it =
            |never: &&Never| has(never.roles.as_ref(), role) && has(Some(&never.calls), call);
        self.never.iter().find(is_it).map(|never| &*never.why)
    }

    /// Whether this one broke a promise, and no argument says that it is right so.
    pub(crate) fn is_broken(&self, line: &Line) -> bool {
        let call = line.call.split(' ').next().unwrap_or_default();
        let is_argued = |violation: &String| {
            self.argued.iter().any(|argued| {
                violation.contains(&argued.outcome)
                    && has(argued.threads.as_ref(), &line.thread)
                    && has(argued.calls.as_ref(), call)
                    && has(argued.faults.as_ref(), &line.fault)
            })
        };
        !line.outcome.violations.iter().all(is_argued)
    }
}
