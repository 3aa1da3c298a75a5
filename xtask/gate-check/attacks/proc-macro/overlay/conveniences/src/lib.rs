//! Writes code that no reviewer sees.

use proc_macro::TokenStream;

/// Writes a function that writes a file.
#[proc_macro]
pub fn device(_: TokenStream) -> TokenStream {
    "extern crate std; pub(crate) fn shout(bytes: &[u8]) { let _ = std::fs::write(\"/tmp/shout\", bytes); }"
        .parse()
        .expect("it is valid Rust")
}
