//! Advice for when this process or its host has run out of a limited resource: descriptors,
//! threads, memory.

use std::fs;

use rustix::process::{Resource, getrlimit};

/// Number of descriptors that suffice for a machine without devices, its protection and its
/// operators.
const ENOUGH_DESCRIPTORS: u32 = 256;

/// The hint for a message that reports such a shortage.
fn hint(message: &str) -> Option<String> {
    // Match the text that std, rustix and vmm-sys-util print for a system error: by now the error
    // has lost its type.
    let names = |error: i32| message.contains(&format!("(os error {error})"));
    if names(libc::EMFILE) {
        return Some(format!(
            "this process may have {} open files; {ENOUGH_DESCRIPTORS} are enough, with 8 more for each device and 1 for each \
             vCPU: raise the limit (`ulimit -Hn`, or LimitNOFILE= of the service)",
            limit(Resource::Nofile)
        ));
    }
    if names(libc::ENFILE) {
        return Some(format!(
            "this host may have {} open files: raise the limit (`sysctl fs.file-max`), or close some",
            text("/proc/sys/fs/file-max")
        ));
    }
    // EAGAIN also means that an operation is to be retried: match threads only.
    if names(libc::EAGAIN) && message.contains("thread") {
        return Some(format!(
            "this user may have {} processes and threads (`ulimit -Hu`, or LimitNPROC= of the service), this service {} \
             (TasksMax=), this host {} (`sysctl kernel.threads-max`): raise the limit that is reached; a machine \
             needs about 20, and 2 more for each disk, network and vCPU",
            limit(Resource::Nproc),
            most_tasks().unwrap_or_else(|| "unlimited".to_owned()),
            text("/proc/sys/kernel/threads-max"),
        ));
    }
    if names(libc::ENOMEM) {
        return Some(format!(
            "this process may have {} bytes of addresses (`ulimit -v`), this host has {} of memory available: raise \
             the limit, lower --memory, or free some memory",
            limit(Resource::As),
            available().unwrap_or_else(|| "an unknown amount".to_owned()),
        ));
    }
    None
}

/// Appends a hint to a message that reports a shortage; returns other messages unchanged.
#[must_use]
pub fn explained(message: String) -> String {
    match hint(&message) {
        Some(hint) => format!("{message}; {hint}"),
        None => message,
    }
}

fn limit(resource: Resource) -> String {
    getrlimit(resource).current.map_or_else(|| "unlimited".to_owned(), |most| most.to_string())
}

/// Reads the file at `path`. Without a free descriptor, the advice refers the operator to that
/// file.
fn text(path: &str) -> String {
    fs::read_to_string(path)
        .map_or_else(|_| format!("what {path} says"), |text| text.trim().to_owned())
}

/// The limit of the process's control group (cgroup v2); `None`: no limit.
fn most_tasks() -> Option<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let most = fs::read_to_string(format!("/sys/fs/cgroup{group}/pids.max")).ok()?;
    (most.trim() != "max").then(|| most.trim().to_owned())
}

fn available() -> Option<String> {
    let memory = fs::read_to_string("/proc/meminfo").ok()?;
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use super::*;

    #[test]
    fn a_shortage_is_explained_and_nothing_else_is() {
        for (error, what, words) in [
            (libc::EMFILE, "cannot open /dev/kvm", &["ulimit -Hn", "LimitNOFILE="][..]),
            (libc::ENFILE, "cannot open /dev/kvm", &["fs.file-max"]),
            (libc::EAGAIN, "cannot start the thread of a lane", &["ulimit -Hu", "TasksMax="]),
            (libc::ENOMEM, "cannot map memory", &["ulimit -v", "available"]),
        ] {
            let said = explained(format!("{what}: {}", Error::from_raw_os_error(error)));
            for word in words {
                assert!(said.contains(word), "{said}");
            }
            assert!(said.chars().any(|c| c.is_ascii_digit()), "{said}");
        }
        for (error, what) in [(libc::EAGAIN, "cannot lock the disk"), (libc::ENOENT, "no thread")] {
            let message = format!("{what}: {}", Error::from_raw_os_error(error));
            assert_eq!(explained(message.clone()), message);
        }
        // The form in which other crates print an error.
        let errno = rustix::io::Errno::MFILE.to_string();
        assert!(hint(&errno).is_some(), "{errno}");
        let errno = vmm_sys_util::errno::Error::new(libc::EMFILE).to_string();
        assert!(hint(&errno).is_some(), "{errno}");
    }
}
