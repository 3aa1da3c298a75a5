//! P2: each system call that lets data out takes a permit, and is in one module. No other module
//! makes such a call. The compiler cannot know which functions of the C library or std reach the
//! outside, so this test searches the sources.
#![allow(clippy::unwrap_used)]

use std::path::Path;

/// Calls that write to a descriptor, or send.
const CALLS: &[&str] = &[
    "libc::write(",
    "libc::writev(",
    "libc::pwrite(",
    "libc::pwrite64(",
    "libc::pwritev(",
    "libc::pwritev2(",
    "libc::send(",
    "libc::sendto(",
    "libc::sendmsg(",
    "libc::sendmmsg(",
    "libc::sendfile(",
    "libc::splice(",
    "libc::tee(",
    "libc::copy_file_range(",
    "libc::fallocate(",
    "libc::ftruncate(",
    "libc::fdatasync(",
    ".write_all(",
    ".write_at(",
    ".write_all_at(",
    ".write_vectored(",
    ".set_len(",
    ".sync_data(",
    ".sync_all(",
    "io::copy(",
    "write!(",
    "writeln!(",
    "println!(",
    "eprintln!(",
];

/// The same calls of rustix, by the last part of their path.
const RUSTIX: &[&str] = &[
    "write",
    "writev",
    "pwrite",
    "pwritev",
    "pwritev2",
    "send",
    "sendto",
    "sendmsg",
    "sendmsg_addr",
    "sendfile",
    "splice",
    "tee",
    "copy_file_range",
    "fallocate",
    "ftruncate",
    "fdatasync",
    "fsync",
];

/// Places that match, but write nothing that is visible outside.
const EXCEPTIONS: &[(&str, &str)] = &[
    // The fence record of a disk: the permission itself depends on it.
    ("disk_use/disk_fence.rs", ".write_all_at("),
    ("disk_use/disk_fence.rs", ".sync_data("),
    // Guest memory.
    ("guest_memory.rs", ".write_at("),
    // An example in a doc comment.
    ("adapter/rust_vmm.rs", ".write_all("),
    // Syncs the directory of a new record.
    ("descriptors.rs", ".sync_all("),
    // Sets the length of a vector.
    ("backend/net/socket.rs", ".set_len("),
    // Clears a console's file before any device is attached.
    ("backend/console/console_file.rs", ".set_len("),
    // Sets the size of shared guest memory.
    ("backend/memory.rs", ".set_len("),
];

/// The calls of [`RUSTIX`] that a text names, in `use` or in place.
fn of_rustix(text: &str) -> Vec<&'static str> {
    let paths = text.split("rustix::").skip(1);
    let names = paths.flat_map(|rest| {
        let path = rest.split([';', '(']).next().unwrap_or_default();
        path.split(|c: char| !(c.is_alphanumeric() || c == '_'))
    });
    names.filter_map(|name| RUSTIX.iter().copied().find(|call| *call == name)).collect()
}

fn sources(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn p2_nothing_is_let_out_but_with_a_permit() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 20, "the sources are not where they were");
    let mut findings = Vec::new();
    for file in &files {
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        // A module's tests come last.
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        // The files of an own disk are state of the machine, and let nothing out.
        if name == "own_disk/medium.rs" {
            continue;
        }
        if name == "out.rs" {
            assert!(text.matches("permit.spend()?").count() >= 7, "each call spends its permit");
            continue;
        }
        findings.extend(of_rustix(text).iter().map(|call| format!("{name}: rustix' {call}")));
        for (number, line) in text.lines().enumerate() {
            let found = CALLS.iter().filter(|call| line.contains(**call));
            let found = found.filter(|call| !EXCEPTIONS.contains(&(name, call)));
            findings.extend(found.map(|call| format!("{name}:{}: {call}..)", number + 1)));
        }
    }
    assert!(
        findings.is_empty(),
        "{findings:#?}: make the call in io-gate/host/src/out.rs, where it takes a permit"
    );
}

#[test]
fn a_call_of_rustix_is_found_in_use_and_in_place() {
    assert_eq!(
        of_rustix("use rustix::io::{\n    Errno, write,\n};\nuse rustix::net::recv;"),
        ["write"]
    );
    assert_eq!(of_rustix("rustix::net::send(fd, bytes, flags)"), ["send"]);
    assert!(of_rustix("use rustix::io::read; write(1)").is_empty());
}
