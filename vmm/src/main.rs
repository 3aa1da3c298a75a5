//! The `kemari` binary; all of it is in the library.

fn main() -> std::process::ExitCode {
    kemari_vmm::cli::main()
}
