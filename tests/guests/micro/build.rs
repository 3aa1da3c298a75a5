//! Links the guest at its fixed address, wherever cargo is called from.

fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it for build scripts");
    println!("cargo:rerun-if-changed=link.ld");
    println!("cargo:rerun-if-changed=src/boot.s");
    println!("cargo:rustc-link-arg-bins=-T{directory}/link.ld");
    // The target's default is a position-independent executable, which nobody would relocate here.
    println!("cargo:rustc-link-arg-bins=--no-pie");
}
