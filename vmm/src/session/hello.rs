//! What either side says of itself in the handshake.

use ft_core::Term;
use ft_core::handshake::{ArbiterView, DiskStorage, Hello, SessionOptions};
use ft_core::wire::PROTOCOL;
use kemari_machine::Machine;

use crate::hello;

/// What either side says about itself, except its identity. The primary sets term, session and options.
pub(crate) fn describe(
    machine: &Machine,
    name: &str,
    arbiter: Option<ArbiterView>,
    disks: Vec<DiskStorage>,
    networks: Vec<(String, String)>,
) -> Hello {
    Hello {
        protocol: PROTOCOL,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        name: name.to_owned(),
        term: Term(0),
        session: 0,
        standby_session: 0,
        holder: String::new(),
        arbiter: arbiter.unwrap_or_else(ArbiterView::none),
        layout: hello::layout(machine),
        disks,
        boot: None,
        images: Vec::new(),
        facts: machine.facts().into_iter().chain(networks).collect(),
        options: SessionOptions::default(),
    }
}
