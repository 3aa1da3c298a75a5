//! `cargo xtask sim --model`: explores commit and takeover exhaustively within small bounds, then
//! again without each rule in turn, to show that each rule is needed. Then the same for the set and
//! the generations of own disks.
//!
//! This crate may not depend on a crate of the product: the models are written from the rules, not
//! from the code.

mod disks;
mod protocol;

use std::fmt::Debug;
use std::hash::Hash;
use std::process::ExitCode;

use clap::Parser;
use disks::Disks;
use kemari_flags::model::Arguments;
use protocol::Protocol;
use stateright::{Checker, Expectation, HasDiscoveries, Model};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Arguments { machines, terms, epochs, links } = arguments;
    println!("{machines} machines, {terms} terms, {epochs} epochs, {links} connections");
    let protocol = Protocol { machines, terms, epochs, links, broken: None };
    let mut good = holds(&protocol);
    for rule in protocol::Rule::ALL {
        let small =
            Protocol { machines: 2, epochs: 3, links: 2, broken: Some(rule), ..protocol.clone() };
        good &= breaks(small, rule);
    }
    let disks = Disks { hosts: 2, terms: 3, writes: 1, connections: 2, ends: 2, broken: None };
    let Disks { hosts, terms, writes, connections, ends, .. } = disks;
    println!(
        "own disks: {hosts} hosts, {terms} terms, {writes} write, {connections} connections, {ends} ends of a process"
    );
    good &= holds(&disks);
    for rule in disks::Rule::ALL {
        good &= breaks(Disks { broken: Some(rule), ..disks.clone() }, rule);
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Explores a model: each promise holds, and what should happen happens.
fn holds<M>(model: &M) -> bool
where
    M: Model + Clone + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Debug + PartialEq + Clone,
{
    let whole = model.clone().checker().threads(threads()).spawn_bfs().join();
    let (states, depth) = (whole.unique_state_count(), whole.max_depth());
    println!("{states} states, all reachable within these bounds, at most {depth} steps deep");
    let mut good = true;
    for property in model.properties() {
        let found = whole.discovery(property.name).is_some();
        let wanted = property.expectation == Expectation::Sometimes;
        good &= found == wanted;
        let text = match (wanted, found) {
            (false, false) => "holds",
            (true, true) => "happens",
            (false, true) => "BROKEN",
            (true, false) => "NEVER HAPPENS",
        };
        println!("  {text:>13}  {}", property.name);
        if let (false, Some(path)) = (wanted, whole.discovery(property.name)) {
            println!("{path}");
        }
    }
    good
}

/// Explores a model without a rule: a promise has to break.
fn breaks<M>(model: M, rule: impl Debug) -> bool
where
    M: Model + Clone + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Debug + PartialEq + Clone,
{
    let properties = model.properties();
    let checker = model.checker().threads(threads());
    let checker = checker.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let broken: Vec<_> = properties
        .into_iter()
        .filter(|property| property.expectation == Expectation::Always)
        .map(|property| property.name)
        .filter(|name| checker.discovery(name).is_some())
        .collect();
    let verdict = if broken.is_empty() { "NOTHING BREAKS".to_owned() } else { broken.join(", ") };
    println!("  without `{rule:?}`: {verdict}");
    !broken.is_empty()
}
