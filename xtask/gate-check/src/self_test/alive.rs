//! Checks that an attack is alive: that its code fits the tree. Otherwise an attack that names a
//! file or a function that has moved would still be caught by a layer that does not compile it.

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Result;

use super::attack::Attack;
use crate::compile;
use crate::layer::Layer;
use crate::subject::Subject;
use crate::{calls, dep_info, types};

/// The first error of the compiler in the attacked tree. Compiles it as `types` does, or as `calls`
/// does if the attack changes the far side.
pub(super) fn error(subject: &Subject, unseen: &[Layer]) -> Result<Option<String>> {
    let compiled = if unseen.contains(&Layer::Calls) {
        types::compile(subject)?
    } else {
        calls::compile(subject)?
    };
    Ok(compiled.errors.first().map(compile::words))
}

/// Checks the files that the attack adds: a layer has compiled each of them since `begin`. If the
/// attack says `not_compiled`, no layer has compiled at least one of them. Returns what is wrong.
pub(super) fn idle(attack: &Attack, subject: &Subject, begin: SystemTime) -> Result<Vec<String>> {
    let mut added = attack.added()?;
    // Skip releases of dependencies: cargo does not compile a release again that it has compiled
    // before.
    added.retain(|file| !file.starts_with("vendor"));
    if added.is_empty() {
        return Ok(Vec::new());
    }
    let compiled = dep_info::read_since(subject, begin)?;
    let root = subject.root.canonicalize()?;
    let is_idle = |file: &&PathBuf| !compiled.contains(&root.join(file));
    let idle: Vec<&PathBuf> = added.iter().filter(is_idle).collect();
    Ok(match &attack.not_compiled {
        Some(_) if idle.is_empty() => {
            vec!["its `not_compiled` says that no layer compiles some of its files: found that each is compiled".to_owned()]
        }
        Some(_) => Vec::new(),
        None => idle.iter().map(|file| format!("no layer compiles {}", file.display())).collect(),
    })
}
