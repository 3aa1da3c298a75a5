//! The rules of the scan, one family in a file: what each forbids and why, an example, and how to
//! do it right. The error and the book (`docs/rules.md`) show these texts.
//!
//! A rule that is about a name lists it in `names`; the other rules have functions that the walk
//! (`scan.rs`) calls for the syntax that they are about.

pub(super) mod attributes;
pub(super) mod conditions;
pub(super) mod elsewhere;
pub(super) mod extern_crate;
pub(super) mod far_side;
pub(super) mod foreign;
pub(super) mod forget;
pub(super) mod generics;
pub(super) mod lent;
pub(super) mod macros;
pub(super) mod messages;
pub(super) mod objects;
pub(super) mod pointers;
pub(super) mod shared;
pub(super) mod statics;
pub(super) mod std_names;
pub(super) mod unsafe_code;
pub(super) mod waits;

use crate::rules::Rule;

/// A rule of the scan.
#[derive(Debug)]
pub(crate) struct Lint {
    /// Its name, its reason and its remedy, as a finding shows them.
    pub(crate) rule: Rule,
    /// What it forbids.
    pub(crate) forbids: &'static str,
    /// Code that it catches.
    pub(crate) example: &'static str,
    /// Whether it applies only to code that an author wrote, and not to what macros expand to:
    /// derives write such code.
    pub(super) is_written: bool,
    /// The names that break it.
    pub(super) names: Names,
}

/// Names that break a rule.
#[derive(Debug)]
pub(super) struct Names {
    /// Anywhere in a path.
    pub(super) anywhere: &'static [&'static str],
    /// At the end of a path.
    pub(super) ends: &'static [&'static [&'static str]],
    /// At the beginning of a path.
    pub(super) beginnings: &'static [&'static [&'static str]],
    /// Macros.
    pub(super) macros: &'static [&'static str],
    /// Attributes.
    pub(super) attributes: &'static [&'static str],
}

impl Names {
    const NONE: Self =
        Self { anywhere: &[], ends: &[], beginnings: &[], macros: &[], attributes: &[] };
}

/// All rules of the scan, in the order of the book.
pub(crate) static ALL: &[&Lint] = &[
    &std_names::STD,
    &extern_crate::EXTERN_CRATE,
    &attributes::CRATE_ROOT,
    &attributes::CRATE_ATTRIBUTE,
    &attributes::LINT_ATTRIBUTE,
    &conditions::CFG,
    &elsewhere::INCLUDE,
    &elsewhere::PATH,
    &macros::MACRO,
    &unsafe_code::UNSAFE,
    &pointers::POINTER,
    &foreign::EXTERN_BLOCK,
    &foreign::EXPORT,
    &foreign::ASM,
    &statics::STATIC,
    &shared::SHARED,
    &lent::LENT,
    &forget::FORGET,
    &objects::DYN,
    &generics::GENERIC,
    &messages::MESSAGE,
    &messages::LOGGER,
    &far_side::HOST,
    &far_side::RENAME,
    &waits::SPIN,
];

/// The chapter of the book.
pub(crate) fn chapter() -> String {
    let mut text = HEAD.to_owned();
    for Lint { rule, forbids, example, .. } in ALL {
        text.push_str(&format!(
            "\n## {}\n\nForbids: {forbids}\n\nWhy: {}\n\n```rust,ignore\n{example}\n```\n\nInstead: {}\n",
            rule.id, rule.why, rule.instead
        ));
    }
    text
}

const HEAD: &str = "# What the source of a device may not contain

These are the rules of the layer `source`, each with code that breaks it. An error of `cargo xtask gate` shows the same reason and the
same remedy. The layer skips code below `cfg(test)`. The layer `expanded` applies the same rules to the code that macros write, except those
that a derive breaks. The texts stand in `xtask/gate-check/src/source/lints`, one file for each family of rules.
";
