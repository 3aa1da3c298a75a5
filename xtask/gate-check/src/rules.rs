//! The rules: a stable name, the reason, and how to do it right. A finding shows these texts.

use super::layer::Layer;

/// A rule.
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

macro_rules! rules {
    ($($name:ident: $layer:ident, $id:literal, $why:literal, $instead:literal;)+) => {
        $(pub(crate) static $name: Rule = Rule { id: $id, layer: Layer::$layer, why: $why, instead: $instead };)+
        /// All rules.
        pub(crate) static ALL: &[&Rule] = &[$(&$name),+];
    };
}

rules! {
    COMPILE: Types, "types/compile",
        "The gate's rules are in its types: what does not compile is refused by them, or is simply wrong.",
        "Take one token per effect with `gate.token::<Kind>()`, spend it by `stage` or `emit` in the same call, and return the verdict that staging gave you. The guide explains each refusal.";
    TOKEN_TWICE: Types, "types/token-moved",
        "A token is the right to one effect, and staging it spends it.",
        "Ask the gate for a second token: `gate.token::<Kind>()`.";
    TOKEN_KEPT: Types, "types/token-kept",
        "A token, a verdict and the gate itself are lent for one call: kept past it, an effect would belong to a stretch of execution that is over.",
        "Stage within the call. To do it later, keep plain data in the device, and take a token in the call in which it is to happen.";
    CHAIN_KEPT: Types, "types/chain-kept",
        "A chain, and the guest memory that it lends, are the device's for one call: kept past it, what it reads or writes would be in no checkpoint.",
        "Copy what you need into plain fields before you return. A request that cannot be answered yet gets `Verdict::Pending` or a `Held`: the chain comes back by itself.";
    PRIVATE: Types, "types/private",
        "Tokens, verdicts that wait, and proofs of commitment are made in one place each; anywhere else they would be forged.",
        "Get a token from `Gate::token`, a `Held` verdict from staging it; only the protocol core makes proofs, from an acknowledgement.";
    FILES: Types, "types/files",
        "What the compiler reads and what the layers look at are the same files, or a part of the program was looked at by nobody.",
        "Put the code into a module of the crate that a plain `mod` names.";
    NO_STD_BARE: Bare, "bare/compile",
        "On a target with no operating system there is nothing to reach: code that does not compile there has a name for something outside.",
        "Use `core` and `alloc`. What the device wants from outside (time, randomness, a file, a frame) is an input or an effect: ask the gate.";
    NO_STD_LINUX: LinuxCore, "linux-core/compile",
        "This is the target that ships, without std: what does not compile here hides a use of std from the check on the bare target.",
        "Use `core` and `alloc`, on every target alike. What the device wants from outside is an input or an effect: ask the gate.";

    GRAPH_UNLISTED: Graph, "graph/not-listed",
        "Every crate behind the gate is code that a device can call: each was looked at, and is listed with a reason.",
        "Do without it, or have it reviewed: no std, no I/O, no hooks that somebody else can fill; then list it in gate.toml with the reason.";
    GRAPH_FEATURE: Graph, "graph/feature",
        "A feature can switch on std or I/O in a crate that is harmless without it.",
        "Leave the feature off (`default-features = false`), or add it to the crate's entry in gate.toml after a look at what it brings.";
    GRAPH_BUILD_SCRIPT: Graph, "graph/build-script",
        "A build script runs on the build machine with all its rights, and can write the code that is then compiled.",
        "Write the code out, or generate it beforehand and check it in.";
    GRAPH_PROC_MACRO: Graph, "graph/proc-macro",
        "A procedural macro writes code that no reviewer sees.",
        "Write the code out. `serde_derive` is listed because its output is known and scanned.";
    GRAPH_SOURCE: Graph, "graph/source",
        "Only a registry with checksums in Cargo.lock gives the same code to everyone; a path or a git branch can change under the review.",
        "Depend on a release on crates.io. A crate of this tree is listed in gate.toml with `source = \"path\"` and among `packages`, which are scanned as devices are.";
    GRAPH_CHECKSUM: Graph, "graph/checksum",
        "Without a checksum in Cargo.lock nobody knows whether the code is what was reviewed.",
        "Run `cargo generate-lockfile` against crates.io and commit Cargo.lock.";
    GRAPH_CONFIG: Graph, "graph/cargo-config",
        "A setting of cargo that changes flags, wraps the compiler or overrides sources makes a build different from what is checked.",
        "Take the setting out of the tree's cargo configuration.";
    GRAPH_OWN_FEATURE: Graph, "graph/own-feature",
        "With a cargo feature there are two programs: one may be checked, and the other ship.",
        "Choose at run time, from the device's configuration.";
    GRAPH_OWN: Graph, "graph/own-crate",
        "A crate of the tree that is in the monitor and that no layer looks at may do anything, under any name.",
        "Make it a module of a crate that is looked at. One that has to be a crate is named in gate.toml under `[[far-side]]`, or under `packages` if devices are in it.";
    GRAPH_LINKED: Graph, "graph/linked",
        "Every crate in the monitor is code that can reach the outside, whoever calls it, and what it does as a value is dropped no layer sees.",
        "Do without it, or look at what it is, and list it in gate.toml under `[[product]]` with the reason.";
    GRAPH_LIBRARY: Graph, "graph/library-name",
        "Compiled code is known by the names of libraries: one that is called like another crate would be taken for it, by the layer `calls` and by the running program.",
        "Give the library the name of its package.";
    GRAPH_PATCH: Graph, "graph/patch",
        "What is put in the place of a release is not what Cargo.lock's checksums are of, nor what was looked at.",
        "Depend on a release. To try a change of a dependency, do it in a copy of the tree.";
    GRAPH_RENAMED: Graph, "graph/renamed",
        "A dependency by another name is not recognized by whoever reads the code, nor by the layers that look for names.",
        "Call it by its own name.";
    GRAPH_EDITION: Graph, "graph/edition",
        "Older editions have other words for what the layers look for: trait objects without `dyn`, foreign blocks without `unsafe`.",
        "Set `edition = \"2024\"`.";
    GRAPH_TOOLCHAIN: Graph, "graph/toolchain",
        "A compiler of one's own may compile anything into anything.",
        "Name a channel in rust-toolchain.toml, not a path.";
    GRAPH_STALE: Graph, "graph/stale",
        "An entry that allows what nobody uses hides the day on which somebody does.",
        "Take the entry out of gate.toml.";

    STD: Source, "source/std",
        "std is the outside: files, sockets, threads, clocks.",
        "Use `core` and `alloc`. What leaves the machine is staged with a token; what comes in is asked of the gate.";
    EXTERN_CRATE: Source, "source/extern-crate",
        "`extern crate` brings in crates that `no_std` was to keep out; `extern crate std` compiles in a `no_std` crate.",
        "`extern crate alloc` is the only one that is needed. Use what the gate offers instead of std.";
    CFG: Source, "source/cfg",
        "Code behind a condition is compiled in some builds only: the checks would look at one program, and another would ship.",
        "Write code that is the same everywhere; `cfg(test)` is for tests. Choose at run time what depends on the machine, from the device's configuration.";
    BUILD_DEPENDENT: Source, "source/build-dependent",
        "Code that is there in some builds of the monitor only, by a condition or by the environment that it is compiled in, is not in what the checks look at.",
        "Choose at run time, by a flag. A cargo feature of the crate is named in gate.toml with it, and a condition that has to be is an exception there, with the reason.";
    LINKED: Source, "source/linked-by-name",
        "The linker joins what has such a name, whoever meant it: a function of the monitor's may stand before one of the C library's.",
        "Call functions by their paths; leave names, sections and linkage to the compiler.";
    INCLUDE: Source, "source/include",
        "`include!` and its kin take code or data from files that nobody looks at when reviewing this crate.",
        "Put the code in a module of the crate, the data in a constant.";
    PATH: Source, "source/path-attribute",
        "`#[path]` takes a module from a file elsewhere, out of sight of the review.",
        "Put the module where its name says.";
    UNREACHED: Source, "source/unreached-file",
        "A file that no `mod` names is not compiled today and not looked at by anybody; one line can make it code.",
        "Name it by a `mod`, or delete it.";
    OUTSIDE: Source, "source/outside-package",
        "The crate's root lies outside its own directory, where a reviewer of the crate does not look.",
        "Keep all source under `src/`.";
    MACRO: Source, "source/macro",
        "A macro of one's own hides what is written behind what is called.",
        "Write a function, or a generic one.";
    LINT_ATTRIBUTE: Source, "source/lint-attribute",
        "A lint switched off in the code is a rule that the reviewer does not see broken.",
        "Do what the lint asks. Where that is wrong, say so in gate.toml with the reason.";
    CRATE_ROOT: Source, "source/crate-root",
        "These two attributes make the compiler refuse std by default and `unsafe` always.",
        "Begin the crate with `#![no_std]` and `#![forbid(unsafe_code)]`.";
    UNSAFE: Source, "source/unsafe",
        "`unsafe` is a way around every other rule: a pointer to anywhere, a system call, a forged token.",
        "There is always a safe way in a device: guest memory through `Chain`, effects through tokens. What needs `unsafe` belongs in `io-gate-host`.";
    EXTERN_BLOCK: Source, "source/extern",
        "Foreign functions reach anything that is linked into the program, libc's `write` to begin with.",
        "Stage the effect with a token; the far side (`io-gate-host`) makes the system call.";
    EXPORT: Source, "source/export",
        "An exported or placed symbol can be called, or run at start, by code that no reviewer connects with it.",
        "Leave symbols to the compiler. A device is called through the `Device` trait.";
    ASM: Source, "source/asm",
        "Machine code can make a system call or touch a port without a name that anything could check.",
        "Stage the effect with a token. What needs instructions belongs in `vmm`.";
    STATIC: Source, "source/static",
        "A static outlives the call, the device and the saved state: what is put there is neither saved nor gated.",
        "Keep state in the device, where `save` sees it; use `const` for constants.";
    FORGET: Source, "source/forget",
        "A token that is forgotten is neither staged nor returned: the gate counts, and stops the machine at the end of the call.",
        "Drop what you do not need: an unspent token returns by itself.";
    DYN: Source, "source/object",
        "A trait object, a function pointer or a closure that was made elsewhere can hold a descriptor, and calling it is an effect that no one holds.",
        "Take plain data. What is to happen outside is staged with a token; the backend is chosen on the far side by its `Port`.";
    GENERIC: Source, "source/generic-device",
        "A type parameter of a device is filled in by somebody else, perhaps with a type that writes to a file.",
        "Name the type. What differs between backends is behind a `Port`, on the far side of the gate.";
    SHARED: Source, "source/shared",
        "Shared or interior-mutable state is a channel to whoever holds the other end, past the gate.",
        "A device is called with `&mut self`, by one thread at a time: plain fields are enough, and `save` sees them.";
    POINTER: Source, "source/raw-pointer",
        "A raw pointer can name memory that is mapped to a file or a device.",
        "Guest memory is reached through `Chain`, which also marks it as changed.";
    LENT: Source, "source/lent-memory",
        "A reference that a device keeps is memory of somebody else's: guest memory written through it is not marked as changed, and no checkpoint has it.",
        "Own what you keep. Guest memory is reached through `Chain`, for one call.";
    MESSAGE: Source, "source/message",
        "A message is text for the people who run the machine: with the guest's bytes in it, it is a way out that nothing holds back.",
        "Let a panic say fixed text, without placeholders: where it happened is told anyway. What the operator should know is said with `io_gate::note`; the guest's data leaves by an effect.";
    HOST: Source, "source/far-side",
        "`io_gate::host` is the far side of the gate: with it a device could let its own effects out.",
        "A device needs `Chain`, `Gate` and `Verdict` only. Tests may use the far side, under `cfg(test)`.";
    RENAME: Source, "source/rename",
        "A renamed or glob-imported crate hides from a reader which names come from the far side.",
        "Import what you use by its name: `use io_gate::{Chain, Gate, Verdict};`.";
    SPIN: Source, "source/spin",
        "A device that waits holds up the machine, and what it waits for is an input that nobody records.",
        "Return `Pending` or `Held`: the device is called again when there is something to do.";
    LOGGER: Source, "source/logger",
        "The log is not held back: with the guest's bytes in it, it is a way out. As an object it is whatever somebody installed.",
        "Say it with `io_gate::note`: fixed text, and numbers.";
    CRATE_ATTRIBUTE: Source, "source/crate-attribute",
        "Unstable features, an allocator or a panic handler of one's own change what every other check relies on.",
        "Leave it out.";
    PARSE: Source, "source/unreadable",
        "A file that cannot be parsed cannot be checked.",
        "Make it valid Rust of this toolchain.";
    EXPANDED_PARSE: Expanded, "expanded/unreadable",
        "What a macro writes is looked at like what somebody wrote, and what cannot be read cannot be looked at.",
        "Leave out the macro that was added last: some of `core`, such as `pin!`, write what is for the compiler only.";
    EXCEPTION_STALE: Source, "source/stale-exception",
        "An exception that nothing needs hides the day on which something does.",
        "Take it out of gate.toml.";

    SYMBOL: Symbols, "symbols/undefined",
        "The compiled code calls something outside of core, alloc and the listed crates: this is what a bypass looks like when all names were hidden.",
        "Find the caller named here. What it wants from outside is an effect or an input: ask the gate.";
    SYMBOL_EXPORT: Symbols, "symbols/exported",
        "A symbol with a plain name can replace one of libc's, or be called by code that no reviewer connects with it.",
        "Take away `no_mangle` or `export_name`.";
    SYMBOL_START: Symbols, "symbols/constructor",
        "Code in this section runs before `main`, before there is a gate.",
        "Do it when the device is built.";
    INSTRUCTION: Symbols, "symbols/instruction",
        "This instruction reaches the kernel or the hardware directly.",
        "Stage the effect with a token; the far side makes the system call.";

    CLIPPY: Clippy, "clippy/disallowed",
        "This name was resolved by the compiler, whatever it is called here, and it is on the list of what a device may not use.",
        "See the reason beside the name; tokens, `Chain` and plain fields are enough for a device.";

    CALLS: Calls, "calls/not-listed",
        "Code that reaches the outside can write there, gate or no gate: the modules that do are few, listed in gate.toml with all that they call, and looked at.",
        "For what a guest can cause to be written, stage an effect; `io-gate-host` performs it. If this is the control plane, where no guest has a say, list the module in gate.toml with the reason, for a reviewer to look at.";
    CALLS_EARLY: Calls, "calls/constructor",
        "Code in this section runs before `main`, before any thread has given up its rights: no filter of system calls would stop it.",
        "Do it where the program begins.";
    CALLS_SECTION: Calls, "calls/section",
        "Data in a section of its own is not looked at as data is, and the linker or the system may make something else of it.",
        "Leave the section to the compiler: take `link_section` away.";
    CALLS_EXPORTED: Calls, "calls/exported",
        "A function under a name of the C library stands before it: whatever calls that name gets this one, and nobody is asked what it does.",
        "Leave the name to the compiler: take `no_mangle` or `export_name` away.";
    CALLS_STALE: Calls, "calls/stale",
        "An entry that allows what nobody calls hides the day on which somebody does.",
        "Take it out of gate.toml.";

    DEVICES_UNSEEN: Devices, "devices/unseen-crate",
        "Whoever can name the gate can implement a device, and what a device does in a crate that no layer looks at, nobody knows: it may start a thread, map a file or open a socket.",
        "Make the device a module of the crate `devices`. A further crate of devices is named under `packages` in gate.toml, and is looked at like it.";
    DEVICES_IMPLEMENTED: Devices, "devices/implemented",
        "A device that is implemented on the far side of the gate has everything in reach that the monitor has.",
        "Make it a module of the crate `devices`. A device of another crate, whose only ways out are a writer and an interrupt line, is taken in by an adapter in io-gate/host/src/adapter.";
    DEVICES_HIDDEN: Devices, "devices/hidden",
        "By another name, or in a file elsewhere, a device is implemented where nobody looks for it.",
        "Call the contracts of the gate by their own names, and put the code into a module of the crate.";
    DEVICES_STALE: Devices, "devices/stale",
        "An entry that allows what nobody uses hides the day on which somebody does.",
        "Take the entry out of gate.toml.";
}
