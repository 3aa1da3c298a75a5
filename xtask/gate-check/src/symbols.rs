//! The layer `symbols`: checks which symbols the compiled code names, and which instructions it
//! contains. Code can hide a name from every other layer, but each call needs a symbol in the end,
//! and each system call an instruction.
//!
//! The crates are built with `-C link-dead-code`, so that code which is never called is checked
//! too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use object::read::archive::ArchiveFile;
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionKind, SymbolIndex};

use super::compile;
use super::finding::{Finding, Outcome};
use super::rules;
use super::subject::{LINUX, Subject};
use super::without_std::libraries;

/// Symbols that the compiler itself calls and that the linker or the program provides: they are no
/// way out.
const PROVIDED: [&str; 12] = [
    "memcpy",
    "memmove",
    "memset",
    "memcmp",
    "bcmp",
    "strlen",
    "rust_eh_personality",
    "_Unwind_Resume",
    "_GLOBAL_OFFSET_TABLE_",
    "__rust_no_alloc_shim_is_unstable",
    "rust_begin_unwind",
    "__tls_get_addr",
];
/// Prefix of the demangled names of the allocator and of the panic machinery.
const PROVIDED_RUST: &str = "__rustc::";
/// Prefixes of the files of the libraries whose symbols may be called.
const LIBRARIES: [&str; 3] = ["libcore-", "liballoc-", "libcompiler_builtins-"];
/// Sections whose contents run before `main`, or at exit.
const CONSTRUCTORS: [&str; 6] =
    [".init_array", ".preinit_array", ".fini_array", ".ctors", ".dtors", ".init"];

/// Runs the layer.
pub(crate) fn look(subject: &Subject) -> Result<Outcome> {
    let mut cargo = subject.cargo("build");
    // Optimize, because only then does each crate have its own instances of generic functions.
    // Otherwise a crate that uses std's instance looks like one that calls std.
    let flags = [
        "-Clink-dead-code",
        "-Cdebuginfo=0",
        "-Copt-level=2",
        "-Ccodegen-units=1",
        "-Clto=off",
        "-Cembed-bitcode=no",
    ];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    cargo.args(["--lib", "--all-features", "--target", LINUX]);
    for name in &subject.packages {
        cargo.args(["--package", name]);
    }
    let compiled = compile::run(cargo.arg("--target-dir").arg(subject.target.join("core")))?;
    if let Some(said) = compiled.errors.first() {
        return Ok(Outcome::NotReached(compile::words(said)));
    }
    let ours = |path: &&PathBuf| {
        path.extension().is_some_and(|end| end == "rlib")
            && path.components().any(|part| part.as_os_str() == LINUX)
    };
    let rlibs: Vec<&PathBuf> = compiled.artifacts.iter().filter(ours).collect();
    ensure!(rlibs.len() >= subject.packages.len(), "expected compiled libraries, found {rlibs:?}");
    let read = |path: &&PathBuf| Library::read(path, true);
    let libraries = rlibs.iter().map(read).collect::<Result<Vec<_>>>()?;
    let mut defined: BTreeSet<&str> = BTreeSet::new();
    let toolchain = toolchain(subject)?;
    for library in &libraries {
        defined.extend(library.defined.iter().map(String::as_str));
    }
    let mut findings = Vec::new();
    for library in &libraries {
        findings.extend(library.found.iter().map(Seen::finding));
        for (symbol, callers) in &library.undefined {
            if !(defined.contains(symbol.as_str())
                || toolchain.contains(symbol)
                || provided(symbol))
            {
                let caller = callers
                    .iter()
                    .next()
                    .map_or_else(String::new, |name| format!(", called by `{name}`"));
                let what =
                    format!("`{}` in the crate `{}`{caller}", demangle(symbol), library.name);
                findings.push(Finding::new(&rules::SYMBOL, None, what));
            }
        }
    }
    findings.dedup();
    Ok(Outcome::Looked(findings))
}

/// Something in the compiled code that is a finding.
#[derive(Debug)]
enum Seen {
    Instruction { library: String, function: String, text: String },
    Exported { library: String, symbol: String },
    Constructor { library: String, section: String },
}

impl Seen {
    fn finding(&self) -> Finding {
        match self {
            Self::Instruction { library, function, text } => {
                let what = format!("`{text}` in `{function}` of the crate `{library}`");
                Finding::new(&rules::INSTRUCTION, None, what)
            }
            Self::Exported { library, symbol } => {
                let what = format!("`{symbol}` is exported by the crate `{library}`");
                Finding::new(&rules::SYMBOL_EXPORT, None, what)
            }
            Self::Constructor { library, section } => {
                let what = format!("the crate `{library}` has a section `{section}`");
                Finding::new(&rules::SYMBOL_START, None, what)
            }
        }
    }
}

/// A compiled library.
#[derive(Debug, Default)]
struct Library {
    name: String,
    defined: BTreeSet<String>,
    /// Symbols that others must provide, and the functions that use them.
    undefined: BTreeMap<String, BTreeSet<String>>,
    found: Vec<Seen>,
}

impl Library {
    /// Reads an rlib. With `code`, also reads its instructions, and the symbols that it needs or
    /// exports.
    fn read(path: &Path, code: bool) -> Result<Self> {
        let data = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let archive = ArchiveFile::parse(data.as_slice()).with_context(|| {
            format!("{}: expected a compiled Rust library (an archive)", path.display())
        })?;
        let file = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = file
            .strip_prefix("lib")
            .unwrap_or(&file)
            .split('-')
            .next()
            .unwrap_or_default()
            .to_owned();
        let mut library = Self { name, ..Self::default() };
        for member in archive.members() {
            let member = member?;
            if member.name().ends_with(b".rmeta") {
                continue;
            }
            let object = object::File::parse(member.data(data.as_slice())?)
                .with_context(|| format!("cannot read an object in {}", path.display()))?;
            library.symbols(&object, code);
            if code {
                library.code(&object)?;
            }
        }
        Ok(library)
    }

    fn symbols(&mut self, object: &object::File<'_>, code: bool) {
        for symbol in object.symbols() {
            let Ok(name) = symbol.name() else { continue };
            if name.is_empty() {
                continue;
            }
            if symbol.is_undefined() {
                if code {
                    self.undefined.entry(name.to_owned()).or_default();
                }
            } else if symbol.is_global() {
                let plain = !name.starts_with("_R")
                    && !name.starts_with("_ZN")
                    && !name.starts_with("DW.ref.");
                if code && plain && symbol.is_definition() {
                    self.found.push(Seen::Exported {
                        library: self.name.clone(),
                        symbol: name.to_owned(),
                    });
                }
                self.defined.insert(name.to_owned());
            }
        }
    }

    fn code(&mut self, object: &object::File<'_>) -> Result<()> {
        for section in object.sections() {
            let name = section.name().unwrap_or_default().to_owned();
            if is_constructor(&name) && section.size() > 0 {
                self.found
                    .push(Seen::Constructor { library: self.name.clone(), section: name.clone() });
            }
            let functions = functions(object, section.index());
            if section.kind() == SectionKind::Text {
                for (at, text) in reaches_kernel(section.data()?) {
                    let function = function_at(&functions, at);
                    self.found.push(Seen::Instruction {
                        library: self.name.clone(),
                        function,
                        text,
                    });
                }
            }
            for (at, relocation) in section.relocations() {
                let RelocationTarget::Symbol(index) = relocation.target() else { continue };
                self.uses(object, index, || function_at(&functions, at));
            }
        }
        Ok(())
    }

    fn uses(&mut self, object: &object::File<'_>, index: SymbolIndex, by: impl Fn() -> String) {
        let Ok(symbol) = object.symbol_by_index(index) else { return };
        let name = symbol.name().unwrap_or_default();
        if let Some(callers) = self.undefined.get_mut(name)
            && symbol.is_undefined()
        {
            let by = by();
            if !by.is_empty() {
                callers.insert(by);
            }
        }
    }
}

/// The functions of a section, by their offset.
fn functions(object: &object::File<'_>, section: object::SectionIndex) -> BTreeMap<u64, String> {
    let here = object.symbols().filter(|symbol| symbol.section_index() == Some(section));
    let named = here.filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?.to_owned())));
    named.filter(|(_, name)| !name.is_empty()).collect()
}

fn function_at(functions: &BTreeMap<u64, String>, at: u64) -> String {
    functions.range(..=at).next_back().map(|(_, name)| demangle(name)).unwrap_or_default()
}

fn demangle(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

fn provided(symbol: &str) -> bool {
    PROVIDED.contains(&symbol) || demangle(symbol).starts_with(PROVIDED_RUST)
}

/// Whether the contents of this section run before `main` or at exit.
pub(super) fn is_constructor(section: &str) -> bool {
    let begins = |start: &&str| section == *start || section.starts_with(&format!("{start}."));
    CONSTRUCTORS.iter().any(begins)
}

/// Instructions that reach the kernel or the hardware, with their place.
pub(super) fn reaches_kernel(code: &[u8]) -> Vec<(u64, String)> {
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut found = Vec::new();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if let Some(text) = reaches(&instruction) {
            found.push((instruction.ip(), text));
        }
    }
    found
}

fn reaches(instruction: &Instruction) -> Option<String> {
    use Mnemonic::{
        Hlt, In, Insb, Insd, Insw, Int, Out, Outsb, Outsd, Outsw, Syscall, Sysenter, Vmcall,
        Vmmcall,
    };
    match instruction.mnemonic() {
        Int => Some(format!("int {:#x}", instruction.immediate8())),
        name @ (Syscall | Sysenter | Vmcall | Vmmcall | Hlt | In | Insb | Insw | Insd | Out
        | Outsb | Outsw | Outsd) => Some(format!("{name:?}").to_lowercase()),
        _ => None,
    }
}

/// The symbols that core, alloc and compiler_builtins define; read once for each toolchain.
fn toolchain(subject: &Subject) -> Result<Arc<BTreeSet<String>>> {
    static KNOWN: Mutex<BTreeMap<PathBuf, Arc<BTreeSet<String>>>> = Mutex::new(BTreeMap::new());
    let directory = libraries(subject, LINUX)?;
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(defined) = known.get(&directory) {
        return Ok(Arc::clone(defined));
    }
    let mut defined = BTreeSet::new();
    for entry in
        fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?
    {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".rlib") && LIBRARIES.iter().any(|start| name.starts_with(start)) {
            defined.extend(Library::read(&entry.path(), false)?.defined);
        }
    }
    ensure!(!defined.is_empty(), "found no libcore in {}", directory.display());
    let defined = Arc::new(defined);
    known.insert(directory, Arc::clone(&defined));
    Ok(defined)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(code: &[u8]) -> Vec<String> {
        reaches_kernel(code).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn instructions_that_reach_outside_are_seen() {
        assert_eq!(names(&[0x0f, 0x05]), ["syscall"]);
        assert_eq!(names(&[0xcd, 0x80]), ["int 0x80"]);
        assert_eq!(names(&[0x0f, 0x34, 0xee, 0xec]), ["sysenter", "out", "in"]);
    }

    #[test]
    fn their_bytes_within_another_instruction_are_not() {
        // mov eax, 0x050f
        assert!(names(&[0xb8, 0x0f, 0x05, 0x00, 0x00]).is_empty());
        // int3, ud2
        assert!(names(&[0xcc, 0x0f, 0x0b]).is_empty());
    }
}
