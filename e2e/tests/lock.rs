//! Nobody writes while Calico's datastore is locked: real kubelets without and with agents, a minute of pods that come
//! and go, and the API server's audit log for a judge.

use std::time::Duration;

use e2e::lab::{Lab, Ledger};
use e2e::run::{Errand, Tier, tiers};
use e2e::scenarios::lock::nobody_writes;

const CHURN: Duration = Duration::from_secs(60);

fn main() -> std::process::ExitCode {
    let errand = [Errand {
        name: "nobody_writes_while_calicos_datastore_is_locked",
        run: |lab| Box::pin(nobody_writes(lab, CHURN)),
    }];
    tiers(vec![
        Tier::new("lock", || Lab::real(false)).bare().then(&errand),
        Tier::new("lock_agents", || Lab::real(true)).bare().then(&errand),
        Tier::new("lock_rights", || Lab::restricted(true, Ledger::Objects)).bare().then(&errand),
    ])
}
