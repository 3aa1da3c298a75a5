//! Rules against attributes that change what the compiler checks: lints, and attributes of the
//! crate.

use proc_macro2::Span;
use syn::Meta;
use syn::spanned::Spanned;

use super::{ALL, Lint, Names, conditions};
use crate::layer::Layer;
use crate::rules::Rule;
use crate::source::files::for_tests;
use crate::source::scan::{Scan, last_name, shown};

pub(crate) static LINT_ATTRIBUTE: Lint = Lint {
    rule: Rule {
        id: "source/lint-attribute",
        layer: Layer::Source,
        why: "A lint that the code switches off hides from the reviewer that a rule is broken.",
        instead: "Follow the lint. Where it is wrong, enter the exception in gate.toml with the reason.",
    },
    forbids: "`allow` and `expect`, and `warn` of a lint that the gate relies on.",
    example: "#[allow(clippy::disallowed_methods)]\nfn transmit() {}",
    is_written: true,
    names: Names { attributes: &["allow", "expect"], ..Names::NONE },
};

pub(crate) static CRATE_ROOT: Lint = Lint {
    rule: Rule {
        id: "source/crate-root",
        layer: Layer::Source,
        why: "These two attributes make the compiler refuse std by default and `unsafe` always.",
        instead: "Begin the crate with `#![no_std]` and `#![forbid(unsafe_code)]`.",
    },
    forbids: "A crate without `#![no_std]` or without `#![forbid(unsafe_code)]`.",
    example: "#![no_std]\n#![deny(unsafe_code)]",
    is_written: false,
    names: Names::NONE,
};

pub(crate) static CRATE_ATTRIBUTE: Lint = Lint {
    rule: Rule {
        id: "source/crate-attribute",
        layer: Layer::Source,
        why: "Unstable features, or a custom allocator or panic handler, change what every other check relies on.",
        instead: "Leave it out.",
    },
    forbids: "`feature`, `global_allocator`, `panic_handler` and other attributes that change the language.",
    example: "#![feature(core_intrinsics)]",
    is_written: true,
    names: Names {
        attributes: &[
            "feature",
            "global_allocator",
            "panic_handler",
            "no_core",
            "no_main",
            "automatically_derived",
            "proc_macro",
            "proc_macro_derive",
            "proc_macro_attribute",
        ],
        ..Names::NONE
    },
};

/// Lints that may not be weakened to warnings: the gate relies on them.
const WARNINGS_KEPT: [&str; 2] = ["unsafe_code", "disallowed"];

/// Checks an attribute by its name, against the names that all rules list.
pub(in crate::source) fn attribute(scan: &mut Scan, attribute: &syn::Attribute) {
    let name = last_name(attribute.path());
    let is_weakened = || WARNINGS_KEPT.iter().any(|kept| shown(attribute).contains(kept));
    let listed = ALL.iter().find(|lint| lint.names.attributes.contains(&name.as_str()));
    let broken = match (listed, name.as_str()) {
        (Some(lint), _) => lint,
        (None, "warn") if is_weakened() => &LINT_ATTRIBUTE,
        (None, "cfg") if !for_tests(std::slice::from_ref(attribute)) => &conditions::CFG,
        _ => return,
    };
    scan.report(broken, attribute.span(), format!("`#[{}]`", shown(attribute)));
}

/// Checks that a crate's root has the attributes that it must have.
pub(in crate::source) fn crate_root(scan: &mut Scan, parsed: &syn::File) {
    let has = |name: &str, inside: &str| {
        parsed.attrs.iter().any(|attribute| {
            attribute.path().is_ident(name)
                && match &attribute.meta {
                    Meta::List(list) => list.tokens.to_string().contains(inside),
                    _ => inside.is_empty(),
                }
        })
    };
    if !has("no_std", "") {
        scan.report(&CRATE_ROOT, Span::call_site(), "the crate does not say `#![no_std]`");
    }
    if !has("forbid", "unsafe_code") {
        let what = "the crate does not say `#![forbid(unsafe_code)]`";
        scan.report(&CRATE_ROOT, Span::call_site(), what);
    }
}
