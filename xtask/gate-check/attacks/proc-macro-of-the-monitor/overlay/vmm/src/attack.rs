//! Says what a macro wrote.

say::say!();
