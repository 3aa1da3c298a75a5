//! The rule against values that are never dropped.

use super::{Lint, Names};
use crate::layer::Layer;
use crate::rules::Rule;

pub(crate) static FORGET: Lint = Lint {
    rule: Rule {
        id: "source/forget",
        layer: Layer::Source,
        why: "A token that is forgotten is neither staged nor returned: the gate counts, and stops the machine at the end of the call.",
        instead: "Drop what you do not need: an unspent token returns by itself.",
    },
    forbids: "`mem::forget`, `leak`, `into_raw`, `new_cyclic`, `ManuallyDrop` and `MaybeUninit`.",
    example: "fn waste(token: Token) { core::mem::forget(token); }",
    is_written: false,
    names: Names {
        anywhere: &["ManuallyDrop", "MaybeUninit"],
        ends: &[
            &["mem", "forget"],
            &["Box", "leak"],
            &["Vec", "leak"],
            &["String", "leak"],
            &["Box", "into_raw"],
            &["new_cyclic"],
        ],
        ..Names::NONE
    },
};
