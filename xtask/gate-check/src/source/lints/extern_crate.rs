//! The rule against crates that are brought in by `extern crate`.

use syn::ext::IdentExt;
use syn::spanned::Spanned;

use super::{Lint, Names};
use crate::layer::Layer;
use crate::rules::Rule;
use crate::source::scan::{Mode, Scan};

pub(crate) static EXTERN_CRATE: Lint = Lint {
    rule: Rule {
        id: "source/extern-crate",
        layer: Layer::Source,
        why: "`extern crate` brings in crates that `no_std` should keep out; `extern crate std` compiles in a `no_std` \
              crate.",
        instead: "`extern crate alloc` is the only one that is needed. Use what the gate offers instead of std.",
    },
    forbids: "`extern crate` of anything but `alloc` and `core`.",
    example: "extern crate std;",
    is_written: false,
    names: Names::NONE,
};

/// Checks an `extern crate`. After expansion, `serde` is allowed: its derives write it.
pub(in crate::source) fn item(scan: &mut Scan, item: &syn::ItemExternCrate) {
    let is_languages = item.ident == "alloc" || item.ident == "core";
    let is_derived = scan.mode() == Mode::Expanded && item.ident.unraw() == "serde";
    if !is_languages && !is_derived {
        scan.report(&EXTERN_CRATE, item.span(), format!("`extern crate {}`", item.ident));
    }
}
