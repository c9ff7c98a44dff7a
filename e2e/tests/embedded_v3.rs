//! The scenarios on a cluster that keeps Calico's objects in the newer group: plugins alone, then agents.

use e2e::lab::{Lab, Ledger};
use e2e::run::{Tier, tiers};

fn main() -> std::process::ExitCode {
    tiers(vec![
        Tier::new("embedded_v3", || async { Lab::embedded_in_v3(false, Ledger::Objects).await.map(Some) }),
        Tier::new("embedded_v3_agents", || async { Lab::embedded_in_v3(true, Ledger::Etcd).await.map(Some) }),
    ])
}
