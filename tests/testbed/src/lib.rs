//! Outside observers and the harness that runs, breaks and judges a pair.
//!
//! Nothing here links the product: it runs as processes, is controlled by its command line, watched through its
//! status, and judged by its outputs: frames on a [`switch`], answers to a [`client`], bytes on a [`disk`].

#![deny(unsafe_code)]

pub mod bed;
pub mod bench;
pub mod capture;
pub mod certs;
pub mod client;
pub mod disk;
pub mod etcd;
pub mod exercise;
pub mod findings;
pub mod judge;
pub mod linearizability;
pub mod linux;
pub mod micro;
mod not_tested;
pub mod packet;
pub mod pair;
pub mod ports;
pub mod process;
pub mod redis;
pub mod small_disk;
pub mod switch;
mod unread;

pub use not_tested::{MUST_RUN, not_tested};
