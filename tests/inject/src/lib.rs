//! Makes system calls of an unmodified program fail, transfer too few bytes, take long or hang.
//!
//! The program starts with a seccomp filter that sends chosen calls to this process
//! (seccomp_unotify(2)). [`intercept`] installs the filter and hands over its [`Listener`]; an
//! [`Injector`] answers by a rule. A filter that the program installs later applies too, and the
//! stricter answer counts: a call that the program's own filter forbids stays forbidden.

mod filter;
mod injector;
mod listener;
mod short;

pub use filter::{Pending, intercept};
pub use injector::{CallResult, Injector};
pub use listener::{Call, Listener};
