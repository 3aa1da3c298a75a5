//! Makes system calls of an unmodified program fail, come short, take long or hang.
//!
//! The program is started with a seccomp filter that asks this process about chosen calls (seccomp_unotify(2)). A filter
//! that the program installs later applies as well, and the stricter of both answers counts: what the program's own
//! filter forbids stays forbidden. [`intercept`] installs the filter and hands over its [`Listener`]; an [`Injector`]
//! answers by a rule.

mod filter;
mod injector;
mod listener;
mod short;

pub use filter::{Pending, intercept};
pub use injector::{Answer, Injector};
pub use listener::{Call, Listener};
