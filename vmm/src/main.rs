//! The `kemari` binary. All of its code is in the library.

fn main() -> std::process::ExitCode {
    kemari_vmm::cli::main()
}
