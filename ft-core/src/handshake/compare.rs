//! Whether a standby can take over the primary's machine.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::arbiter::compare_arbiters;
use super::disks::compare_disks;
use super::hello::Hello;
use super::images::compare_boot;
use super::layout::compare_layouts;
use super::refusal::Refusal;

/// Checks that a standby can take over the primary's machine.
///
/// # Errors
/// All reasons why it cannot.
pub fn compare(primary: &Hello, standby: &Hello) -> Result<(), Refusal> {
    let mut reasons = Vec::new();
    if primary.protocol != standby.protocol {
        // No other field is certain to have the same meaning on both sides.
        return Err(Refusal(Vec::from([format!(
            "protocol: primary {}, standby {}: run the same release on both hosts",
            primary.protocol, standby.protocol
        )])));
    }
    if primary.name != standby.name {
        reasons.push(format!(
            "name: primary `{}`, standby `{}`: give both the same --name, or connect to the standby \
             of this virtual machine",
            primary.name, standby.name
        ));
    }
    compare_arbiters(&primary.arbiter, &standby.arbiter, &mut reasons);
    compare_layouts(&primary.layout, &standby.layout, &mut reasons);
    compare_disks(&primary.disks, &standby.disks, &mut reasons);
    compare_boot(primary, standby, &mut reasons);
    compare_facts(&primary.facts, &standby.facts, &mut reasons);
    if reasons.is_empty() { Ok(()) } else { Err(Refusal(reasons)) }
}

fn compare_facts(
    primary: &[(String, String)],
    standby: &[(String, String)],
    reasons: &mut Vec<String>,
) {
    let mut names: Vec<&String> = primary.iter().chain(standby).map(|(name, _)| name).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let of = |facts: &[(String, String)]| {
            let values: Vec<&str> = facts
                .iter()
                .filter(|(found, _)| found == name)
                .map(|(_, value)| value.as_str())
                .collect();
            if values.is_empty() { "nothing".to_string() } else { values.join(", ") }
        };
        let (ours, theirs) = (of(primary), of(standby));
        if ours != theirs {
            reasons.push(format!(
                "{name}: primary has {ours}, standby has {theirs}: use hosts with the same value"
            ));
        }
    }
}
