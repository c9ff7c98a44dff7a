//! The same scenarios with an agent on each stand-in node.

fn main() -> std::process::ExitCode {
    e2e::run::scenarios("embedded_agents", || async { e2e::lab::Lab::embedded(true).await.map(Some) })
}
