//! Names that a device may not use, and the rule that each breaks.

use crate::rules::{self, Rule};

/// Names that break a rule wherever they stand in a path.
const ANYWHERE: &[(&[&str], &Rule)] = &[
    (
        &[
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
        &rules::SHARED,
    ),
    (&["NonNull"], &rules::POINTER),
    (&["ManuallyDrop", "MaybeUninit"], &rules::FORGET),
    (&["Waker", "RawWaker"], &rules::DYN),
];

/// Ends of paths that break a rule.
const ENDS: &[(&[&str], &Rule)] = &[
    (&["mem", "forget"], &rules::FORGET),
    (&["Box", "leak"], &rules::FORGET),
    (&["Vec", "leak"], &rules::FORGET),
    (&["String", "leak"], &rules::FORGET),
    (&["Box", "into_raw"], &rules::FORGET),
    (&["new_cyclic"], &rules::FORGET),
    (&["any", "Any"], &rules::DYN),
    (&["spin_loop"], &rules::SPIN),
];

/// Beginnings of paths that break a rule.
const BEGINNINGS: &[(&[&str], &Rule)] = &[
    (&["std"], &rules::STD),
    (&["core", "arch"], &rules::ASM),
    (&["core", "intrinsics"], &rules::ASM),
    (&["core", "ffi"], &rules::EXTERN_BLOCK),
    (&["core", "ptr"], &rules::POINTER),
    (&["core", "cell"], &rules::SHARED),
    (&["core", "sync"], &rules::SHARED),
    (&["alloc", "sync"], &rules::SHARED),
    (&["alloc", "rc"], &rules::SHARED),
    (&["alloc", "alloc"], &rules::POINTER),
    (&["io_gate", "host"], &rules::HOST),
    (&["log"], &rules::LOGGER),
];

/// Crates that may not be renamed or imported as a whole.
pub(super) const ROOTS: [&str; 5] = ["core", "alloc", "io_gate", "log", "serde"];

/// Macros that break a rule.
pub(super) const MACROS: &[(&str, &Rule)] = &[
    ("include", &rules::INCLUDE),
    ("include_str", &rules::INCLUDE),
    ("include_bytes", &rules::INCLUDE),
    ("asm", &rules::ASM),
    ("global_asm", &rules::ASM),
    ("naked_asm", &rules::ASM),
    ("thread_local", &rules::STATIC),
    ("cfg", &rules::CFG),
    ("println", &rules::STD),
    ("eprintln", &rules::STD),
    ("print", &rules::STD),
    ("eprint", &rules::STD),
    ("dbg", &rules::STD),
];

/// Macros that panic with a message, and the position of the message among their arguments.
pub(super) const MESSAGES: &[(&str, usize)] = &[
    ("panic", 0),
    ("unreachable", 0),
    ("todo", 0),
    ("unimplemented", 0),
    ("assert", 1),
    ("debug_assert", 1),
    ("assert_eq", 2),
    ("assert_ne", 2),
    ("debug_assert_eq", 2),
    ("debug_assert_ne", 2),
];

/// Attributes that break a rule.
pub(super) const ATTRIBUTES: &[(&str, &Rule)] = &[
    ("cfg_attr", &rules::CFG),
    ("path", &rules::PATH),
    ("allow", &rules::LINT_ATTRIBUTE),
    ("expect", &rules::LINT_ATTRIBUTE),
    ("no_mangle", &rules::EXPORT),
    ("export_name", &rules::EXPORT),
    ("link_section", &rules::EXPORT),
    ("link_name", &rules::EXPORT),
    ("linkage", &rules::EXPORT),
    ("link", &rules::EXPORT),
    ("used", &rules::EXPORT),
    ("unsafe", &rules::EXPORT),
    ("naked", &rules::ASM),
    ("target_feature", &rules::ASM),
    ("macro_use", &rules::MACRO),
    ("macro_export", &rules::MACRO),
    ("feature", &rules::CRATE_ATTRIBUTE),
    ("global_allocator", &rules::CRATE_ATTRIBUTE),
    ("panic_handler", &rules::CRATE_ATTRIBUTE),
    ("no_core", &rules::CRATE_ATTRIBUTE),
    ("no_main", &rules::CRATE_ATTRIBUTE),
    ("automatically_derived", &rules::CRATE_ATTRIBUTE),
    ("proc_macro", &rules::CRATE_ATTRIBUTE),
    ("proc_macro_derive", &rules::CRATE_ATTRIBUTE),
    ("proc_macro_attribute", &rules::CRATE_ATTRIBUTE),
];

/// The rule that a path breaks.
pub(super) fn path(segments: &[String]) -> Option<&'static Rule> {
    // `crate::io_gate` and `self::io_gate` are imports of that name; `crate::host` is the crate's own.
    let relative = |name: &&str| ["crate", "self", "super"].contains(name);
    let names: Vec<&str> = segments.iter().map(String::as_str).skip_while(relative).collect();
    let beginning = BEGINNINGS.iter().find(|(start, _)| names.starts_with(start));
    let end = ENDS.iter().find(|(end, _)| names.ends_with(end));
    // What follows a type belongs to the type: a variant may be called `Cell`.
    let is_types = |at: usize| at > 0 && names[at - 1].starts_with(char::is_uppercase);
    let stands = |list: &[&str]| {
        names.iter().enumerate().any(|(at, name)| list.contains(name) && !is_types(at))
    };
    let anywhere = || ANYWHERE.iter().find(|(list, _)| stands(list));
    let found = beginning.or(end).map(|(_, rule)| *rule);
    found.or_else(|| anywhere().map(|(_, rule)| *rule))
}
