//! The engine around one target, which `KEMARI_FUZZ_TARGET` names: libFuzzer, with its own command line.
#![no_main]

use std::sync::OnceLock;

use kemari_fuzz::Target;
use libfuzzer_sys::fuzz_target;

fn target() -> &'static Target {
    static TARGET: OnceLock<&'static Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("KEMARI_FUZZ_TARGET").unwrap_or_default();
        Target::named(&name).unwrap_or_else(|| panic!("there is no target `{name}`"))
    })
}

fuzz_target!(|bytes: &[u8]| (target().run)(bytes));
