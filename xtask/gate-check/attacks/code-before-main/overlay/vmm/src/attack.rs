//! Runs before the program begins, with all rights.

#[used]
// SAFETY: none is claimed.
#[unsafe(link_section = ".init_array")]
static FIRST: extern "C" fn() = first;

extern "C" fn first() {}
