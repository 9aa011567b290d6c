//! The hull command: the command line of an OCI runtime, each verb a thin layer over `hull_runtime`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
