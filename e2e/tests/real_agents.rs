//! The same scenarios with an agent on each real node.

fn main() -> std::process::ExitCode {
    e2e::run::scenarios("real_agents", || async { e2e::lab::Lab::real(true).await })
}
