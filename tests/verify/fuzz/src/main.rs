//! The libFuzzer engine around the target that `KEMARI_FUZZ_TARGET` names, with libFuzzer's own
//! command line. Instead of fuzzing, the program can list the targets (`KEMARI_FUZZ_LIST`), or
//! write the seeds of the target to a directory (`KEMARI_FUZZ_SEEDS`).
#![no_main]

use std::collections::hash_map::DefaultHasher;
use std::env::var_os;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::OnceLock;

use kemari_fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

fn target() -> &'static Target {
    static TARGET: OnceLock<&'static Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("KEMARI_FUZZ_TARGET").unwrap_or_default();
        Target::named(&name)
            .unwrap_or_else(|| panic!("expected a name of a target, found `{name}`"))
    })
}

fn answer() {
    if var_os("KEMARI_FUZZ_LIST").is_some() {
        for Target { name, what, .. } in TARGETS {
            println!("{name}\t{what}");
        }
        std::process::exit(0);
    }
    if let Some(dir) = var_os("KEMARI_FUZZ_SEEDS") {
        write_seeds(Path::new(&dir));
        std::process::exit(0);
    }
}

fn write_seeds(dir: &Path) {
    for seed in (target().seeds)() {
        // Name files by content: equal seeds become one file.
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        let path = dir.join(format!("seed-{:016x}", hasher.finish()));
        std::fs::write(&path, seed).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

fuzz_target!(init: answer(), |bytes: &[u8]| (target().run)(bytes));
