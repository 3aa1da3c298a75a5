//! The rules: a stable name, the reason, and how to do it right. A finding shows these texts. The
//! rules of the source scan are in `source/lints`, beside the code that applies them.

use super::layer::Layer;
use super::source;

/// A rule of the check, with the texts that its findings show.
#[derive(Debug)]
pub(crate) struct Rule {
    /// Its stable name.
    pub(crate) id: &'static str,
    /// The layer that applies it; `expanded` applies the rules of `source` too.
    pub(crate) layer: Layer,
    /// Why it is there.
    pub(crate) why: &'static str,
    /// How to do it right.
    pub(crate) instead: &'static str,
}

/// All rules.
pub(crate) fn all() -> impl Iterator<Item = &'static Rule> {
    HERE.iter().copied().chain(source::LINTS.iter().map(|lint| &lint.rule))
}

macro_rules! rules {
    ($($name:ident: $layer:ident, $id:literal, $why:literal, $instead:literal;)+) => {
        $(pub(crate) static $name: Rule = Rule { id: $id, layer: Layer::$layer, why: $why, instead: $instead };)+
        /// The rules of this file.
        static HERE: &[&Rule] = &[$(&$name),+];
    };
}

rules! {
    COMPILE: Types, "types/compile",
        "The gate's rules are in its types: code that does not compile breaks one of them, or is simply wrong.",
        "Take one token per effect with `gate.token::<Kind>()`, spend it by `stage` or `emit` in the same call, and return the verdict that staging gave you. The guide explains each refusal.";
    TOKEN_TWICE: Types, "types/token-moved",
        "A token is the right to one effect, and staging it spends it.",
        "Ask the gate for a second token: `gate.token::<Kind>()`.";
    TOKEN_KEPT: Types, "types/token-kept",
        "A token, a verdict and the gate itself are lent for one call: kept longer, an effect would belong to an \
         epoch that has ended.",
        "Stage within the call. To do it later, keep plain data in the device, and take a token in the call in which it is to happen.";
    CHAIN_KEPT: Types, "types/chain-kept",
        "A chain, and the guest memory that it lends, belong to the device for one call: with one kept longer, reads \
         and writes would be in no checkpoint.",
        "Copy what you need into plain fields before you return. A request that cannot be answered yet gets `Verdict::Pending` or a `Held`: the chain comes back by itself.";
    PRIVATE: Types, "types/private",
        "Tokens, verdicts that wait, and proofs of commitment are made in one place each; anywhere else they would be forged.",
        "Get a token from `Gate::token`, a `Held` verdict from staging it; only the protocol core makes proofs, from an acknowledgement.";
    FILES: Types, "types/files",
        "The compiler must read only files that the layers check, otherwise a part of the program is not checked.",
        "Put the code into a module of the crate that a plain `mod` names.";
    NO_STD_BARE: Bare, "bare/compile",
        "A target without an operating system has nothing outside to reach: code that does not compile there names \
         something outside.",
        "Use `core` and `alloc`. Time, randomness, a file or a frame from outside is an input or an effect: ask the \
         gate.";
    NO_STD_LINUX: LinuxCore, "linux-core/compile",
        "This is the target that ships, without std: code that does not compile here hides a use of std from the \
         check on the bare target.",
        "Use `core` and `alloc` on every target. Anything from outside is an input or an effect: ask the gate.";

    GRAPH_UNLISTED: Graph, "graph/not-listed",
        "Every crate behind the gate is code that a device can call: each is reviewed, and listed with a reason.",
        "Remove it, or have it reviewed: no std, no I/O, no hooks that other code can fill; then list it in gate.toml \
         with the reason.";
    GRAPH_FEATURE: Graph, "graph/feature",
        "A feature can switch on std or I/O in a crate that is harmless without it.",
        "Leave the feature off (`default-features = false`), or review what it adds and enter it in gate.toml.";
    GRAPH_BUILD_SCRIPT: Graph, "graph/build-script",
        "A build script runs on the build machine with all its rights, and can write the code that is then compiled.",
        "Write the code by hand, or generate it once and commit it.";
    GRAPH_PROC_MACRO: Graph, "graph/proc-macro",
        "A procedural macro writes code that no reviewer sees.",
        "Write the code by hand. `serde_derive` is listed because its output is known and scanned.";
    GRAPH_SOURCE: Graph, "graph/source",
        "Only a registry with checksums in Cargo.lock gives the same code to everyone; a path or a git branch can \
         change after the review.",
        "Depend on a release on crates.io. A crate of this tree is listed in gate.toml with `source = \"path\"` and \
         among `packages`, which are scanned like devices.";
    GRAPH_CHECKSUM: Graph, "graph/checksum",
        "Without a checksum in Cargo.lock the code may differ from the reviewed code.",
        "Run `cargo generate-lockfile` against crates.io and commit Cargo.lock.";
    GRAPH_CONFIG: Graph, "graph/cargo-config",
        "A setting of cargo that changes flags, wraps the compiler or overrides sources makes a build different from \
         the checked one.",
        "Remove the setting from the tree's cargo configuration.";
    GRAPH_OWN_FEATURE: Graph, "graph/own-feature",
        "With a cargo feature there are two programs: the checks may see one, and the other may ship.",
        "Choose at run time, from the device's configuration.";
    GRAPH_OWN: Graph, "graph/own-crate",
        "A crate of the tree that is in the monitor and that no layer checks may do anything, under any name.",
        "Make it a module of a crate that is checked. If it must be a crate, name it in gate.toml under \
         `[[far-side]]`, or under `packages` if it contains devices.";
    GRAPH_LINKED: Graph, "graph/linked",
        "Every crate in the monitor is code that can reach the outside, whatever code calls it; no layer sees what it \
         does when a value is dropped.",
        "Remove it, or review it and list it in gate.toml under `[[product]]` with the reason.";
    GRAPH_LIBRARY: Graph, "graph/library-name",
        "Compiled code is identified by library names: a library with the name of another crate would be taken for \
         that crate, by the layer `calls` and by the running program.",
        "Give the library the name of its package.";
    GRAPH_PATCH: Graph, "graph/patch",
        "A replacement of a release is neither covered by the checksums of Cargo.lock nor reviewed.",
        "Depend on a release. To try a change of a dependency, do it in a copy of the tree.";
    GRAPH_RENAMED: Graph, "graph/renamed",
        "A reader of the code does not recognize a renamed dependency, and neither do the layers that look for names.",
        "Use its own name.";
    GRAPH_EDITION: Graph, "graph/edition",
        "Older editions spell what the layers look for differently: trait objects without `dyn`, foreign blocks \
         without `unsafe`.",
        "Set `edition = \"2024\"`.";
    GRAPH_TOOLCHAIN: Graph, "graph/toolchain",
        "A custom compiler may compile any code into any program.",
        "Name a channel in rust-toolchain.toml, not a path.";
    GRAPH_STALE: Graph, "graph/stale",
        "An entry that allows something unused hides its first use.",
        "Remove the entry from gate.toml.";

    BUILD_DEPENDENT: Source, "source/build-dependent",
        "The checks do not see code that only some builds of the monitor contain, because of a condition or of the \
         build's environment.",
        "Choose at run time, by a flag. Name a necessary cargo feature in gate.toml with its crate, and enter a \
         necessary condition there as an exception, with the reason.";
    LINKED: Source, "source/linked-by-name",
        "The linker joins symbols by name: a function of the monitor may replace one of the C library.",
        "Call functions by their paths; leave symbol names, sections and linkage to the compiler.";
    UNREACHED: Source, "source/unreached-file",
        "A file that no `mod` names is not compiled and not checked today; one line can turn it into code.",
        "Name it by a `mod`, or delete it.";
    OUTSIDE: Source, "source/outside-package",
        "The crate's root is outside of its own directory, where a reviewer of the crate does not look.",
        "Keep all source under `src/`.";
    PARSE: Source, "source/unreadable",
        "A file that cannot be parsed cannot be checked.",
        "Make it valid Rust of this toolchain.";
    EXPANDED_PARSE: Expanded, "expanded/unreadable",
        "Code that a macro writes is checked like handwritten code, and code that cannot be read cannot be checked.",
        "Remove the macro that was added last: some macros of `core`, for instance `pin!`, write code that only the \
         compiler understands.";
    EXCEPTION_STALE: Source, "source/stale-exception",
        "An exception that is not needed hides the first real need.",
        "Remove it from gate.toml.";

    SYMBOL: Symbols, "symbols/undefined",
        "The compiled code calls something outside of core, alloc and the listed crates: this is what a bypass with \
         hidden names looks like.",
        "Find the caller that is named here. Anything that it needs from outside is an effect or an input: ask the \
         gate.";
    SYMBOL_EXPORT: Symbols, "symbols/exported",
        "A symbol with a plain name can replace a symbol of libc, and unrelated code can call it.",
        "Remove `no_mangle` or `export_name`.";
    SYMBOL_START: Symbols, "symbols/constructor",
        "Code in this section runs before `main`, before a gate exists.",
        "Do it when the device is built.";
    INSTRUCTION: Symbols, "symbols/instruction",
        "This instruction reaches the kernel or the hardware directly.",
        "Stage the effect with a token; the far side makes the system call.";

    CLIPPY: Clippy, "clippy/disallowed",
        "The compiler resolved this name, under whatever alias, and it is on the list of names that a device may not \
         use.",
        "See the reason beside the name; tokens, `Chain` and plain fields are enough for a device.";

    CALLS: Calls, "calls/not-listed",
        "Code that reaches the outside can write there without the gate: few modules may do so, and gate.toml lists \
         each with all its calls for review.",
        "For a write that a guest can cause, stage an effect; `io-gate-host` performs it. If this is the control \
         plane, which no guest influences, list the module in gate.toml with the reason, for review.";
    CALLS_EARLY: Calls, "calls/constructor",
        "Code in this section runs before `main`, before any thread has a filter of system calls: no filter would \
         stop it.",
        "Do it at the beginning of `main`.";
    CALLS_SECTION: Calls, "calls/section",
        "Data in a custom section is not checked like other data, and the linker or the system may treat it as \
         something else.",
        "Leave the section to the compiler: remove `link_section`.";
    CALLS_EXPORTED: Calls, "calls/exported",
        "A function with the name of a C library function replaces it: each caller of that name gets this one.",
        "Leave the name to the compiler: remove `no_mangle` or `export_name`.";
    CALLS_STALE: Calls, "calls/stale",
        "An entry that allows an unused call hides its first use.",
        "Remove it from gate.toml.";

    DEVICES_UNSEEN: Devices, "devices/unseen-crate",
        "A crate that can name the gate can implement a device, and in a crate that no layer checks, a device may \
         start a thread, map a file or open a socket.",
        "Make the device a module of the crate `devices`. Name another crate of devices under `packages` in \
         gate.toml; it is checked in the same way.";
    DEVICES_IMPLEMENTED: Devices, "devices/implemented",
        "A device that is implemented on the far side of the gate can reach everything that the monitor can.",
        "Make it a module of the crate `devices`. Write an adapter in io-gate/host/src/adapter for a device of \
         another crate whose only ways out are a writer and an interrupt line.";
    DEVICES_HIDDEN: Devices, "devices/hidden",
        "Under another name, or in a file elsewhere, a device is implemented where no check looks for it.",
        "Use the own names of the gate's contracts, and put the code into a module of the crate.";
    DEVICES_UNREADABLE: Devices, "devices/unreadable",
        "rustc may compile a file that this check cannot parse, and a device in it would not be seen.",
        "Write the file with fewer brackets within each other, and without syntax that is not stable.";
    DEVICES_STALE: Devices, "devices/stale",
        "An entry that allows something unused hides its first use.",
        "Remove the entry from gate.toml.";
}
