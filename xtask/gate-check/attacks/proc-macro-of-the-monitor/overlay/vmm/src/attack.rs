//! Calls the function that the macro has written.

say::say!();
