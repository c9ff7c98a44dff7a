//! The same scenarios with the claims as IPClaims: no `etcdConfig` in any configuration.

use e2e::lab::{Lab, Ledger};

fn main() -> std::process::ExitCode {
    e2e::run::scenarios("embedded_objects", || async { Lab::embedded_on(false, Ledger::Objects).await.map(Some) })
}
