//! The rule against code that is in some builds only.

use super::{Lint, Names};
use crate::layer::Layer;
use crate::rules::Rule;

pub(crate) static CFG: Lint = Lint {
    rule: Rule {
        id: "source/cfg",
        layer: Layer::Source,
        why: "Code behind a condition is compiled in some builds only: the checks would see one program, and another would \
              ship.",
        instead: "Write code that is the same everywhere; use `cfg(test)` only for tests. Make choices that depend on the \
                  machine at run time, from the device's configuration.",
    },
    forbids: "`cfg`, `cfg_attr` and `cfg!`, except `cfg(test)`.",
    example: "#[cfg(target_os = \"linux\")]\nfn transmit() {}",
    is_written: true,
    names: Names { macros: &["cfg"], attributes: &["cfg_attr"], ..Names::NONE },
};
