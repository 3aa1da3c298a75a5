//! Threads by name: their names in the table, and their roles (docs/threads.md).

/// A thread's name without its number. The first thread of a process has the name of the program.
pub(crate) fn kind(thread: &str) -> &str {
    match thread {
        "kemari" => "main",
        _ => thread.trim_end_matches(|digit: char| digit.is_ascii_digit()),
    }
}

/// The role of a kind of thread; `None` if the product has no thread of that kind.
pub(crate) fn role(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "main" | "launcher" | "acceptor" | "stranger" | "resources" | "resources-told" | "pace"
        | "etcd" | "claim" | "give-back" | "term-end" | "arbiter-check" | "counter-mark"
        | "mark-check" | "takeover" | "prepare" | "describe" | "former" | "stall" | "stopper"
        | "audit-end" | "disks" => "main",
        "devices" => "device",
        "vcpu" => "vcpu",
        "disk" | "net" | "console" | "power" | "term" => "lane",
        "sender" | "pulse" => "link-sender",
        "reader" | "link" => "link-reader",
        "control" => "control",
        "signals" => "signals",
        "terminal" => "terminal",
        "ticker" | "watchdog" | "protected" | "announce" => "timer",
        "log" => "log",
        "audit" => "audit",
        _ => return None,
    })
}
