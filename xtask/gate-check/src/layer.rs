//! The layers of the gate's check: each checks the same crates in another way, independently of the
//! others.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A layer. The order is that of the report.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Layer {
    /// The crates as rustc compiles them.
    Types,
    /// The dependencies, against the allow-list in gate.toml.
    Graph,
    /// Compiled for a target that has no operating system.
    Bare,
    /// Compiled for Linux without std.
    LinuxCore,
    /// The source: what the compiler accepts and the gate forbids.
    Source,
    /// The same after macro expansion.
    Expanded,
    /// Symbols and instructions of the compiled code.
    Symbols,
    /// Clippy's disallowed methods, types and macros.
    Clippy,
    /// The calls of the far side, in its compiled code.
    Calls,
    /// The places where devices are implemented.
    Devices,
}

impl Layer {
    pub(crate) const ALL: [Self; 10] = [
        Self::Types,
        Self::Graph,
        Self::Bare,
        Self::LinuxCore,
        Self::Source,
        Self::Expanded,
        Self::Symbols,
        Self::Clippy,
        Self::Calls,
        Self::Devices,
    ];

    /// Whether it compiles whole crates with std. Its result then shows that the rest of the code
    /// compiles, whether it has findings or not.
    pub(crate) const fn compiles_with_std(self) -> bool {
        matches!(self, Self::Types | Self::Expanded | Self::Symbols | Self::Clippy | Self::Calls)
    }

    /// Its name on the command line and in reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Types => "types",
            Self::Graph => "graph",
            Self::Bare => "bare",
            Self::LinuxCore => "linux-core",
            Self::Source => "source",
            Self::Expanded => "expanded",
            Self::Symbols => "symbols",
            Self::Clippy => "clippy",
            Self::Devices => "devices",
            Self::Calls => "calls",
        }
    }

    /// What the layer checks, for the report.
    pub(crate) const fn about(self) -> &'static str {
        match self {
            Self::Types => "compiles",
            Self::Graph => "dependencies against the allow-list",
            Self::Bare => "compiles with no operating system (x86_64-unknown-none)",
            Self::LinuxCore => "compiles for Linux with core and alloc alone",
            Self::Source => "what the compiler accepts, in the source",
            Self::Expanded => "what macros expand to",
            Self::Symbols => "symbols and instructions of the compiled code",
            Self::Clippy => "disallowed methods, types and macros",
            Self::Devices => "who implements a device",
            Self::Calls => "what the far side calls, in its compiled code",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
