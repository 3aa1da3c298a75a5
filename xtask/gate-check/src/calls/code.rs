//! Compiled code as a graph. A node is a function or a piece of data, for instance a table of
//! functions. An edge leads to each node that it names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use object::read::archive::ArchiveFile;
use object::{
    Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionFlags, SectionIndex, SectionKind,
    SymbolKind,
};

use super::super::symbols::{is_constructor, reaches_kernel};

/// Prefixes of the sections that the compiler makes for functions and data.
const USUAL: [&str; 8] =
    [".text", ".rodata", ".data", ".bss", ".tdata", ".tbss", ".eh_frame", ".gcc_except_table"];

/// A function, or a piece of data, as its index in [`Code`].
pub(super) type Node = usize;
/// The nodes of each section, by their offset.
type Places = HashMap<SectionIndex, BTreeMap<u64, Node>>;

/// The graph.
#[derive(Debug, Default)]
pub(super) struct Code {
    pub(super) nodes: Vec<Named>,
    /// Sections whose contents run before `main`, or at exit.
    pub(super) constructors: BTreeSet<String>,
    /// Other sections that the compiler does not make by itself.
    pub(super) unusual: BTreeSet<String>,
    /// Names that are not Rust names and by which other objects can reach functions and data.
    pub(super) exported: BTreeSet<String>,
    /// The nodes of symbols that are the same in every object, by name.
    by_name: BTreeMap<String, Node>,
}

/// An item of compiled code.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// Its symbol; empty for data without one.
    pub(super) symbol: String,
    /// Whether its code or data is in the objects that were read.
    pub(super) is_here: bool,
    /// The nodes that it names.
    pub(super) uses: BTreeSet<Node>,
    /// Its instructions that reach the kernel.
    pub(super) instructions: BTreeSet<String>,
}

impl Code {
    /// Reads the object file of a program.
    pub(super) fn read_object(&mut self, path: &Path) -> Result<()> {
        let data = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let object = object::File::parse(data.as_slice())
            .with_context(|| format!("{} is no object", path.display()))?;
        self.object(&object)
    }

    /// Reads a compiled library.
    pub(super) fn read_library(&mut self, path: &Path) -> Result<()> {
        let data = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let archive = ArchiveFile::parse(data.as_slice()).with_context(|| {
            format!("{}: expected a compiled Rust library (an archive)", path.display())
        })?;
        for member in archive.members() {
            let member = member?;
            if member.name().ends_with(b".rmeta") {
                continue;
            }
            let object = object::File::parse(member.data(data.as_slice())?)
                .with_context(|| format!("cannot read an object in {}", path.display()))?;
            self.object(&object)?;
        }
        Ok(())
    }

    fn object(&mut self, object: &object::File<'_>) -> Result<()> {
        let (mut symbols, mut places) = (HashMap::new(), Places::new());
        for symbol in object.symbols() {
            let name = symbol.name().unwrap_or_default();
            if name.is_empty() || symbol.kind() == SymbolKind::Section {
                continue;
            }
            let node = match symbol.is_local() {
                true => self.add(name),
                false => self.named(name),
            };
            symbols.insert(symbol.index(), node);
            self.nodes[node].is_here |= !symbol.is_undefined();
            if symbol.is_definition() && !symbol.is_local() && !is_rusts(name) {
                self.exported.insert(name.to_owned());
            }
            if let Some(section) = symbol.section_index() {
                places.entry(section).or_default().insert(symbol.address(), node);
            }
        }
        // Data without a name, for instance the table of a trait object's functions, has a section
        // of its own.
        for section in object.sections().filter(holds_code_or_data) {
            let here = places.entry(section.index()).or_default();
            here.entry(0).or_insert_with(|| self.add(""));
        }
        self.sections(object, &places);
        for section in object.sections().filter(holds_code_or_data) {
            self.instructions(&section, &places)?;
            for (at, relocation) in section.relocations() {
                let RelocationTarget::Symbol(index) = relocation.target() else { continue };
                let target = symbols.get(&index).copied().or_else(|| {
                    let whole = object.symbol_by_index(index).ok()?.section_index()?;
                    at_or_before(&places, whole, relocation.addend().try_into().unwrap_or(0))
                });
                let from = at_or_before(&places, section.index(), at);
                if let (Some(from), Some(target)) = (from, target) {
                    self.nodes[from].uses.insert(target);
                }
            }
        }
        Ok(())
    }

    /// Records an object's constructors, and its sections that the compiler does not make by
    /// itself.
    fn sections(&mut self, object: &object::File<'_>, places: &Places) {
        for section in object.sections().filter(|section| section.size() > 0 && is_loaded(section))
        {
            let name = section.name().unwrap_or_default();
            let is_in = |usual: &[&str]| usual.iter().any(|start| name.starts_with(start));
            // The section of frames is not checked, so no named item may be in it.
            let holds_names = places.contains_key(&section.index()) && is_frames(name);
            if is_constructor(name) {
                self.constructors.insert(name.to_owned());
            } else if !is_in(&USUAL) || holds_names {
                self.unusual.insert(name.to_owned());
            }
        }
    }

    fn instructions(&mut self, section: &object::Section<'_, '_>, places: &Places) -> Result<()> {
        if section.kind() != SectionKind::Text {
            return Ok(());
        }
        for (at, instruction) in reaches_kernel(section.data()?) {
            if let Some(node) = at_or_before(places, section.index(), at) {
                self.nodes[node].instructions.insert(instruction);
            }
        }
        Ok(())
    }

    fn named(&mut self, name: &str) -> Node {
        if let Some(node) = self.by_name.get(name) {
            return *node;
        }
        let node = self.add(name);
        self.by_name.insert(name.to_owned(), node);
        node
    }

    fn add(&mut self, symbol: &str) -> Node {
        self.nodes.push(Named { symbol: symbol.to_owned(), ..Named::default() });
        self.nodes.len() - 1
    }
}

/// Whether the compiler gives this name: v0 mangling, a program's entry, or a reference to its
/// unwinder.
fn is_rusts(name: &str) -> bool {
    name.starts_with("_R") || ["main", "DW.ref.rust_eh_personality"].contains(&name)
}

fn at_or_before(places: &Places, section: SectionIndex, at: u64) -> Option<Node> {
    places.get(&section)?.range(..=at).next_back().map(|(_, node)| *node)
}

fn holds_code_or_data(section: &object::Section<'_, '_>) -> bool {
    let name = section.name().unwrap_or_default();
    let of_program = matches!(
        section.kind(),
        SectionKind::Text
            | SectionKind::Data
            | SectionKind::ReadOnlyData
            | SectionKind::ReadOnlyDataWithRel
            | SectionKind::Tls
    );
    of_program && !is_frames(name)
}

/// Frames for unwinding, which name every function.
fn is_frames(section: &str) -> bool {
    section == ".eh_frame"
}

/// Whether the section is loaded when the program runs.
fn is_loaded(section: &object::Section<'_, '_>) -> bool {
    let SectionFlags::Elf { sh_flags, .. } = section.flags() else { return true };
    sh_flags.contains(object::elf::SHF_ALLOC)
}
