//! Rules against functions of other languages, symbols for the linker, and machine code.

use syn::Signature;
use syn::spanned::Spanned;

use super::{Lint, Names};
use crate::layer::Layer;
use crate::rules::Rule;
use crate::source::scan::Scan;

pub(crate) static EXTERN_BLOCK: Lint = Lint {
    rule: Rule {
        id: "source/extern",
        layer: Layer::Source,
        why: "Foreign functions reach anything that is linked into the program, for instance libc's `write`.",
        instead: "Stage the effect with a token; the far side (`io-gate-host`) makes the system call.",
    },
    forbids: "Blocks of foreign functions, `extern fn`, and `core::ffi`.",
    example: "unsafe extern \"C\" { fn write(descriptor: i32, bytes: *const u8, len: usize) -> isize; }",
    is_written: false,
    names: Names { beginnings: &[&["core", "ffi"]], ..Names::NONE },
};

pub(crate) static EXPORT: Lint = Lint {
    rule: Rule {
        id: "source/export",
        layer: Layer::Source,
        why: "Unrelated code can call an exported or placed symbol, or run it at start, without a trace for the reviewer.",
        instead: "Leave symbols to the compiler. A device is called through the `Device` trait.",
    },
    forbids: "`no_mangle`, `export_name`, `link_section` and other attributes for the linker.",
    example: "#[unsafe(no_mangle)]\nfn write() {}",
    is_written: false,
    names: Names {
        attributes: &[
            "no_mangle",
            "export_name",
            "link_section",
            "link_name",
            "linkage",
            "link",
            "used",
            "unsafe",
        ],
        ..Names::NONE
    },
};

pub(crate) static ASM: Lint = Lint {
    rule: Rule {
        id: "source/asm",
        layer: Layer::Source,
        why: "Machine code can make a system call or access a port without a name that a check could see.",
        instead: "Stage the effect with a token. What needs instructions belongs in `vmm`.",
    },
    forbids: "`asm!` and its relatives, `core::arch`, `core::intrinsics`, `naked` and `target_feature`.",
    example: "fn beep() { core::arch::asm!(\"out 0x61, al\"); }",
    is_written: false,
    names: Names {
        beginnings: &[&["core", "arch"], &["core", "intrinsics"]],
        macros: &["asm", "global_asm", "naked_asm"],
        attributes: &["naked", "target_feature"],
        ..Names::NONE
    },
};

pub(in crate::source) fn block(scan: &mut Scan, item: &syn::ItemForeignMod) {
    scan.report(&EXTERN_BLOCK, item.span(), "a block of foreign functions");
}

pub(in crate::source) fn signature(scan: &mut Scan, signature: &Signature) {
    if let Some(abi) = &signature.abi {
        scan.report(&EXTERN_BLOCK, abi.span(), format!("`extern fn {}`", signature.ident));
    }
}
