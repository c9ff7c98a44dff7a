//! The scenarios on the embedded tier, one cluster for all of them.

fn main() -> std::process::ExitCode {
    e2e::run::scenarios("embedded", || async { e2e::lab::Lab::embedded(false).await.map(Some) })
}
