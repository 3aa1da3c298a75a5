//! The rule against statics.

use syn::spanned::Spanned;

use super::{Lint, Names};
use crate::layer::Layer;
use crate::rules::Rule;
use crate::source::scan::Scan;

pub(crate) static STATIC: Lint = Lint {
    rule: Rule {
        id: "source/static",
        layer: Layer::Source,
        why: "A static outlives the call, the device and the saved state: its content is neither saved nor gated.",
        instead: "Keep state in the device, where `save` sees it; use `const` for constants.",
    },
    forbids: "`static` and `thread_local!`.",
    example: "static SENT: u64 = 0;",
    is_written: false,
    names: Names { macros: &["thread_local"], ..Names::NONE },
};

pub(in crate::source) fn item(scan: &mut Scan, item: &syn::ItemStatic) {
    scan.report(&STATIC, item.span(), format!("`static {}`", item.ident));
}
