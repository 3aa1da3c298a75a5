//! Kernels and initrds against one map of guest memory. What does not fit is refused before
//! anything runs, with a hint that helps; what is accepted is in memory completely, and nothing
//! overlaps it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod images;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kemari_hypervisor::layout;
use kemari_hypervisor::memory::{GuestMemory, MemoryOptions, create};
use kemari_machine::boot::{BootConfig, Entry, load};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use images::{BzImage, Elf, Segment, note, property_note, pvh_note};

const MIB: u64 = 1 << 20;

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Files(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A sparse file of `len` bytes with a mark at its end.
    fn sparse(&self, name: &str, len: u64) -> PathBuf {
        let path = self.0.path().join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(len).unwrap();
        file.write_all_at(b"the end!", len - 8).unwrap();
        path
    }
}

fn memory(mib: u64) -> GuestMemory {
    create(MemoryOptions { size: mib * MIB, huge_pages: false }).unwrap()
}

fn boot(
    memory: &GuestMemory,
    kernel: &Path,
    initrd: Option<&Path>,
) -> Result<Entry, kemari_machine::boot::BootError> {
    let config =
        BootConfig { kernel, initrd, cmdline: "console=ttyS0", cpus: 1, windows: &[], pci: false };
    load(memory, &config)
}

fn cut(mut image: Vec<u8>, len: usize) -> Vec<u8> {
    image.truncate(len);
    image
}

fn patched(mut image: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

/// Name, image, MiB of the guest, what the refusal must contain, what it must not contain.
type Bad = (&'static str, Vec<u8>, u64, &'static [&'static str], &'static [&'static str]);

const RAISE: &str = "raise --memory";
const DAMAGED: &str = "damaged";

#[allow(clippy::too_many_lines, reason = "a table")]
fn bad_kernels() -> Vec<Bad> {
    let pvh = Elf::pvh;
    // The first program header of an image without notes.
    let phdr = 64;
    vec![
        // What does not fit into this guest but into a larger one.
        (
            "code beyond the guest's memory",
            pvh().with(Segment::code(16 * MIB, 4096)).build(),
            16,
            &["--memory to at least 17"],
            &[DAMAGED],
        ),
        (
            "code across the end of the guest's memory",
            pvh().with(Segment::code(16 * MIB - 4096, 8192)).build(),
            16,
            &["--memory to at least 17"],
            &[DAMAGED],
        ),
        (
            "zeros beyond the guest's memory",
            pvh().with(Segment::zeros(0x21_0000, 64 * MIB)).build(),
            16,
            &["--memory to at least 67"],
            &[DAMAGED],
        ),
        (
            "few bytes and many zeros",
            pvh().with(Segment { addr: 0x21_0000, bytes: vec![1; 16], memory: 64 * MIB }).build(),
            16,
            &["--memory to at least 67"],
            &[DAMAGED],
        ),
        (
            "a bzImage that unpacks beyond it",
            BzImage { init_size: 64 << 20, ..BzImage::new() }.build(),
            64,
            &["--memory to at least 80"],
            &[DAMAGED],
        ),
        (
            "a bzImage that is loaded beyond it",
            BzImage { code32_start: 0x1000_0000, ..BzImage::new() }.build(),
            64,
            &["--memory to at least 257"],
            &[DAMAGED],
        ),
        // What fits into no guest.
        (
            "code above 4 GiB",
            pvh().with(Segment::code(5 << 30, 4096)).build(),
            16,
            &["0x140000000", "0xc0000000", "link"],
            &[RAISE, DAMAGED],
        ),
        (
            "code in the hole of the devices",
            pvh().with(Segment::code(0xd000_0000, 4096)).build(),
            16,
            &["0xd0000000", "0xc0000000", "link"],
            &[RAISE, DAMAGED],
        ),
        (
            "zeros that reach into it",
            pvh().with(Segment::zeros(0x20_1000, 4 << 30)).build(),
            16,
            &["0xc0000000", "link"],
            &[RAISE, DAMAGED],
        ),
        (
            "code at the end of the address space",
            pvh().with(Segment::code(u64::MAX - 4095, 4096)).build(),
            16,
            &["link"],
            &[RAISE],
        ),
        (
            "code in the PC's hole",
            pvh().with(Segment::code(0xb_8000, 4096)).build(),
            16,
            &["0xb8000", "link"],
            &[RAISE, DAMAGED],
        ),
        (
            "a bzImage that unpacks above 3 GiB",
            BzImage { pref_address: 5 << 30, ..BzImage::new() }.build(),
            64,
            &["0xc0000000"],
            &[RAISE],
        ),
        (
            "a bzImage loaded in the hole of the devices",
            BzImage { code32_start: 0xd000_0000, ..BzImage::new() }.build(),
            64,
            &["0xc0000000"],
            &[RAISE],
        ),
        (
            "code that would need more memory and code that no memory helps",
            pvh().with(Segment::code(64 * MIB, 16)).with(Segment::code(5 << 30, 16)).build(),
            16,
            &["0x140000000"],
            &[RAISE],
        ),
        // What overlaps the boot structures.
        (
            "code over the PVH start info",
            pvh().with(Segment::code(0x6000, 16)).build(),
            16,
            &["start info", "0x100000"],
            &[RAISE],
        ),
        (
            "code over the command line",
            pvh().with(Segment::code(0x1_f000, 0x2000)).build(),
            16,
            &["command line"],
            &[RAISE],
        ),
        (
            "code over the ACPI tables",
            pvh().with(Segment::code(0xe_0000, 16)).build(),
            16,
            &["0xe0000", "link"],
            &[RAISE],
        ),
        (
            "code over all of it",
            pvh().with(Segment::code(0x500, 0xd_fb00)).build(),
            16,
            &["0x500", "link"],
            &[RAISE],
        ),
        (
            "code over the descriptor table",
            pvh().with(Segment::code(0, 0x1000)).build(),
            16,
            &["descriptor table"],
            &[RAISE],
        ),
        (
            "zeros over the zero page",
            Elf::linux64().with(Segment::zeros(0x7000, 16)).build(),
            16,
            &["zero page"],
            &[RAISE],
        ),
        (
            "code over the page tables",
            Elf::linux64().with(Segment::code(0xb000, 16)).build(),
            16,
            &["page tables"],
            &[RAISE],
        ),
        (
            "code over the stack",
            Elf::linux64().with(Segment::code(0x8000, 0x1000)).build(),
            16,
            &["stack"],
            &[RAISE],
        ),
        // What overlaps itself.
        (
            "two segments at one address",
            pvh().with(Segment::code(0x20_0800, 16)).build(),
            16,
            &["overlap"],
            &[RAISE],
        ),
        (
            "zeros over code",
            pvh().with(Segment::zeros(0x1f_0000, MIB)).build(),
            16,
            &["overlap"],
            &[RAISE],
        ),
        // What is truncated.
        (
            "an ELF cut in its header",
            cut(pvh().build(), 40),
            16,
            &["cut short", "64 bytes", "40"],
            &[RAISE],
        ),
        (
            "an ELF cut in its program headers",
            cut(pvh().build(), 100),
            16,
            &["cut short", "176 bytes", "100"],
            &[RAISE],
        ),
        (
            "an ELF cut in its contents",
            cut(pvh().build(), 1000),
            16,
            &["cut short", "1000"],
            &[RAISE],
        ),
        (
            "an ELF cut in a segment that this guest has no room for",
            cut(pvh().with(Segment::code(32 * MIB, 4096)).build(), 5000),
            16,
            &["cut short"],
            &[RAISE],
        ),
        (
            "an ELF whose program headers lie nowhere",
            patched(pvh().build(), 32, &u64::MAX.to_le_bytes()),
            16,
            &["program headers"],
            &[RAISE],
        ),
        (
            "an ELF whose program headers are its header",
            patched(pvh().build(), 32, &8_u64.to_le_bytes()),
            16,
            &["program headers"],
            &[RAISE],
        ),
        (
            "a segment that lies nowhere in the file",
            patched(Elf::linux64().build(), phdr + 8, &(u64::MAX - 10).to_le_bytes()),
            16,
            &["segment"],
            &[RAISE],
        ),
        (
            "a bzImage cut in half",
            cut(BzImage::new().build(), 32 << 10),
            64,
            &["cut short", "66560", "32768"],
            &[RAISE],
        ),
        (
            "a bzImage of which 16 bytes are missing",
            cut(BzImage::new().build(), 1024 + (64 << 10) - 16),
            64,
            &["cut short", "66560"],
            &[RAISE],
        ),
        (
            "a bzImage of only its setup",
            cut(BzImage::new().build(), 1024),
            64,
            &["cut short"],
            &[RAISE],
        ),
        (
            "a bzImage cut in its header",
            cut(BzImage::new().build(), 0x230),
            64,
            &["cut short"],
            &[RAISE],
        ),
        (
            "a bzImage cut, of one that does not say its size",
            cut(
                BzImage { syssize: 0, compressed: (0x200, 0xf000), ..BzImage::new() }.build(),
                32 << 10,
            ),
            64,
            &["cut short"],
            &[RAISE],
        ),
        (
            "a bzImage cut, for a guest that is too small as well",
            cut(BzImage::new().build(), 32 << 10),
            4,
            &["cut short"],
            &[RAISE],
        ),
        // What is inconsistent.
        (
            "an ELF without segments",
            Elf { segments: vec![], ..pvh() }.build(),
            16,
            &["no segment"],
            &[RAISE],
        ),
        (
            "a segment with more bytes in the file than in memory",
            pvh().with(Segment { addr: 0x30_0000, bytes: vec![1; 64], memory: 16 }).build(),
            16,
            &["segment", "64", "16"],
            &[RAISE],
        ),
        (
            "an entry in no segment",
            Elf { entry: 0x50_0000, ..Elf::linux64() }.build(),
            16,
            &["entry", "0x500000"],
            &[RAISE],
        ),
        (
            "an entry between segments",
            Elf { entry: 0x28_0000, ..Elf::linux64().with(Segment::code(0x30_0000, 16)) }.build(),
            16,
            &["entry", "0x280000"],
            &[RAISE],
        ),
        (
            "an entry among zeros",
            Elf { entry: 0x30_0000, ..Elf::linux64().with(Segment::zeros(0x30_0000, 4096)) }
                .build(),
            16,
            &["entry", "0x300000"],
            &[RAISE],
        ),
        (
            "a PVH entry in no segment",
            Elf { notes: vec![(pvh_note(0x50_0000), 4)], ..pvh() }.build(),
            16,
            &["entry", "0x500000"],
            &[RAISE],
        ),
        (
            "a PVH note without an address",
            Elf { notes: vec![(note(b"Xen\0", 18, &[1, 2]), 4)], ..pvh() }.build(),
            16,
            &["PVH"],
            &[RAISE],
        ),
        (
            "a note that is longer than its segment",
            Elf { notes: vec![(cut(pvh_note(0x20_0000), 18), 4)], ..pvh() }.build(),
            16,
            &["note"],
            &[RAISE],
        ),
        (
            "program headers of another size",
            patched(pvh().build(), 54, &[32, 0]),
            16,
            &["program header"],
            &[RAISE],
        ),
        (
            "a bzImage loaded low",
            BzImage { code32_start: 0x8_0000, ..BzImage::new() }.build(),
            64,
            &["0x80000"],
            &[RAISE],
        ),
        ("a zImage", patched(BzImage::new().build(), 0x211, &[0]), 64, &["zImage"], &[RAISE]),
        (
            "a bzImage of 2005",
            BzImage { version: 0x0203, ..BzImage::new() }.build(),
            64,
            &["64-bit entry"],
            &[RAISE],
        ),
    ]
}

/// Every fault of a kernel is reported, without a hint that cannot help.
#[test]
fn bad_kernels_are_refused_with_hints_that_help() {
    let files = Files::new();
    let mut wrong = Vec::new();
    for (name, image, mib, expected, forbidden) in bad_kernels() {
        let path = files.put("kernel", &image);
        match boot(&memory(mib), &path, None) {
            Ok(entry) => wrong.push(format!("{name}: accepted, enters at {entry:x?}")),
            Err(error) => {
                let text = error.to_string();
                let missing = expected.iter().find(|part| !text.contains(**part));
                let surplus = forbidden.iter().find(|part| text.contains(**part));
                if let Some(part) = missing {
                    wrong.push(format!("{name}: expected `{part}` in: {text}"));
                } else if let Some(part) = surplus {
                    wrong.push(format!("{name}: `{part}` cannot help: {text}"));
                } else if !text.contains("kernel") || text.contains('\n') {
                    wrong.push(format!("{name}: which file? one line? {text}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), bad_kernels().len(), wrong.join("\n"));
}

/// The size that a refusal names is enough.
#[test]
fn the_memory_that_a_refusal_asks_for_is_enough() {
    let files = Files::new();
    let raise = |kernel: &Path, initrd: Option<&Path>, mib| {
        let text = boot(&memory(mib), kernel, initrd).unwrap_err().to_string();
        let (_, rest) = text.split_once("--memory to at least ").expect(&text);
        let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let mib: u64 = number.parse().unwrap();
        assert!(boot(&memory(mib - 1), kernel, initrd).is_err(), "{text}: less is enough");
        boot(&memory(mib), kernel, initrd).unwrap_or_else(|e| panic!("{text}: and then: {e}"));
    };
    let large = files.put("large", &Elf::pvh().with(Segment::zeros(0x21_0000, 64 * MIB)).build());
    raise(&large, None, 16);
    let bz = files.put("bz", &BzImage { init_size: 64 << 20, ..BzImage::new() }.build());
    raise(&bz, None, 64);
    let initrd = files.sparse("initrd", 40 * MIB + 1);
    raise(&bz, Some(&initrd), 81);
    raise(&files.put("pvh", &Elf::pvh().build()), Some(&initrd), 16);
}

#[test]
fn a_pvh_note_is_found_wherever_it_is() {
    let files = Files::new();
    let entry = 0x20_0010;
    let pvh = || pvh_note(entry);
    type Notes = Vec<(Vec<u8>, u64)>;
    let tables: [(&str, Notes); 7] = [
        ("alone", vec![(pvh(), 4)]),
        ("in the second segment", vec![(property_note(), 8), (pvh(), 4)]),
        ("in the first of two", vec![(pvh(), 4), (property_note(), 8)]),
        ("in the middle", vec![(property_note(), 8), (pvh(), 4), (note(b"Linux\0", 257, b"6"), 4)]),
        ("behind another note", vec![([note(b"GNU\0", 3, &[7; 20]), pvh()].concat(), 4)]),
        (
            "behind a note of the same type and another name",
            vec![([note(b"Xyz\0", 18, &[9; 4]), pvh()].concat(), 4)],
        ),
        ("in a segment that is aligned to 8", vec![([property_note(), pvh()].concat(), 8)]),
    ];
    for (name, notes) in tables {
        let path = files.put("kernel", &Elf { notes, ..Elf::pvh() }.build());
        let found = boot(&memory(16), &path, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(found, Entry::Pvh { rip: u64::from(entry) }, "{name}");
    }
}

/// What is accepted is in memory when the guest starts, byte for byte.
#[test]
fn what_is_loaded_stays_whole() {
    let files = Files::new();
    let kernel = Elf::pvh()
        .with(Segment { addr: 0x1_0000, bytes: vec![0xa5; 0x8000], memory: 0x9000 })
        .with(Segment { addr: 0x40_0000, bytes: vec![0x5a; 100], memory: 4 * MIB })
        .with(Segment::zeros(0xd0_0000, MIB));
    let path = files.put("kernel", &kernel.build());
    let initrd = files.put("initrd", &vec![7; MIB as usize]);
    let memory = memory(16);
    boot(&memory, &path, Some(&initrd)).unwrap();
    let read = |addr: u64, len: u64| {
        let mut bytes = vec![0; len as usize];
        memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    };
    for segment in &kernel.segments {
        let mut expected = segment.bytes.clone();
        expected.resize(segment.memory as usize, 0);
        assert!(read(segment.addr, segment.memory) == expected, "segment at {:#x}", segment.addr);
    }
    let module: u64 = memory.read_obj(GuestAddress(layout::PVH_MODULES_ADDR)).unwrap();
    assert!(read(module, MIB).iter().all(|byte| *byte == 7), "the initrd");
    assert_eq!(module, 15 * MIB, "as high as it can be, and beside the zeros at 0xd00000");
}

/// An initrd is placed beside what the kernel needs, not into it: in the highest free room.
#[test]
fn an_initrd_does_not_land_in_the_kernels_zeros() {
    let files = Files::new();
    let top = Elf::pvh().with(Segment::zeros(12 * MIB, 4 * MIB));
    let path = files.put("kernel", &top.build());
    let initrd = files.put("initrd", &vec![7; MIB as usize]);
    let memory = memory(16);
    boot(&memory, &path, Some(&initrd)).unwrap();
    let module: u64 = memory.read_obj(GuestAddress(layout::PVH_MODULES_ADDR)).unwrap();
    assert_eq!(module, 11 * MIB);
}

#[test]
fn bad_initrds_are_refused_with_hints_that_help() {
    let files = Files::new();
    let pvh = files.put("pvh", &Elf::pvh().build());
    let bz = files.put("bz", &BzImage::new().build());
    let refusal = |kernel: &Path, len: u64, mib: u64| {
        let initrd = files.sparse("initrd", len);
        boot(&memory(mib), kernel, Some(&initrd)).unwrap_err().to_string()
    };
    let text = refusal(&pvh, 20 * MIB, 16);
    assert!(text.contains("--memory to at least 23"), "{text}");
    // Below 3 GiB, for any --memory.
    let text = refusal(&pvh, 4 << 30, 64);
    assert!(!text.contains(RAISE) && text.contains("smaller"), "{text}");
    // This kernel accepts none above 2 GiB.
    let text = refusal(&bz, 2 << 30, 64);
    assert!(!text.contains(RAISE) && text.contains("0x80000000"), "{text}");
    let empty = files.put("empty", b"");
    let text = boot(&memory(16), &pvh, Some(&empty)).unwrap_err().to_string();
    assert!(text.contains("empty") && text.contains("--initrd"), "{text}");
}

/// One `read` returns at most 2 GiB less 4 KiB.
#[test]
fn an_initrd_of_more_than_2_gib_is_loaded_whole() {
    const LEN: u64 = (2 << 30) + (5 << 20) + 8;
    let files = Files::new();
    // 3 GiB below the hole. The file is sparse and reads as zeros, but the kernel touches the
    // pages.
    if create(MemoryOptions { size: 5 << 30, huge_pages: false }).is_err() {
        kemari_not_tested::not_tested("the host has less than 5 GiB available");
        return;
    }
    let initrd = files.sparse("initrd", LEN);
    for (kernel, info) in [
        (Elf::pvh().build(), layout::PVH_MODULES_ADDR),
        // Accepts an initrd anywhere below 4 GiB (XLF_CAN_BE_LOADED_ABOVE_4G).
        (BzImage { xloadflags: 3, ..BzImage::new() }.build(), layout::ZERO_PAGE_ADDR + 0x218),
    ] {
        let kernel = files.put("kernel", &kernel);
        let memory = memory(3 << 10);
        boot(&memory, &kernel, Some(&initrd)).unwrap_or_else(|e| panic!("{e}"));
        let addr = u64::from(memory.read_obj::<u32>(GuestAddress(info)).unwrap());
        assert!(addr + LEN <= layout::LOW_RAM_END && addr.is_multiple_of(4096), "{addr:#x}");
        let mut end = [0; 8];
        memory.read_slice(&mut end, GuestAddress(addr + LEN - 8)).unwrap();
        assert_eq!(&end, b"the end!");
    }
}
