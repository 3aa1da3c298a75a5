//! Why a listed call is not reached, and which results are right although they look like a broken
//! promise.

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::outcome::Line;

/// The contents of `tests/verify/faults/reasons.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reasons {
    /// Calls that the scenario does not reach.
    #[serde(default)]
    never: Vec<Never>,
    /// Results that look like a broken promise and are right.
    #[serde(default)]
    argued: Vec<Argued>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Never {
    /// The roles are listed, so that a role that no longer makes the call is noticed.
    roles: Vec<String>,
    calls: Vec<String>,
    why: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Argued {
    /// A part of the violation's text.
    outcome: String,
    /// All threads, calls or faults, unless given.
    threads: Option<Vec<String>>,
    calls: Option<Vec<String>>,
    faults: Option<Vec<String>>,
    #[serde(rename = "why")]
    _why: String,
}

pub(crate) fn read() -> Result<Reasons> {
    toml::from_str(include_str!("../reasons.toml")).context("tests/verify/faults/reasons.toml")
}

fn has(names: Option<&Vec<String>>, name: &str) -> bool {
    names.is_none_or(|names| names.iter().any(|known| known == name))
}

impl Reasons {
    /// Why the scenario does not reach this call of this role.
    pub(crate) fn never(&self, role: &str, call: &str) -> Option<&str> {
        let is_it = |never: &&Never| has(Some(&never.roles), role) && has(Some(&never.calls), call);
        self.never.iter().find(is_it).map(|never| &*never.why)
    }

    /// Whether this result broke a promise, and no argument says that the result is right.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::lists;

    /// A reason for an unlisted call would excuse nothing, or would excuse a later addition.
    #[test]
    fn each_reason_is_for_calls_that_are_on_a_list_and_for_each_role_once() {
        let reasons = read().unwrap();
        let mut given = Vec::new();
        for never in &reasons.never {
            for role in &never.roles {
                for call in &never.calls {
                    let is_it = |(other, name, _)| other == *role && name == *call;
                    assert!(lists::all().any(is_it), "{role} {call}: not on this role's list");
                    given.push((role, call));
                }
            }
        }
        let all = given.len();
        given.sort();
        given.dedup();
        assert_eq!(given.len(), all, "a call of a role has two reasons");
    }
}
