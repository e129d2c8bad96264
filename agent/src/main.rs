//! The program: see the library.

fn main() -> std::process::ExitCode {
    patchwarden_agent::main()
}
