//! Rules against names of the far side of the gate, and against names that hide them.

use syn::UseTree;
use syn::ext::IdentExt;
use syn::spanned::Spanned;

use super::{Lint, Names};
use crate::layer::Layer;
use crate::rules::Rule;
use crate::source::scan::Scan;

pub(crate) static HOST: Lint = Lint {
    rule: Rule {
        id: "source/far-side",
        layer: Layer::Source,
        why: "`io_gate::host` is the far side of the gate: with it a device could release its own effects.",
        instead: "A device needs `Chain`, `Gate` and `Verdict` only. Tests may use the far side, under `cfg(test)`.",
    },
    forbids: "Paths that begin with `io_gate::host`.",
    example: "use io_gate::{Gate, host::Ledger};",
    is_written: false,
    names: Names { beginnings: &[&["io_gate", "host"]], ..Names::NONE },
};

pub(crate) static RENAME: Lint = Lint {
    rule: Rule {
        id: "source/rename",
        layer: Layer::Source,
        why: "A renamed or glob-imported crate hides from a reader which names come from the far side.",
        instead: "Import each name that you use: `use io_gate::{Chain, Gate, Verdict};`.",
    },
    forbids: "`core`, `alloc`, `io_gate`, `log` and `serde` under another name, and all their names at once.",
    example: "use io_gate as gate;",
    is_written: true,
    names: Names::NONE,
};

/// Crates that may not be renamed or imported as a whole.
const ROOTS: [&str; 5] = ["core", "alloc", "io_gate", "log", "serde"];

/// Checks the names that a `use` brings in, against the names that all rules list.
pub(in crate::source) fn uses(scan: &mut Scan, tree: &UseTree, before: &[String]) {
    let with = |name: &syn::Ident| -> Vec<String> {
        before.iter().cloned().chain([name.unraw().to_string()]).collect()
    };
    let is_root =
        |names: &[String]| names.first().is_some_and(|name| ROOTS.contains(&name.as_str()));
    match tree {
        UseTree::Path(path) => uses(scan, &path.tree, &with(&path.ident)),
        UseTree::Name(name) => scan.names(&with(&name.ident), name.ident.span()),
        UseTree::Rename(rename) => {
            let segments = with(&rename.ident);
            scan.names(&segments, rename.ident.span());
            if segments.len() <= 2 && is_root(&segments) && rename.rename != "_" {
                let what = format!("`use {} as {}`", segments.join("::"), rename.rename);
                scan.report(&RENAME, rename.ident.span(), what);
            }
        }
        UseTree::Glob(glob) => {
            scan.names(before, glob.span());
            if is_root(before) {
                let what = format!("`use {}::*`", before.join("::"));
                scan.report(&RENAME, glob.span(), what);
            }
        }
        UseTree::Group(group) => group.items.iter().for_each(|tree| uses(scan, tree, before)),
    }
}
