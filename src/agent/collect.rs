//! This agent's part in looking after the whole cluster: it takes part in the election, and works while it leads.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::sleep;

use super::Agent;
use super::network::default_network;
use crate::collector::{self, Collector, Election, News};
use crate::driver::Driver;
use crate::handover::{self, Handover};
use crate::netconf::NetConf;
use crate::store::LazyLedger;
use crate::store::ipclaim::IPClaimLedger;

/// How often is looked whether the node's network is another one.
const LOOK: Duration = Duration::from_secs(10);

impl Agent {
    /// Takes part in the election as long as the node has a network, until the agent stops; then it resigns.
    pub(super) async fn collect(self: Arc<Self>) {
        let pulse = self.health.pulse("collector");
        while !self.stopping.is_cancelled() {
            match default_network(&self.options.cni_conf_dir) {
                Some(net) => pulse.while_waiting(self.collect_for(&net)).await,
                None => {
                    let waited = async {
                        tokio::select! {
                            () = self.stopping.cancelled() => {}
                            () = sleep(LOOK) => {}
                        }
                    };
                    pulse.while_waiting(waited).await;
                }
            }
        }
    }

    /// For one network, until it is another one.
    async fn collect_for(&self, net: &NetConf) {
        // Decisions about the whole cluster are made on live reads: this store remembers nothing.
        let store = self.driver.objects().inner().inner().clone();
        let ledger = self.ledgers.of(net);
        let claims = net.ipam.etcd.is_none().then(|| IPClaimLedger::new(store.clone(), &net.ipam.network));
        let driver = Driver::behind(self.datastore.clone(), store, Some(ledger.clone()), Timestamp::now)
            .observed(self.witness.clone());
        let (leave, mandate) = watch::channel(None);
        let handover = Handover::new(driver.clone(), driver.objects().inner().clone(), net.ipam.handover);
        let mut collector = Collector::new(driver, net, collector::Options::default());
        let election = Election { identity: self.options.node.clone(), ..Election::default() };
        let stop = async {
            tokio::select! {
                () = self.stopping.cancelled() => {}
                () = self.changed(net, &ledger) => {}
            }
        };
        let witness = self.witness.clone();
        let hear = |news: News<'_>| {
            witness.collector(&news);
            match &news {
                News::Leading(mandate) => drop(leave.send_replace(Some(mandate.clone()))),
                News::Following => drop(leave.send_replace(None)),
                News::Round(_) => {}
            }
            let missing = match news {
                News::Leading(_) => true,
                News::Round(Ok(report)) => report.claims.is_none(),
                News::Round(Err(_)) | News::Following => false,
            };
            if let Some(claims) = claims.clone().filter(|_| missing) {
                self.tasks.spawn(define(claims));
            }
        };
        let told = |told: handover::Told<'_>| self.witness.handover(&told);
        tokio::select! {
            led = collector::lead(self.client.clone(), &election, &mut collector, stop, hear) => {
                if let Err(error) = led {
                    tracing::error!(%error, "no collector on this node");
                    self.stopping.cancelled().await;
                }
            }
            () = handover::watch(self.client.clone(), &handover, mandate, told) => {}
        }
    }

    /// Returns once the node has another network, or other credentials for its ledger.
    async fn changed(&self, net: &NetConf, ledger: &Arc<LazyLedger>) {
        while default_network(&self.options.cni_conf_dir).as_ref() == Some(net)
            && Arc::ptr_eq(&self.ledgers.of(net), ledger)
        {
            sleep(LOOK).await;
        }
        tracing::info!("the node's network or its credentials have changed: the collector begins anew");
    }
}

/// No manifest that people delete has the definition of the claims, since all claims go with it.
async fn define(claims: IPClaimLedger) {
    match claims.define().await {
        Ok(true) => tracing::info!("the definition of IPClaims was missing, and is in place now"),
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(%error, "whether IPClaims are defined, or to define them, has failed; trying again")
        }
    }
}
