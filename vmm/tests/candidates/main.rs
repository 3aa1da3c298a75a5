//! Candidate techniques for the engine, each measured against the one in use. They run by name
//! (`cargo test --release -p kemari-vmm --test candidates -- --ignored --nocapture --test-threads 1
//! NAME`).
//!
//! The measurements are for people: no time makes a test fail. Each technique is checked to give
//! the right bytes. The figures and the decisions are in `docs/candidates.md`.
#![allow(clippy::unwrap_used, missing_docs)]

mod checksums;
#[path = "../../hypervisor/tests/common/mod.rs"]
mod common;
mod connections;
mod cow;
mod cow_guest;
mod dirty_area;
mod encoded_link;
mod encoding;
mod encodings;
mod huge;
mod peer;
mod rounds;
mod sending;
mod uffd;
mod uring_disk;
mod uring_socket;
mod waking;

/// Bytes of a page.
const PAGE: usize = 4096;
