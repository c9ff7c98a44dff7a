//! The ledgers that configurations mean, each opened once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use calico::IPReservation;
use tokio::time::sleep;

use super::Agent;
use super::network::default_network;
use crate::claim::ClaimedElsewhere;
use crate::driver::any_claimed_elsewhere;
use crate::netconf::{EtcdConfig, NetConf};
use crate::service::state::State;
use crate::store::cluster::{ClusterId, Memory as _};
use crate::store::kube::{KubeStore, origin};
use crate::store::{LazyLedger, Ledger as _, Objects as _, StoreError};

/// How often is looked where the claims are.
const LOOK: Duration = Duration::from_secs(5);

/// Ledgers by how they are reached and by network.
pub(super) struct Ledgers {
    /// The cluster, whose API server has the claims that are Kubernetes objects. What the agent has heard of the cluster
    /// is not asked: claims are always read live.
    cluster: Arc<ClusterId>,
    open: Mutex<HashMap<String, Open>>,
}

/// A ledger, and how the files of its credentials were when it was opened.
struct Open {
    files: Vec<Option<SystemTime>>,
    ledger: Arc<LazyLedger>,
}

impl Ledgers {
    pub(super) fn new(store: KubeStore) -> Self {
        Self { cluster: Arc::new(ClusterId::new(store)), open: Mutex::default() }
    }

    /// The ledger of a configuration; opened anew when a certificate or password was renewed.
    pub(super) fn of(&self, net: &NetConf) -> Arc<LazyLedger> {
        let key = format!("{:?} {}", net.ipam.etcd, net.ipam.network);
        let files = net.ipam.etcd.as_ref().map(ages).unwrap_or_default();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get(&key).filter(|known| known.files == files) {
            Some(known) => known.ledger.clone(),
            None => {
                let ledger = Arc::new(LazyLedger::of_cluster(&net.ipam, &self.cluster));
                open.insert(key, Open { files, ledger: ledger.clone() });
                ledger
            }
        }
    }
}

impl Ledgers {
    /// Notes which cluster this is, for plugins of this node that go on without the agent: they need not ask then.
    pub(super) async fn note_cluster(&self, net: &NetConf, state: &State) {
        let Some(kubeconfig) = net.kubeconfig.as_ref().filter(|_| net.ipam.etcd.is_some()) else { return };
        // The file may be the plugin's alone.
        let Ok(config) = KubeStore::config(kubeconfig, None).await else { return };
        match self.cluster.uid().await {
            Ok(uid) => state.remember(&origin(&config), uid),
            Err(error) => tracing::debug!(%error, "which cluster this is could not be noted for the plugin"),
        }
    }
}

impl Agent {
    /// Looks now and then whether the cluster's claims lie in another ledger than the one that the node's configuration
    /// names. The reservations, which are remembered anyway, say so.
    pub(super) async fn look_for_stray_claims(self: Arc<Self>) {
        let pulse = self.health.pulse("ledger");
        let (mut looked, mut marked) = (None, None);
        loop {
            let seen = (default_network(&self.options.cni_conf_dir), self.shelves().reservations.newest());
            let ledger = seen.0.as_ref().map(|net| self.ledgers.of(net));
            // There may be thousands of reservations, and they change rarely.
            if looked.as_ref() != Some(&seen)
                && let Ok(found) = pulse.while_waiting(self.marked_elsewhere(seen.0.as_ref())).await
            {
                (looked, marked) = (Some(seen), found);
            }
            let stray = match ledger.zip(marked.clone()) {
                Some((ledger, found)) => pulse.while_waiting(unless_carried(&ledger, found)).await,
                None => None,
            };
            let reason = stray.map(|found| format!("{found}; fixed addresses are refused. {}", found.remedy()));
            let known = std::mem::replace(
                &mut *self.stray_claims.lock().unwrap_or_else(PoisonError::into_inner),
                reason.clone(),
            );
            if let Some(reason) = reason.filter(|_| known.is_none()) {
                tracing::error!("{reason}");
            }
            pulse.while_waiting(sleep(LOOK)).await;
        }
    }

    /// What the reservations say of a network's claims.
    async fn marked_elsewhere(&self, net: Option<&NetConf>) -> Result<Option<ClaimedElsewhere>, StoreError> {
        let Some(net) = net else { return Ok(None) };
        let reservations = self.driver.objects().list_cached::<IPReservation>("").await?;
        let (here, permitted) = (self.ledgers.of(net).name(), |address| net.ipam.permits_fixed(address));
        Ok(any_claimed_elsewhere(&reservations, &here, permitted))
    }
}

/// Claims that were just carried over are not marked yet.
async fn unless_carried(ledger: &LazyLedger, found: ClaimedElsewhere) -> Option<ClaimedElsewhere> {
    matches!(ledger.read(found.address).await, Ok(None)).then_some(found)
}

/// When the files of the credentials were written; none for one that cannot be looked at.
fn ages(etcd: &EtcdConfig) -> Vec<Option<SystemTime>> {
    let files = [&etcd.cert_file, &etcd.key_file, &etcd.ca_file, &etcd.password_file];
    files.into_iter().flatten().map(|file| std::fs::metadata(file).and_then(|found| found.modified()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_renewed_certificate_opens_the_ledger_anew() {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let ledgers = Ledgers::new(KubeStore::from_config(config).unwrap());
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let write = |name: &str, age: u64| {
            let opened = std::fs::File::create(file(name)).unwrap();
            opened.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(age)).unwrap();
        };
        ["ca", "cert", "key"].into_iter().for_each(|name| write(name, 1));
        let etcd = json!({
            "etcdURL": "https://127.0.0.1:2379", "etcdTrustedCAFile": file("ca"), "etcdCertFile": file("cert"),
            "etcdKeyFile": file("key"),
        });
        let ipam = json!({"type": "kube-ipam", "subnet": "10.244.0.0/16", "etcdConfig": etcd});
        let conf = json!({"name": "n", "cniVersion": "0.3.1", "type": "calico", "ipam": ipam});
        let net = NetConf::parse(&conf, "kube-ipam").unwrap();
        let first = ledgers.of(&net);
        assert!(Arc::ptr_eq(&first, &ledgers.of(&net)));
        write("cert", 2);
        let second = ledgers.of(&net);
        assert!(!Arc::ptr_eq(&first, &second));
        std::fs::remove_file(file("key")).unwrap();
        assert!(!Arc::ptr_eq(&second, &ledgers.of(&net)));
    }
}
