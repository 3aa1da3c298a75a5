//! The rule against shared state.

use super::{Lint, Names};
use crate::layer::Layer;
use crate::rules::Rule;

pub(crate) static SHARED: Lint = Lint {
    rule: Rule {
        id: "source/shared",
        layer: Layer::Source,
        why: "Shared or interior-mutable state is a channel to the holder of the other end, around the gate.",
        instead: "One thread at a time calls a device, with `&mut self`: plain fields are enough, and `save` sees them.",
    },
    forbids: "Cells, locks, atomics, `Rc` and `Arc`.",
    example: "use alloc::sync::Arc;\nstruct Port { sent: Arc<u64> }",
    is_written: false,
    names: Names {
        anywhere: &[
            "Cell",
            "RefCell",
            "UnsafeCell",
            "SyncUnsafeCell",
            "OnceCell",
            "LazyCell",
            "Mutex",
            "RwLock",
            "Condvar",
            "OnceLock",
            "LazyLock",
            "Rc",
            "Arc",
            "AtomicBool",
            "AtomicU8",
            "AtomicU16",
            "AtomicU32",
            "AtomicU64",
            "AtomicUsize",
            "AtomicI8",
            "AtomicI16",
            "AtomicI32",
            "AtomicI64",
            "AtomicIsize",
            "AtomicPtr",
        ],
        beginnings: &[&["core", "cell"], &["core", "sync"], &["alloc", "sync"], &["alloc", "rc"]],
        ..Names::NONE
    },
};
