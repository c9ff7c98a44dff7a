//! What one call of the plugin costs, counted from outside: by the API server's log and, where claims are in etcd,
//! by one of its own, which counts what is asked of it. The calls are made as a runtime makes them, on a node that has a block already.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use calico::{IPAMBlock, affinity_name, cidr_name};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::calls::Counts;
use crate::embedded::etcd::Etcd;
use crate::lab::{LEDGER, Lab, Ledger, MainPlugin, Network, Site};
use crate::standin::{self, Attachment};

/// A node without kubelet: nobody but this scenario calls the plugin for it.
const NODE: &str = "call-costs";
const BLOCK: &str = "10.244.9.0/26";
const FIXED: &str = "10.244.9.61";
const CLAIMS: &str = "ipclaims";

/// One of them looks whether Calico's datastore is locked.
const MOST_READS_OF_ADD: usize = 9;
const MOST_READS_OF_DEL: usize = 5;
/// An IPClaim is read before it is taken, and again before the answer.
const MORE_READS_OF_ADD: usize = 2;
const MORE_READS_OF_DEL: usize = 1;

/// The node's plugin: its binary and what it reads on stdin.
struct Caller {
    binary: std::path::PathBuf,
    stdin: Value,
}

/// A claim in etcd is read before it is taken, taken, and read again before the answer; a DEL reads and clears it.
const IN_ETCD: [u64; 2] = [3, 2];

/// A warm node's ADD costs at most nine reads, two writes and, for a fixed address only, three requests to etcd;
/// its DEL at most five reads, two writes and two requests to etcd. Neither ever lists blocks. Where claims are
/// IPClaims, one update stands for the write in etcd, and for a fixed address there are two more reads in an ADD and
/// one in a DEL; for a random one the API server hears nothing of claims.
pub async fn of_a_warm_node(lab: &Lab, namespace: &str) -> Result<()> {
    let etcd = match lab.ledger() {
        Ledger::Etcd => Some(tokio::task::spawn_blocking(|| Etcd::start(None)).await??),
        Ledger::Objects => None,
    };
    let directory = TempDir::with_prefix("call-costs-")?;
    let caller = Caller::new(lab, directory.path(), etcd.as_ref())?;
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {"unschedulable": true},
    });
    lab.create(node.clone()).await?;
    let random = bound(lab, namespace, "random", json!({})).await?;
    let fixed = bound(lab, namespace, "fixed", json!({"kube-ipam.ip": FIXED})).await?;
    // From now on the node is warm: block, claim and reservation are there.
    for pod in [&random, &fixed] {
        let attachment = attachment(pod);
        caller.call("ADD", &attachment).await?;
        caller.call("DEL", &attachment).await?;
    }
    for (pod, claims) in [(&random, 0), (&fixed, 1)] {
        let attachment = attachment(pod);
        let [add, del] = IN_ETCD;
        for (verb, most_reads, more, in_etcd, writes) in [
            ("ADD", MOST_READS_OF_ADD, MORE_READS_OF_ADD, add, [("create", "ipamhandles"), ("update", "ipamblocks")]),
            ("DEL", MOST_READS_OF_DEL, MORE_READS_OF_DEL, del, [("update", "ipamblocks"), ("delete", "ipamhandles")]),
        ] {
            let what = format!("{verb} of pod {}", pod.name_any());
            let requests = || etcd.as_ref().map_or(Ok(0), Etcd::requests);
            let before = requests()?;
            let ((), mut counts) = lab.counted(caller.call(verb, &attachment)).await?;
            if etcd.is_none() {
                of_claims(&counts, claims, more).with_context(|| what.clone())?;
                counts = counts.iter().filter(|(_, resource, _)| *resource != CLAIMS).collect();
            }
            within(&counts, most_reads, &writes).with_context(|| what.clone())?;
            let made = requests()? - before;
            let expected = if etcd.is_some() { claims * in_etcd } else { 0 };
            ensure!(made == expected, "{what} made {made} requests to etcd instead of {expected}");
        }
    }
    clear(lab, namespace, &node).await
}

/// So many updates of IPClaims, and so many reads for each.
fn of_claims(counts: &Counts, updates: u64, reads: usize) -> Result<()> {
    let of_claims: Counts = counts.iter().filter(|(_, resource, _)| *resource == CLAIMS).collect();
    let (updates, reads) = (updates as usize, updates as usize * reads);
    let right = of_claims.of("update", CLAIMS) == updates && of_claims.writes() == updates;
    ensure!(right && of_claims.of("get", CLAIMS) == reads && of_claims.reads() == reads, "of claims: {counts}");
    Ok(())
}

fn within(counts: &Counts, most_reads: usize, writes: &[(&str, &str)]) -> Result<()> {
    ensure!(counts.reads() > 0, "not one read was counted: the log does not show this caller");
    ensure!(counts.reads() <= most_reads, "{} reads instead of {most_reads} at most: {counts}", counts.reads());
    ensure!(counts.writes() == writes.len(), "{} writes instead of {}: {counts}", counts.writes(), writes.len());
    for (verb, resource) in writes {
        ensure!(counts.of(verb, resource) == 1, "not one {verb} of {resource}: {counts}");
    }
    ensure!(counts.of("list", "ipamblocks") == 0, "blocks were listed: {counts}");
    Ok(())
}

// === impl Caller ===

impl Caller {
    /// The guide's configuration, with a range that lies in one block and an etcd that nobody else uses.
    fn new(lab: &Lab, directory: &std::path::Path, etcd: Option<&Etcd>) -> Result<Self> {
        let kubeconfig = directory.join("kubeconfig");
        lab.write_counted_kubeconfig(&kubeconfig)?;
        let site = Site {
            kubeconfig: kubeconfig.display().to_string(),
            etcd: etcd.map_or(Value::Null, |etcd| json!({"etcdURL": etcd.url()})),
            log_file: Some(directory.join("cni.log").display().to_string()),
            state_dir: Some(directory.join("state").display().to_string()),
        };
        let network = Network { range: ("10.244.9.10".into(), "10.244.9.60".into()), ..lab.network() };
        let conflist = network.conflist(MainPlugin::Calico, NODE, &site);
        let stdin = standin::Network::of(&conflist, NODE)?.stdin(&Value::Null);
        Ok(Self { binary: crate::tools::kube_ipam()?, stdin })
    }

    async fn call(&self, verb: &str, attachment: &Attachment) -> Result<()> {
        let path = [self.binary.parent().context("a binary lies in a directory")?.to_path_buf()];
        let outcome = standin::call(&self.binary, verb, &path, &[], attachment, &self.stdin).await?;
        ensure!(outcome.is_ok(), "{verb}: {}", outcome.error_text());
        Ok(())
    }
}

fn attachment(pod: &Pod) -> Attachment {
    Attachment::of_pod(&pod.namespace().unwrap_or_default(), &pod.name_any(), &pod.uid().unwrap_or_default())
}

/// A pod on the node, as the scheduler would have bound it.
async fn bound(lab: &Lab, namespace: &str, name: &str, annotations: Value) -> Result<Pod> {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
        "spec": {"nodeName": NODE, "containers": [{"name": "nginx", "image": "nginx:latest"}]},
    });
    lab.create(object).await?;
    Ok(Api::namespaced(lab.client(), namespace).get(name).await?)
}

/// Removes what this scenario alone knows of: no kubelet ends its pods, and its claims are in no cluster's etcd.
async fn clear(lab: &Lab, namespace: &str, node: &Value) -> Result<()> {
    let block: IpNetwork = BLOCK.parse()?;
    let fixed: IpAddr = FIXED.parse()?;
    let recorded = Api::<IPAMBlock>::all(lab.client()).get(&cidr_name(&block)).await?;
    ensure!(recorded.spec.entry(fixed) == calico::Entry::Free, "the address was not given back");
    let pods: Api<Pod> = Api::namespaced(lab.client(), namespace);
    for name in ["random", "fixed"] {
        pods.delete(name, &DeleteParams::default().grace_period(0)).await?;
    }
    lab.delete(node).await?;
    for (kind, name) in [
        ("IPReservation", format!("kube-ipam-{}", cidr_name(&block))),
        ("IPAMBlock", cidr_name(&block)),
        ("BlockAffinity", affinity_name(NODE, &block)),
    ] {
        lab.delete(&json!({"apiVersion": "crd.projectcalico.org/v1", "kind": kind, "metadata": {"name": name}}))
            .await?;
    }
    if lab.ledger() == Ledger::Objects {
        let name = kube_ipam::store::ipclaim::object_name(LEDGER, fixed);
        lab.delete(&json!({"apiVersion": "kube-ipam.io/v1alpha1", "kind": "IPClaim", "metadata": {"name": name}}))
            .await?;
    }
    Ok(())
}
