//! The rule against raw pointers.

use syn::spanned::Spanned;

use super::{Lint, Names};
use crate::layer::Layer;
use crate::rules::Rule;
use crate::source::scan::Scan;

pub(crate) static POINTER: Lint = Lint {
    rule: Rule {
        id: "source/raw-pointer",
        layer: Layer::Source,
        why: "A raw pointer can name memory that is mapped to a file or a device.",
        instead: "Guest memory is reached through `Chain`, which also marks it as changed.",
    },
    forbids: "Types of raw pointers, `&raw`, `NonNull`, `core::ptr` and `alloc::alloc`.",
    example: "struct Ring { descriptors: *mut u8 }",
    is_written: false,
    names: Names {
        anywhere: &["NonNull"],
        beginnings: &[&["core", "ptr"], &["alloc", "alloc"]],
        ..Names::NONE
    },
};

pub(in crate::source) fn taken(scan: &mut Scan, expression: &syn::ExprRawAddr) {
    scan.report(&POINTER, expression.span(), "a raw pointer is taken");
}

pub(in crate::source) fn named(scan: &mut Scan, pointer: &syn::TypePtr) {
    scan.report(&POINTER, pointer.span(), "a raw pointer");
}
