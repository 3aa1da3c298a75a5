//! Links the guest at its fixed address, from any working directory of cargo.

fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it for build scripts");
    println!("cargo:rerun-if-changed=link.ld");
    println!("cargo:rerun-if-changed=src/boot.s");
    println!("cargo:rustc-link-arg-bins=-T{directory}/link.ld");
    // The target's default is a position-independent executable, but no loader relocates the guest.
    println!("cargo:rustc-link-arg-bins=--no-pie");
}
