//! Rules against code from files elsewhere.

use super::{Lint, Names};
use crate::layer::Layer;
use crate::rules::Rule;

pub(crate) static INCLUDE: Lint = Lint {
    rule: Rule {
        id: "source/include",
        layer: Layer::Source,
        why: "`include!` and similar macros take code or data from files outside of the review of this crate.",
        instead: "Put the code in a module of the crate, the data in a constant.",
    },
    forbids: "`include!`, `include_str!` and `include_bytes!`.",
    example: "include!(\"../../shared/table.rs\");",
    is_written: true,
    names: Names { macros: &["include", "include_str", "include_bytes"], ..Names::NONE },
};

pub(crate) static PATH: Lint = Lint {
    rule: Rule {
        id: "source/path-attribute",
        layer: Layer::Source,
        why: "`#[path]` takes a module from a file elsewhere, outside of the review.",
        instead: "Put the module where its name points.",
    },
    forbids: "`#[path]`.",
    example: "#[path = \"../../shared/table.rs\"]\nmod table;",
    is_written: true,
    names: Names { attributes: &["path"], ..Names::NONE },
};
