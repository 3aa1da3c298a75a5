//! Links the guest at its fixed address, whatever directory cargo is called from.

fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it for build scripts");
    println!("cargo:rerun-if-changed=link.ld");
    println!("cargo:rerun-if-changed=src/boot.s");
    println!("cargo:rustc-link-arg-bins=-T{directory}/link.ld");
    // By default the target builds a position-independent executable, but no loader relocates the
    // guest.
    println!("cargo:rustc-link-arg-bins=--no-pie");
}
