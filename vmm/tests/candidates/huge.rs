//! Copying the dirty pages in the pause, from memory in small pages and from memory in transparent
//! huge pages.

use kemari_hypervisor::memory::{self, GuestMemory, MemoryOptions};
use vm_memory::GuestMemoryBackend;

use crate::PAGE;
use crate::cow::{COUNTS, MEMORY, dirty};
use crate::rounds::{head, in_turn, way};

/// Guest memory, all touched; each page holds its number.
fn filled(huge_pages: bool) -> GuestMemory {
    let memory = memory::create(MemoryOptions { size: MEMORY as u64, huge_pages }).unwrap();
    let base = memory.iter().next().unwrap().get_mmap().as_ptr();
    for page in 0..MEMORY / PAGE {
        // SAFETY: the first word of a page of the mapping, which no other code uses.
        unsafe { base.add(page * PAGE).cast::<u64>().write(page as u64) };
    }
    memory
}

fn copy(memory: &GuestMemory, pages: &[usize], to: &mut [u8]) {
    let base = memory.iter().next().unwrap().get_mmap().as_ptr();
    for (page, to) in pages.iter().zip(to.as_chunks_mut::<PAGE>().0) {
        // SAFETY: a page of the mapping, to which no thread writes.
        unsafe { std::ptr::copy_nonoverlapping(base.add(page * PAGE), to.as_mut_ptr(), PAGE) };
    }
}

/// Memory of this process in huge pages, in KiB.
fn huge_kib() -> u64 {
    let all = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = all.lines().find_map(|line| line.strip_prefix("AnonHugePages:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
#[ignore = "a measurement"]
fn huge_pages() {
    let before = huge_kib();
    let memories = [filled(false), filled(true)];
    println!("in huge pages: {} of {} KiB", huge_kib() - before, MEMORY >> 10);
    head(&[
        "dirty pages",
        "copy us p50 / p99, small pages",
        "huge pages",
        "huge to small",
        "ns per page, small",
        "huge",
    ]);
    for count in COUNTS {
        let pages = dirty(count);
        let mut copies = [vec![1; count * PAGE], vec![1; count * PAGE]];
        let [small, huge] = &mut copies;
        let times = in_turn(
            301,
            &mut [
                way("small", || copy(&memories[0], &pages, small)),
                way("huge", || copy(&memories[1], &pages, huge)),
            ],
        );
        for (at, copy) in pages.iter().zip(copies[0].chunks(PAGE)) {
            assert_eq!(copy[..8], (*at as u64).to_ne_bytes());
        }
        assert!(copies[0] == copies[1], "the two ways give other bytes");
        let [small, huge] = [times[0].median(), times[1].median()];
        let n = count as f64;
        println!(
            "| {count} | {} | {} | {:.2} | {:.0} | {:.0} |",
            times[0],
            times[1],
            huge / small,
            small / n,
            huge / n
        );
    }
}
