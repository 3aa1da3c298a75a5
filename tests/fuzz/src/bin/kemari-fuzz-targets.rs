//! Tells of the targets, for `cargo xtask fuzz`: without arguments a line for each; with a target and a directory, writes its
//! seeds there.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::process::ExitCode;

use kemari_fuzz::{TARGETS, Target};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => {
            for Target { name, what, .. } in TARGETS {
                println!("{name}\t{what}");
            }
            ExitCode::SUCCESS
        }
        [name, dir] => match Target::named(name) {
            Some(target) => write_seeds(target, Path::new(dir)),
            None => failed(&format!("there is no target `{name}`")),
        },
        _ => failed("expected nothing, or a target and a directory"),
    }
}

fn write_seeds(target: &Target, dir: &Path) -> ExitCode {
    for seed in (target.seeds)() {
        // Equal seeds have equal names.
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        let path = dir.join(format!("seed-{:016x}", hasher.finish()));
        if let Err(error) = std::fs::write(&path, seed) {
            return failed(&format!("cannot write {}: {error}", path.display()));
        }
    }
    ExitCode::SUCCESS
}

fn failed(why: &str) -> ExitCode {
    eprintln!("error: {why}");
    ExitCode::FAILURE
}
