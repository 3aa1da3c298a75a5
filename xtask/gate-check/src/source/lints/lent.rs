//! The rule against keeping memory that is lent to a device.

use syn::Field;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::{Lint, Names};
use crate::layer::Layer;
use crate::rules::Rule;
use crate::source::scan::Scan;

pub(crate) static LENT: Lint = Lint {
    rule: Rule {
        id: "source/lent-memory",
        layer: Layer::Source,
        why: "A reference that a device keeps points to memory that it does not own: guest memory written through it is \
              not marked as changed, and no checkpoint contains the write.",
        instead: "Keep only owned data. Access guest memory through `Chain`, within one call.",
    },
    forbids: "A `&mut` in a field of a public type.",
    example: "pub struct Port { ring: &'static mut [u8] }",
    is_written: true,
    names: Names::NONE,
};

/// Checks a field of the public type `name`.
pub(in crate::source) fn field(scan: &mut Scan, name: &syn::Ident, field: &Field) {
    let mut finder = MutableReference::default();
    finder.visit_type(&field.ty);
    if finder.found {
        let what = format!("the public type `{name}` keeps a `&mut`");
        scan.report(&LENT, field.ty.span(), what);
    }
}

/// Whether there is a `&mut` in a type.
#[derive(Default)]
struct MutableReference {
    found: bool,
}

impl<'ast> Visit<'ast> for MutableReference {
    fn visit_type_reference(&mut self, reference: &'ast syn::TypeReference) {
        self.found |= reference.mutability.is_some();
        visit::visit_type_reference(self, reference);
    }
}
