//! The scenarios on the real tier, one cluster for all of them.

fn main() -> std::process::ExitCode {
    e2e::run::scenarios("real", || async { e2e::lab::Lab::real(false).await })
}
