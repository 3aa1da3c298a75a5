//! The testbed: runs a pair of hosts with a guest, injects faults, observes the pair from outside,
//! and judges it.
//!
//! The testbed depends on no crate of the product and contains no command line. It runs the product
//! as processes, controls them by their command line, watches their status, and judges their
//! output: frames on a [`switch`], answers to a [`client`], bytes on a [`disk`]. `xtask` and the
//! tests of all crates depend on it.

#![deny(unsafe_code)]

pub mod capture;
pub mod certs;
pub mod client;
pub mod disk;
pub mod etcd;
pub mod exercise;
pub mod findings;
pub mod guest;
pub mod judge;
pub mod kvm;
pub mod lab;
pub mod linearizability;
pub mod linux;
pub mod micro;
pub mod network;
pub mod packet;
pub mod pair;
pub mod ports;
pub mod process;
pub mod redis;
pub mod run_pair;
pub mod small_disk;
pub mod switch;
pub mod terminal;
pub mod torture;
mod unread;
