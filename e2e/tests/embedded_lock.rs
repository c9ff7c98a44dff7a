//! Nobody writes while Calico's datastore is locked: on the embedded tier, without and with agents, for some seconds.

use std::time::Duration;

use e2e::lab::{Lab, Ledger};
use e2e::run::{Errand, Tier, tiers};
use e2e::scenarios::lock::nobody_writes;

const CHURN: Duration = Duration::from_secs(12);

fn main() -> std::process::ExitCode {
    let errand = [Errand {
        name: "nobody_writes_while_calicos_datastore_is_locked",
        run: |lab| Box::pin(nobody_writes(lab, CHURN)),
    }];
    let start = |agents, ledger| move || async move { Lab::embedded_on(agents, ledger).await.map(Some) };
    tiers(vec![
        Tier::new("embedded_lock", start(false, Ledger::Etcd)).bare().then(&errand),
        Tier::new("embedded_lock_agents", start(true, Ledger::Etcd)).bare().then(&errand),
        Tier::new("embedded_lock_objects_agents", start(true, Ledger::Objects)).bare().then(&errand),
    ])
}
