//! The same scenarios with the claims as IPClaims, and an agent on each stand-in node.

use e2e::lab::{Lab, Ledger};

fn main() -> std::process::ExitCode {
    e2e::run::scenarios("embedded_objects_agents", || async { Lab::embedded_on(true, Ledger::Objects).await.map(Some) })
}
