//! The name of a new device: a module, a type, and what follows `--device`.

use std::fmt;

use anyhow::{Result, ensure};

/// Words with another meaning in Rust or in the crate of devices.
const RESERVED: [&str; 51] = [
    "abstract", "alloc", "as", "async", "await", "become", "box", "break", "const", "continue",
    "core", "crate", "do", "dyn", "else", "enum", "extern", "false", "final", "fn", "for", "gen",
    "if", "impl", "in", "let", "lib", "loop", "macro", "match", "mod", "move", "mut", "override",
    "priv", "pub", "ref", "return", "self", "static", "std", "struct", "super", "trait", "true",
    "try", "type", "unsafe", "use", "where", "while",
];
/// Words of fault tolerance, which a device must not use.
const FOREIGN: [&str; 5] = ["epoch", "checkpoint", "primary", "standby", "commit"];
const LONGEST: usize = 32;

/// A valid name.
#[derive(Debug)]
pub(super) struct Name {
    module: String,
    type_name: String,
}

impl Name {
    /// Checks a name.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut characters = text.chars();
        let shape = characters.next().is_some_and(|first| first.is_ascii_lowercase())
            && characters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && !text.ends_with('_')
            && !text.contains("__");
        ensure!(
            shape && text.len() <= LONGEST,
            "expected a name in snake case of at most {LONGEST} characters, for instance `rain_gauge`, found `{text}`"
        );
        ensure!(
            !RESERVED.contains(&text) && text != "contract" && text != "test_support",
            "expected a name that is free, found `{text}`, which Rust or the crate of devices has taken"
        );
        ensure!(
            !FOREIGN.iter().any(|word| text.contains(word)),
            "expected a name that says what the device does, found `{text}`: a device does not know of fault \
             tolerance"
        );
        let capital = |word: &str| {
            let mut letters = word.chars();
            letters
                .next()
                .map(|first| first.to_ascii_uppercase())
                .into_iter()
                .chain(letters)
                .collect::<String>()
        };
        let type_name = text.split('_').map(capital).collect();
        Ok(Self { module: text.to_owned(), type_name })
    }

    /// In snake case.
    pub(super) fn module(&self) -> &str {
        &self.module
    }

    /// In camel case.
    pub(super) fn type_name(&self) -> &str {
        &self.type_name
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.module)
    }
}
