//! Checksums of pages: the link's checksum (XXH3-64 of a whole frame) against other implementations
//! of it, and against other checksums.
//!
//! `xxhash-rust` selects its instructions at compile time: build with `RUSTFLAGS="-C
//! target-cpu=native"` as well, and compare the tables. `twox-hash` and the CRC crates select at
//! run time.

use std::hint::black_box;

use crate::PAGE;
use crate::rounds::{Times, head, in_turn, way};

/// Computes the checksum of some bytes.
type Sum = fn(&[u8]) -> u64;

const SUMS: [(&str, u32, Sum); 9] = [
    ("xxh3-64, xxhash-rust (today)", 64, xxhash_rust::xxh3::xxh3_64),
    ("xxh3-64, twox-hash", 64, twox_hash::XxHash3_64::oneshot),
    ("xxh3-128, twox-hash", 128, |bytes| twox_hash::XxHash3_128::oneshot(bytes) as u64),
    ("rapidhash v3", 64, |bytes| {
        rapidhash::v3::rapidhash_v3_seeded(bytes, &rapidhash::v3::DEFAULT_RAPID_SECRETS)
    }),
    ("crc64-nvme, crc-fast", 64, |bytes| {
        crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
    }),
    ("crc32c, crc-fast", 32, |bytes| crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes)),
    ("crc32, crc32fast", 32, |bytes| u64::from(crc32fast::hash(bytes))),
    ("read only (sum of words)", 0, read),
    ("memcpy", 0, copy),
];

/// A lower bound for the time: reads every byte.
fn read(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(8).map(|w| u64::from_ne_bytes(w.try_into().unwrap()));
    words.fold(0, u64::wrapping_add)
}

/// Another lower bound: the copy of each page that the engine makes anyway.
fn copy(bytes: &[u8]) -> u64 {
    thread_local!(static TO: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) });
    TO.with_borrow_mut(|to| {
        to.resize(to.len().max(bytes.len()), 0);
        to[..bytes.len()].copy_from_slice(bytes);
        u64::from(black_box(&to[..])[bytes.len() / 2])
    })
}

/// Prints the time per page when `bytes` are summed in pieces of `piece` bytes.
fn table(title: &str, bytes: &[u8], piece: usize, rounds: usize) {
    let mut ways: Vec<_> = SUMS
        .iter()
        .map(|&(name, _, sum)| {
            let all =
                move || bytes.chunks_exact(piece).fold(0, |x: u64, part| x ^ sum(black_box(part)));
            way(name, all)
        })
        .collect();
    let times = in_turn(rounds, &mut ways);
    let pages = (bytes.len() / PAGE) as f64;
    let of = |times: &Times| times.median() / pages;
    println!("\n{title}:");
    head(&["to today's", "checksum", "bits", "ns per page", "GB/s"]);
    for ((name, bits, _), time) in SUMS.iter().zip(&times) {
        let (ns, today) = (of(time), of(&times[0]));
        println!("| {:.2} | {name} | {bits} | {ns:.1} | {:.1} |", ns / today, PAGE as f64 / ns);
    }
}

/// Checks that a checksum changes with each of many single bits.
fn check(bytes: &[u8]) {
    let page = &bytes[..PAGE];
    let mut other = page.to_vec();
    for (name, bits, sum) in SUMS {
        let whole = sum(page);
        assert_eq!(sum(&other), whole, "{name}");
        for bit in (0..PAGE * 8).step_by(61) {
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(bits == 0 || sum(&other) != whole, "{name} does not see bit {bit}");
            other[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(bits == 0 || sum(&page[..PAGE - 1]) != whole, "{name}");
    }
    for len in [0, 8, 16, 17, 128, 129, 240, 241, 1024, 1025, PAGE, bytes.len()] {
        let (theirs, ours) = (SUMS[1].2(&bytes[..len]), SUMS[0].2(&bytes[..len]));
        assert_eq!(theirs, ours, "two crates' XXH3-64 of {len} bytes");
    }
}

#[test]
#[ignore = "a measurement"]
fn checksums() {
    let mut bytes = vec![0; 64 << 20];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    check(&bytes[..64 * PAGE]);
    println!(
        "compiled for: sse2 {}, avx2 {}, avx512f {}; this processor: avx2 {}, avx512f {}, vpclmulqdq {}",
        cfg!(target_feature = "sse2"),
        cfg!(target_feature = "avx2"),
        cfg!(target_feature = "avx512f"),
        is_x86_feature_detected!("avx2"),
        is_x86_feature_detected!("avx512f"),
        is_x86_feature_detected!("vpclmulqdq"),
    );
    table("Page by page, in the second-level cache (512 KiB)", &bytes[..128 * PAGE], PAGE, 1000);
    table("Frames of 64 pages, in the second-level cache", &bytes[..128 * PAGE], 64 * PAGE, 1000);
    table(
        "A frame of 1024 pages, in the third-level cache",
        &bytes[..1024 * PAGE],
        1024 * PAGE,
        200,
    );
    table("Page by page, from memory (64 MiB)", &bytes, PAGE, 51);
}
