//! Loading kernels: what is accepted, where it is placed, and that each refusal says what to do.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use kemari_hypervisor::layout;
use kemari_hypervisor::memory::{GuestMemory, MemoryOptions, create};
use kemari_machine::boot::{BootConfig, BootError, Entry, load};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

fn memory(mib: u64) -> GuestMemory {
    create(MemoryOptions { size: mib << 20, huge_pages: false }).unwrap()
}

fn config<'a>(kernel: &'a Path, initrd: Option<&'a Path>, cmdline: &'a str) -> BootConfig<'a> {
    BootConfig { kernel, initrd, cmdline, cpus: 1, windows: &[], pci: false }
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Files(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, bytes: &[u8]) -> std::path::PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn refusal(bytes: &[u8], mib: u64) -> BootError {
    let files = Files::new();
    let path = files.put("k", bytes);
    load(&memory(mib), &config(&path, None, "")).unwrap_err()
}

/// A bzImage of one setup sector and `payload`, protocol 2.15, loaded at 1 MiB.
fn bzimage(xloadflags: u16, init_size: u32, payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x211, &[1]); // loaded high
    put(0x214, &0x10_0000u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(0x236, &xloadflags.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x100_0000u64.to_le_bytes()); // pref_address
    put(0x260, &init_size.to_le_bytes());
    image.extend_from_slice(payload);
    image
}

/// A 64-bit ELF with one segment of 16 bytes at 2 MiB, and the PVH note if asked for.
fn elf(pvh: bool) -> Vec<u8> {
    let entry = 0x20_0000u64;
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    image.extend(entry.to_le_bytes());
    image.extend(64u64.to_le_bytes()); // program headers
    image.extend([0; 12]);
    image.extend([64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let mut segment = |kind: u32, offset: u64, addr: u64, size: u64| {
        image.extend(kind.to_le_bytes());
        image.extend(7u32.to_le_bytes());
        for field in [offset, addr, addr, size, size, 4] {
            image.extend(field.to_le_bytes());
        }
    };
    segment(1, 176, entry, 16);
    segment(if pvh { 4 } else { 0 }, 192, 0, 20);
    image.extend([0x90; 16]);
    image.extend([4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0]);
    image.extend((entry as u32 + 8).to_le_bytes());
    image
}

#[test]
fn files_that_are_no_kernels() {
    for (bytes, what) in [
        (&b""[..], "an empty file"),
        (b"#!/bin/sh\n", "starts with [23, 21, 2f, 62]"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"\x7fELF\x01\x01\x01", "32-bit ELF"),
        (b"\x7fELF\x02\x02\x01", "another machine"),
    ] {
        let error = refusal(bytes, 16).to_string();
        assert!(
            error.contains(what) && error.contains("not a kernel") && error.contains("--kernel"),
            "{error}"
        );
    }
}

#[test]
fn unreadable_files_are_named() {
    let files = Files::new();
    let missing = files.0.path().join("nowhere");
    let error = load(&memory(16), &config(&missing, None, "")).unwrap_err().to_string();
    assert!(error.contains("nowhere") && error.contains("--kernel"), "{error}");
    let error = load(&memory(16), &config(files.0.path(), None, "")).unwrap_err();
    assert!(matches!(error, BootError::Unreadable { what: "kernel", .. }), "{error}");
    let kernel = files.put("k", &elf(true));
    let error = load(&memory(16), &config(&kernel, Some(&missing), "")).unwrap_err().to_string();
    assert!(error.contains("--initrd"), "{error}");
}

#[test]
fn kernels_and_initrds_must_fit() {
    let error = refusal(&bzimage(1, 64 << 20, b"x"), 64);
    assert!(
        matches!(error, BootError::KernelTooLarge { needed: 0x500_0000, end: 0x400_0000, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("--memory"), "{error}");
    let error = refusal(&bzimage(1, 0, &vec![1; 8 << 20]), 8);
    assert!(matches!(error, BootError::KernelTooLarge { .. }), "{error}");
    let files = Files::new();
    let kernel = files.put("k", &bzimage(1, 16 << 20, b"x"));
    let initrd = files.put("i", &vec![1; 40 << 20]);
    let error = load(&memory(64), &config(&kernel, Some(&initrd), "")).unwrap_err();
    assert!(matches!(error, BootError::InitrdTooLarge { kernel_end: 0x200_0000, .. }), "{error}");
}

#[test]
fn damaged_and_old_images_are_refused() {
    let error = refusal(&bzimage(0, 0, b"x"), 64);
    assert!(matches!(error, BootError::No64BitEntry { .. }), "{error}");
    let error = refusal(&elf(true)[..150], 16);
    assert!(matches!(error, BootError::Damaged { .. }), "{error}");
    let mut wild = elf(false);
    wild[24..32].copy_from_slice(&0x5000_0000u64.to_le_bytes());
    let error = refusal(&wild, 16);
    assert!(
        matches!(error, BootError::Damaged { .. }) && error.to_string().contains("0x50000000"),
        "{error}"
    );
}

#[test]
fn command_line_limits() {
    let files = Files::new();
    let kernel = files.put("k", &elf(true));
    let longest = "x".repeat(layout::CMDLINE_MAX - 1);
    load(&memory(16), &config(&kernel, None, &longest)).unwrap();
    let error = load(&memory(16), &config(&kernel, None, &format!("{longest}x"))).unwrap_err();
    assert!(matches!(error, BootError::CmdlineTooLong { found: 2048, max: 2047 }), "{error}");
    let error = load(&memory(16), &config(&kernel, None, "a\0b")).unwrap_err();
    assert!(matches!(error, BootError::CmdlineNul), "{error}");
}

#[test]
fn elf_with_pvh_note_gets_start_info() {
    let files = Files::new();
    let kernel = files.put("k", &elf(true));
    let initrd = files.put("i", &[7; 5000]);
    let memory = memory(16);
    let entry = load(&memory, &config(&kernel, Some(&initrd), "hello")).unwrap();
    assert_eq!(entry, Entry::Pvh { rip: 0x20_0008 });
    let u32_at = |at: u64| memory.read_obj::<u32>(GuestAddress(at)).unwrap();
    let u64_at = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
    let info = layout::PVH_INFO_ADDR;
    assert_eq!((u32_at(info), u32_at(info + 4), u32_at(info + 12)), (0x336e_c578, 1, 1));
    let module = u64_at(info + 16);
    assert_eq!((u64_at(module), u64_at(module + 8)), (0xff_e000, 5000));
    assert_eq!(u64_at(0xff_e000), 0x0707_0707_0707_0707);
    let mut cmdline = [0; 6];
    memory.read_slice(&mut cmdline, GuestAddress(u64_at(info + 24))).unwrap();
    assert_eq!(&cmdline, b"hello\0");
    assert_eq!(u64_at(u64_at(info + 32)), u64::from_le_bytes(*b"RSD PTR "));
    let (map, entries) = (u64_at(info + 40), u32_at(info + 48));
    assert_eq!(entries, 3);
    assert_eq!((u64_at(map + 48), u64_at(map + 56), u32_at(map + 64)), (0x10_0000, 0xf0_0000, 1));
}

#[test]
fn elf_without_note_and_bzimage_get_the_zero_page() {
    let files = Files::new();
    let elf = files.put("e", &elf(false));
    let bz = files.put("b", &bzimage(1, 1 << 20, b"payload"));
    let initrd = files.put("i", &[7; 100]);
    for (path, rip, start) in [(&elf, 0x20_0000, 0x20_0000u64), (&bz, 0x10_0200, 0x10_0000)] {
        let memory = memory(64);
        let entry = load(&memory, &config(path, Some(&initrd), "root=/dev/vda")).unwrap();
        assert_eq!(entry, Entry::Linux64 { rip });
        let u32_at =
            |at: u64| memory.read_obj::<u32>(GuestAddress(layout::ZERO_PAGE_ADDR + at)).unwrap();
        assert_eq!(u32_at(0x202), u32::from_le_bytes(*b"HdrS"));
        assert_eq!(u32_at(0x228), layout::CMDLINE_ADDR as u32);
        assert_eq!((u32_at(0x218), u32_at(0x21c)), (0x3ff_f000, 100));
        assert_eq!(u32_at(0x70), layout::ACPI_START as u32);
        assert_eq!(u32_at(0x1e8) & 0xff, 3);
        let first: u8 = memory.read_obj(GuestAddress(start)).unwrap();
        assert_ne!(first, 0, "the image is loaded");
        // Page tables: 0xd000_0000 is mapped one to one.
        let pd = layout::BOOT_PD_ADDR + 3 * 4096 + (0xd000_0000u64 >> 21) % 512 * 8;
        assert_eq!(memory.read_obj::<u64>(GuestAddress(pd)).unwrap(), 0xd000_0083);
    }
}

/// A real distribution kernel, if one is given.
#[test]
fn stock_bzimage_loads() {
    let Some(path) = std::env::var_os("KEMARI_TEST_BZIMAGE") else {
        eprintln!("left to the Debian step of `cargo xtask test`, which sets KEMARI_TEST_BZIMAGE");
        return;
    };
    let memory = memory(256);
    let entry = load(&memory, &config(Path::new(&path), None, "console=ttyS0")).unwrap();
    println!("{entry:x?}");
    assert_eq!(entry, Entry::Linux64 { rip: 0x10_0200 });
    let error = load(&self::memory(32), &config(Path::new(&path), None, "")).unwrap_err();
    println!("{error}");
    assert!(matches!(error, BootError::KernelTooLarge { .. }));
}
