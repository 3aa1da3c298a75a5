//! Sets a condition according to how the program is built.

fn main() {
    println!("cargo:rustc-check-cfg=cfg(shipped)");
    if std::env::var("OPT_LEVEL").is_ok_and(|level| level != "0") {
        println!("cargo:rustc-cfg=shipped");
    }
}
