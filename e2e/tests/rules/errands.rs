//! What no scenario does: the plugin's rarer verbs, what a crash leaves, and what people do by hand.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use calico::{
    Affinity, AffinityState, BlockAffinity, Entry, IPAMBlock, IPAMBlockSpec, IPAMHandle, IPAMHandleSpec, IPReservation,
    IPReservationSpec, affinity_name, cidr_name,
};
use e2e::lab::{LEDGER, Lab, User};
use e2e::standin::Attachment;
use ipnetwork::IpNetwork;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use kube_ipam::claim::Claim;
use kube_ipam::collector::{Always, Collector, Options};
use kube_ipam::driver::Driver;
use kube_ipam::netconf::NetConf;
use kube_ipam::store::group::of_cluster;
use kube_ipam::store::ipclaim::IPClaimLedger;
use kube_ipam::store::kube::KubeStore;
use kube_ipam::store::{Gated, Ledger as _};
use serde_json::json;

use crate::outpost::{NAMESPACE, NODE, Outpost, attachment};

/// Every kind of owner that the rules let a node look up.
const OWNERS: [(&str, &str); 10] = [
    ("", "Pod"),
    ("", "ReplicationController"),
    ("apps", "DaemonSet"),
    ("apps", "Deployment"),
    ("apps", "ReplicaSet"),
    ("apps", "StatefulSet"),
    ("batch", "CronJob"),
    ("batch", "Job"),
    ("kubevirt.io", "VirtualMachine"),
    ("kubevirt.io", "VirtualMachineInstance"),
];

/// STATUS says yes, and GC releases what no runtime knows.
pub async fn status_and_gc(lab: &Lab) -> Result<()> {
    let outpost = Outpost::new(lab, 0).await?;
    let pod = outpost.pod(json!({})).await?;
    let mut attachment = attachment(&pod);
    outpost.succeed("STATUS", &attachment).await?;
    let answer = outpost.succeed("ADD", &attachment).await?;
    let address: IpAddr =
        answer.addresses().first().and_then(|a| a.split('/').next()).context("an address")?.parse()?;
    lab.assert_recorded(address, &pod).await?;
    attachment.extra = json!({"cni.dev/valid-attachments": []});
    outpost.succeed("GC", &attachment).await?;
    ensure!(lab.assert_recorded(address, &pod).await.is_err(), "GC has left {address} to a container that is gone");
    outpost.forget(&pod).await
}

/// `install` and the agent find out which API group the conflist is to name.
pub async fn group(lab: &Lab) -> Result<()> {
    let store = KubeStore::from_kubeconfig(&lab.rights()?.kubeconfig(User::Node), None).await?;
    let (found, had) = (of_cluster(&store).await?, lab.network().group.unwrap_or_default());
    ensure!(found == Some(had), "{found:?} is found, and it is {had}");
    Ok(())
}

/// The collector finishes what was planted, with the rights of a node.
pub async fn leftovers(lab: &Lab) -> Result<()> {
    let outpost = Outpost::new(lab, 1).await?;
    let ledger = ledger(lab).await?;
    for (n, (group, kind)) in (100..).zip(OWNERS) {
        ownerless(&ledger, &outpost.address(n), group, kind).await?;
    }
    let planted = Planted::plant(lab, &outpost).await?;
    let mut collector = collector(lab, &outpost).await?;
    // What is wrong must have been seen before, and some repairs uncover others.
    for _ in 0..6 {
        let report = collector.round(&Always).await?;
        ensure!(report.unread.is_empty() && report.failed.is_empty(), "{:?} {:?}", report.unread, report.failed);
    }
    planted.finished(lab).await?;
    let left = ledger.all().await?.into_iter().filter(|c| c.value.owner.name == "gone").count();
    ensure!(left == 0, "{left} claims of owners that do not exist are left");
    Ok(())
}

/// `show`, `claims`, `check`, `release`, `adopt` and `import` work for whoever has the role for people.
pub async fn people(lab: &Lab) -> Result<()> {
    let outpost = Outpost::new(lab, 2).await?;
    let ledger = ledger(lab).await?;
    for (n, (group, kind)) in (100..).zip(OWNERS) {
        ownerless(&ledger, &outpost.address(n), group, kind).await?;
    }
    let (random, fixed, other) = (outpost.pod(json!({})).await?, outpost.address(60), outpost.address(61));
    let pod = outpost.pod(json!({"kube-ipam.ip": fixed})).await?;
    let answer = outpost.succeed("ADD", &attachment(&random)).await?;
    let address = answer.addresses().first().and_then(|a| a.split('/').next()).context("an address")?.to_owned();
    let held = attachment(&pod);
    outpost.succeed("ADD", &held).await?;
    // Its reservation has a second address, and its handle counts one too many.
    let second = outpost.pod(json!({"kube-ipam.ip": other})).await?;
    let brief = attachment(&second);
    outpost.succeed("ADD", &brief).await?;
    outpost.succeed("DEL", &brief).await?;
    count_one_more(lab, &held).await?;
    for arguments in
        [&["show"][..], &["show", "--blocks"], &["show", "--borrowed"], &["show", "--ip", &fixed], &["claims"]]
    {
        let (well, text) = lab.kube_ipam(arguments)?;
        ensure!(well, "kube-ipam {arguments:?}: {text}");
    }
    // Without its pods the node is as if it had died in the middle of a DEL.
    for pod in [&random, &pod, &second] {
        outpost.forget(pod).await?;
    }
    let (_, found) = lab.kube_ipam(&["check"])?;
    ensure!(found.contains(&address), "kube-ipam check does not see that the pod of {address} is gone: {found}");
    // The block has no owner any more: it goes with its last address.
    let block: IpNetwork = format!("{}/26", outpost.address(0)).parse()?;
    disown(lab, &block).await?;
    for arguments in [
        &["release", &address, "--yes"][..],
        &["release", &fixed, "--yes"],
        &["release", &fixed, "--claim", "--yes"],
        &["release", &other, "--claim", "--yes"],
    ] {
        let (well, text) = lab.kube_ipam(arguments)?;
        ensure!(well, "kube-ipam {arguments:?}: {text}");
    }
    let blocks: Api<IPAMBlock> = Api::all(lab.client());
    ensure!(blocks.get_opt(&cidr_name(&block)).await?.is_none(), "the empty block {block} is still there");
    for n in (100..).take(OWNERS.len()) {
        let (well, text) = lab.kube_ipam(&["release", &outpost.address(n), "--claim", "--yes"])?;
        ensure!(well, "kube-ipam release: {text}");
    }
    adopt_and_import(lab, &outpost).await
}

/// What makes addresses fixed before their pods ask: both create claims and reservations.
async fn adopt_and_import(lab: &Lab, outpost: &Outpost<'_>) -> Result<()> {
    let pod = outpost.pod(json!({})).await?;
    let answer = outpost.succeed("ADD", &attachment(&pod)).await?;
    let adopted = answer.addresses().first().and_then(|a| a.split('/').next()).context("an address")?.to_owned();
    let status = json!({"status": {"phase": "Running", "podIP": adopted, "podIPs": [{"ip": adopted}]}});
    let pods: Api<Pod> = Api::namespaced(lab.client(), NAMESPACE);
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(status)).await?;
    let wanted = outpost.address(200);
    let list = tempfile::NamedTempFile::with_suffix(".csv")?;
    std::fs::write(list.path(), format!("address,namespace,kind,name\n{wanted},{NAMESPACE},Owner,licence\n"))?;
    let file = list.path().display().to_string();
    for arguments in [
        &["adopt", "-n", NAMESPACE, &pod.name_any(), "--yes"][..],
        &["import", &file, "--yes"],
        &["release", &wanted, "--claim", "--yes"],
    ] {
        let (well, text) = lab.kube_ipam(arguments)?;
        ensure!(well, "kube-ipam {arguments:?}: {text}");
    }
    outpost.succeed("DEL", &attachment(&pod)).await?;
    outpost.forget(&pod).await?;
    let (well, text) = lab.kube_ipam(&["release", &adopted, "--claim", "--yes"])?;
    ensure!(well, "kube-ipam release: {text}");
    Ok(())
}

/// The claims, with the rights of a node.
async fn ledger(lab: &Lab) -> Result<IPClaimLedger> {
    Ok(IPClaimLedger::new(store(lab).await?, LEDGER))
}

async fn store(lab: &Lab) -> Result<KubeStore> {
    Ok(KubeStore::from_kubeconfig(&lab.rights()?.kubeconfig(User::Node), None).await?)
}

/// A claim that nobody holds, of an owner that does not exist.
async fn ownerless(ledger: &IPClaimLedger, address: &str, group: &str, kind: &str) -> Result<()> {
    let claim: Claim = serde_json::from_value(json!({
        "address": address, "created": "2026-01-01T00:00:00Z", "generation": 1,
        "owner": {"namespace": NAMESPACE, "group": group, "kind": kind, "name": "gone"},
    }))?;
    ledger.swap(claim.address, None, Some(&claim)).await?;
    Ok(())
}

/// A collector without patience, with the rights of a node.
async fn collector(lab: &Lab, outpost: &Outpost<'_>) -> Result<Collector<Gated<KubeStore>, Gated<IPClaimLedger>>> {
    let driver = Driver::new(store(lab).await?, Some(ledger(lab).await?), Timestamp::now);
    let zero = Duration::ZERO;
    let options = Options { owner_grace: zero, allocation_grace: zero, half_done_grace: zero, settle: zero };
    let net = NetConf::parse(outpost.stdin(), "kube-ipam").map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(Collector::new(driver, &net, options))
}

/// Things as crashes leave them, on a node that is gone and on one that is there.
struct Planted {
    gone: Vec<IpNetwork>,
    confirmed: IpNetwork,
    counted: String,
    reserved: String,
}

impl Planted {
    async fn plant(lab: &Lab, outpost: &Outpost<'_>) -> Result<Self> {
        let block = |n: u8| -> Result<IpNetwork> { Ok(format!("{}/26", outpost.address(n)).parse()?) };
        let (empty, pending, confirmed) = (block(64)?, block(128)?, block(192)?);
        let (dead, ours) = (Affinity::host("dead"), Affinity::host(NODE));
        plant_block(lab, &dead, &empty, AffinityState::Confirmed, true).await?;
        plant_block(lab, &dead, &pending, AffinityState::Pending, false).await?;
        plant_block(lab, &ours, &confirmed, AffinityState::Pending, true).await?;
        // The pod of an allocation is gone, and its handle counts one more; another handle was marked and not deleted.
        let pod = outpost.pod(json!({})).await?;
        let attachment = attachment(&pod);
        outpost.succeed("ADD", &attachment).await?;
        let counted = count_one_more(lab, &attachment).await?;
        outpost.forget(&pod).await?;
        let mut marked = IPAMHandleSpec::new("k8s-pod-network.marked");
        marked.deleted = true;
        Api::all(lab.client()).create(&PostParams::default(), &marked.object()).await?;
        // An address is reserved that nobody has claimed.
        let spec =
            IPReservationSpec { reserved_cidrs: vec![format!("{}/32", outpost.address(200))], ..Default::default() };
        let reserved = format!("kube-ipam-{}", cidr_name(&confirmed));
        Api::all(lab.client()).create(&PostParams::default(), &IPReservation::new(&reserved, spec)).await?;
        Ok(Self { gone: vec![empty, pending], confirmed, counted, reserved })
    }

    async fn finished(&self, lab: &Lab) -> Result<()> {
        let blocks: Api<IPAMBlock> = Api::all(lab.client());
        let affinities: Api<BlockAffinity> = Api::all(lab.client());
        for cidr in &self.gone {
            let left = affinities.get_opt(&affinity_name("dead", cidr)).await?;
            ensure!(left.is_none(), "the affinity of a node that is gone is left: {left:?}");
            let left = blocks.get_opt(&cidr_name(cidr)).await?;
            ensure!(left.is_none(), "the empty block of a node that is gone is left: {left:?}");
        }
        let affinity = affinities.get(&affinity_name(NODE, &self.confirmed)).await?;
        ensure!(affinity.is_confirmed(), "the affinity of {} is not confirmed", self.confirmed);
        let left = Api::<IPReservation>::all(lab.client()).get_opt(&self.reserved).await?;
        ensure!(left.is_none(), "a reservation without a claim is left: {left:?}");
        let handles: Api<IPAMHandle> = Api::all(lab.client());
        let counts: i64 = handles.get(&self.counted).await?.spec.block.values().sum();
        ensure!(counts == 1, "the handle counts {counts} addresses instead of the one that was counted too many");
        ensure!(handles.get_opt("k8s-pod-network.marked").await?.is_none(), "the marked handle is left");
        Ok(())
    }
}

/// Lets the handle of a container count one address more; gives its name.
async fn count_one_more(lab: &Lab, attachment: &Attachment) -> Result<String> {
    let handles: Api<IPAMHandle> = Api::all(lab.client());
    let name = format!("k8s-pod-network.{}", attachment.container);
    let mut handle = handles.get(&name).await?;
    let cidr = handle.spec.blocks().next().context("a handle without a block")?;
    handle.spec.increment(&cidr, 1);
    handles.replace(&name, &PostParams::default(), &handle).await?;
    Ok(name)
}

async fn plant_block(lab: &Lab, owner: &Affinity, cidr: &IpNetwork, state: AffinityState, block: bool) -> Result<()> {
    let affinity = BlockAffinity::pending(owner, cidr).with_state(state);
    Api::all(lab.client()).create(&PostParams::default(), &affinity).await?;
    if block {
        // A young one is left to whoever made it.
        let long_ago = Timestamp::now() - SignedDuration::from_hours(1);
        let object = IPAMBlockSpec::new(*cidr, owner, long_ago).object();
        Api::all(lab.client()).create(&PostParams::default(), &object).await?;
    }
    Ok(())
}

/// Takes a block away from its node, as a change of nodes in the middle of things may.
async fn disown(lab: &Lab, cidr: &IpNetwork) -> Result<()> {
    let blocks: Api<IPAMBlock> = Api::all(lab.client());
    let mut block = blocks.get(&cidr_name(cidr)).await?;
    let used = block.spec.entries().filter(|(_, entry)| matches!(entry, Entry::Used { .. })).count();
    ensure!(used == 2, "{used} addresses of {cidr} are in use instead of two");
    block.spec.disown();
    blocks.replace(&cidr_name(cidr), &PostParams::default(), &block).await?;
    let affinities: Api<BlockAffinity> = Api::all(lab.client());
    affinities.delete(&affinity_name(NODE, cidr), &Default::default()).await?;
    Ok(())
}
