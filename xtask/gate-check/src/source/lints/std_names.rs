//! The rule against names of std.

use super::{Lint, Names};
use crate::layer::Layer;
use crate::rules::Rule;

pub(crate) static STD: Lint = Lint {
    rule: Rule {
        id: "source/std",
        layer: Layer::Source,
        why: "std is the outside: files, sockets, threads, clocks.",
        instead: "Use `core` and `alloc`. Stage with a token what leaves the machine; request from the gate what \
                  comes in.",
    },
    forbids: "A path that begins with `std`, and a macro that prints.",
    example: "fn transmit(frame: &[u8]) { let _ = std::fs::write(\"/tmp/frame\", frame); }",
    is_written: false,
    names: Names {
        beginnings: &[&["std"]],
        macros: &["println", "eprintln", "print", "eprint", "dbg"],
        ..Names::NONE
    },
};
