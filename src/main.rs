//! The program: see `naevus --help`.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(naevus::cli::run())
}
