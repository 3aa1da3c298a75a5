//! `cargo xtask sim --model`: explores commit and takeover exhaustively within small bounds, then
//! again without each rule in turn, to show that each rule is needed.
//!
//! This crate may not depend on a crate of the product: the model is written from the rules, not
//! from the code.

mod protocol;

use std::process::ExitCode;

use clap::Parser;
use kemari_flags::model::Arguments;
use protocol::{Protocol, Rule};
use stateright::{Checker, Model};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Arguments { machines, terms, epochs, links } = arguments;
    println!("{machines} machines, {terms} terms, {epochs} epochs, {links} connections");
    let protocol = Protocol { machines, terms, epochs, links, broken: None };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let whole = protocol.clone().checker().threads(threads).spawn_bfs().join();
    let (states, depth) = (whole.unique_state_count(), whole.max_depth());
    println!("{states} states, all reachable within these bounds, at most {depth} steps deep");
    let mut good = true;
    for property in protocol.properties() {
        let found = whole.discovery(property.name).is_some();
        let wanted = property.expectation == stateright::Expectation::Sometimes;
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
    for rule in Rule::ALL {
        let small =
            Protocol { machines: 2, epochs: 3, links: 2, broken: Some(rule), ..protocol.clone() };
        let checker = small.clone().checker().threads(threads).spawn_bfs().join();
        let always = |name: &&str| name.starts_with('P');
        let names = small.properties().into_iter().map(|property| property.name);
        let broken: Vec<_> =
            names.filter(always).filter(|name| checker.discovery(name).is_some()).collect();
        good &= !broken.is_empty();
        let verdict =
            if broken.is_empty() { "NOTHING BREAKS".to_owned() } else { broken.join(", ") };
        println!("  without `{rule:?}`: {verdict}");
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
