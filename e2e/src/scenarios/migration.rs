//! Calico's objects are moved from the older API group to the newer one while pods come and go: what kube-controllers does
//! for a DatastoreMigration, step by step. One node has an agent, the other the plugin alone. Takes a while, so it is run by
//! a target of its own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use calico::ApiGroup;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{audit, deployment, fixed};
use crate::lab::{Lab, Mark, address};
use crate::real::{Crds, crds};

/// What is copied, by the names of the older group.
const KINDS: [&str; 7] =
    ["ClusterInformation", "IPPool", "IPReservation", "IPAMConfig", "IPAMBlock", "BlockAffinity", "IPAMHandle"];
/// What every copy bears.
const COPIED: &str = "migration.projectcalico.org/migrated-by";
/// How long a migration waits until what had begun is over.
const DRAINED: Duration = Duration::from_secs(10);
/// How long a step takes, for pods to come and go.
const STEP: Duration = Duration::from_secs(6);
/// Pause between two pods that are deleted.
const PAUSE: Duration = Duration::from_millis(700);
const LOOK: Duration = Duration::from_millis(200);
const CHURNED: usize = 6;
/// Fixed addresses of pods that stay, and of one that is deleted again and again.
const HELD: &str = "10.244.0.233";
const MOVED: &str = "10.244.0.234";
/// The node whose agent stays down, so that its pods have the plugin alone.
const ALONE: &str = "node2";
const WITH_AGENT: &str = "node1";

/// A migration goes through: nothing is lost, nothing is there twice, and nothing is written to v1 after the drain.
///
/// # Errors
/// What was not as it must be.
pub async fn goes_through(lab: &Lab) -> Result<()> {
    during(lab, "migrated", async |town, migration| {
        let before = migration.lock().await?;
        let mark = town.waiting().await?;
        migration.copy(usize::MAX).await?;
        lab.kill_agent(WITH_AGENT)?;
        sleep(STEP).await;
        let unlocked_at = migration.converge(&before).await?;
        town.has_written(mark, |_| true, "before v3 was ready")?;
        let group = ApiGroup::V3.api_version();
        lab.until("the agent names v3", || async {
            Ok((lab.named_group(WITH_AGENT)?.as_deref() == Some(group)).then_some(()))
        })
        .await?;
        town.starts_again(&[WITH_AGENT]).await?;
        // v1 is served, and locked: whoever goes by a list that names nothing waits, also while v1 goes.
        ensure!(lab.named_group(ALONE)?.is_none(), "somebody has edited the list of the node without an agent");
        migration.finish().await?;
        town.starts_again(&[WITH_AGENT, ALONE]).await?;
        let said = lab.install(ALONE)?;
        ensure!(lab.named_group(ALONE)?.as_deref() == Some(group), "install left the list as it was: {said}");
        town.starts_again(&[WITH_AGENT, ALONE]).await?;
        town.has_written(mark, of_older, "after the drain")?;
        ensure!(!lab.record_writes(unlocked_at)?.is_empty(), "the log does not show who writes");
        Ok(())
    })
    .await
}

/// A migration is aborted half-way: the copies are deleted, v1 is unlocked, and nobody has seen them.
///
/// # Errors
/// What was not as it must be.
pub async fn is_aborted(lab: &Lab) -> Result<()> {
    during(lab, "aborted", async |town, migration| {
        migration.lock().await?;
        let mark = town.waiting().await?;
        migration.copy(5).await?;
        lab.kill_agent(WITH_AGENT)?;
        sleep(STEP).await;
        town.has_written(mark, |_| true, "under the lock")?;
        migration.abort().await?;
        town.starts_again(&[WITH_AGENT, ALONE]).await?;
        town.has_written(mark, |write| !of_older(write) && !write.contains(".kube-ipam.io"), "to v3")?;
        for node in lab.nodes() {
            let named = lab.named_group(&node)?;
            ensure!(named.is_none(), "the list of {node} names {named:?}");
        }
        Ok(())
    })
    .await
}

fn of_older(write: &str) -> bool {
    write.contains(".crd.projectcalico.org ")
}

/// Does `work` while pods come and go and agents that end are started again, and looks afterwards whether all is well.
async fn during(lab: &Lab, name: &str, work: impl AsyncFnOnce(&Town<'_>, &Migration<'_>) -> Result<()>) -> Result<()> {
    lab.kill_agent(ALONE)?;
    let town = Town::new(lab, name).await?;
    let migration = Migration { lab };
    let work = async {
        let done = work(&town, &migration).await;
        town.is_over.store(true, Ordering::Relaxed);
        done
    };
    let all = async { tokio::try_join!(work, town.come_and_go(), town.nobody_shares_an_address()) };
    tokio::select! {
        done = all => { done?; }
        failed = keep_agent(lab) => failed?,
    }
    town.is_well().await?;
    tokio::select! {
        done = town.leave() => done,
        failed = keep_agent(lab) => failed,
    }
}

/// Starts the agent again whenever it has ended, as kubelet does.
async fn keep_agent(lab: &Lab) -> Result<()> {
    loop {
        if lab.agent_has_ended(WITH_AGENT)? {
            lab.restart_agent(WITH_AGENT).await?;
        }
        sleep(LOOK).await;
    }
}

/// The pods of a namespace.
struct Town<'a> {
    lab: &'a Lab,
    namespace: String,
    /// Pods that were there before, and stay.
    stay: Vec<Pod>,
    is_over: AtomicBool,
}

// === impl Town ===

impl<'a> Town<'a> {
    async fn new(lab: &'a Lab, name: &str) -> Result<Self> {
        let namespace = lab.namespace(name).await?;
        lab.create(deployment(&namespace, "steady", 2, json!({}))).await?;
        lab.create(deployment(&namespace, "held", 1, fixed(HELD))).await?;
        lab.create(deployment(&namespace, "moved", 1, fixed(MOVED))).await?;
        lab.create(deployment(&namespace, "churned", CHURNED, json!({}))).await?;
        let stay = [lab.running(&namespace, "steady", 2).await?, lab.running(&namespace, "held", 1).await?].concat();
        lab.running(&namespace, "moved", 1).await?;
        lab.running(&namespace, "churned", CHURNED).await?;
        Ok(Self { lab, namespace, stay, is_over: AtomicBool::new(false) })
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    async fn all(&self) -> Result<Vec<Pod>> {
        Ok(Api::<Pod>::namespaced(self.lab.client(), &self.namespace).list(&ListParams::default()).await?.items)
    }

    /// Deletes one pod after the other, automatic and fixed ones on both nodes, whose Deployments make others.
    async fn come_and_go(&self) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.lab.client(), &self.namespace);
        let mut count = 0;
        while !self.is_over() {
            let app = if count % 4 == 3 { "moved" } else { "churned" };
            let living = self.lab.pods(&self.namespace, app).await?.into_iter();
            let mut living: Vec<Pod> = living.filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
            // The oldest are those that have an address.
            living.sort_by_key(|pod| pod.metadata.creation_timestamp.clone());
            if let Some(pod) = living.get(count % 2).or(living.first()) {
                match pods.delete(&pod.name_any(), &DeleteParams::default()).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    deleted => drop(deleted?),
                }
            }
            count += 1;
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// No two pods that run have one address, at any time.
    async fn nobody_shares_an_address(&self) -> Result<()> {
        while !self.is_over() {
            self.addresses().await?;
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// The pods that run, by their addresses.
    async fn addresses(&self) -> Result<BTreeMap<IpAddr, Pod>> {
        let mut found = BTreeMap::new();
        for pod in self.all().await? {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            let Ok(address) = address(&pod) else { continue };
            if pod.metadata.deletion_timestamp.is_some() || phase != Some("Running") {
                continue;
            }
            let name = pod.name_any();
            if let Some(other) = found.insert(address, pod) {
                anyhow::bail!("{} and {name} both have {address}", other.name_any());
            }
        }
        Ok(found)
    }

    /// Waits until pods of both nodes are told of the lock; gives the log's end once the drain is over.
    async fn waiting(&self) -> Result<Mark> {
        let mark = self.lab.mark()?;
        for node in self.lab.nodes() {
            self.lab
                .until(&format!("a pod on {node} that waits"), || async {
                    for pod in self.all().await? {
                        let is_here = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(&node);
                        let told = "datastoreReady false";
                        if is_here && self.lab.events(&pod).await?.iter().any(|event| event.contains(told)) {
                            return Ok(Some(()));
                        }
                    }
                    Ok(None)
                })
                .await?;
        }
        Ok(mark)
    }

    /// Waits until a pod runs on each of these nodes that was made after this.
    async fn starts_again(&self, nodes: &[&str]) -> Result<()> {
        let now = jiff::Timestamp::now();
        for node in nodes {
            self.lab
                .until(&format!("a new pod that runs on {node}"), || async {
                    let running = self.addresses().await?;
                    let new = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().is_some_and(|time| time.0 >= now);
                    let here = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(*node);
                    Ok(running.values().any(|pod| new(pod) && here(pod)).then_some(()))
                })
                .await?;
        }
        Ok(())
    }

    /// No node has tried to write such a record since `mark`.
    fn has_written(&self, mark: Mark, which: impl Fn(&str) -> bool, when: &str) -> Result<()> {
        let by_nodes = self.lab.record_writes(mark)?.into_iter().filter(|write| write.contains("serviceaccount"));
        let wrong: Vec<String> = by_nodes.filter(|write| which(write)).collect();
        ensure!(wrong.is_empty(), "{} writes {when}: {wrong:#?}", wrong.len());
        Ok(())
    }

    /// Whoever stayed has what it had, and the blocks hold the addresses of the pods that run and no others.
    async fn is_well(&self) -> Result<()> {
        let lab = self.lab;
        tokio::select! {
            all = async {
                lab.running(&self.namespace, "churned", CHURNED).await?;
                lab.running(&self.namespace, "moved", 1).await
            } => {
                let moved = address(&all?[0])?;
                ensure!(moved == MOVED.parse::<IpAddr>()?, "the pod that asks for {MOVED} has {moved}");
            }
            failed = keep_agent(lab) => failed?,
        }
        let running = self.addresses().await?;
        for pod in &self.stay {
            let address = address(pod)?;
            let now = running.get(&address).with_context(|| format!("nobody has {address} any more"))?;
            ensure!(now.uid() == pod.uid(), "{address} of {} is {}'s", pod.name_any(), now.name_any());
        }
        lab.until("every entry is a running pod's", || async {
            let entries = Migration { lab }.entries().await?;
            let pods = running.iter().map(|(address, pod)| (*address, pod.name_any())).collect();
            Ok((entries == pods).then_some(()))
        })
        .await?;
        lab.until("check finds nothing", || async { Ok(audit(lab).is_ok().then_some(())) }).await?;
        audit(lab)
    }

    /// Takes the pods away; what they had is given back.
    async fn leave(&self) -> Result<()> {
        self.lab.drop_namespace(&self.namespace).await?;
        self.lab
            .until("every address is given back", || async {
                Ok(Migration { lab: self.lab }.entries().await?.is_empty().then_some(()))
            })
            .await?;
        self.lab.until("check finds nothing", || async { Ok(audit(self.lab).is_ok().then_some(())) }).await?;
        audit(self.lab)
    }
}

/// What kube-controllers does for a DatastoreMigration.
struct Migration<'a> {
    lab: &'a Lab,
}

// === impl Migration ===

impl Migration<'_> {
    fn api(&self, group: ApiGroup, kind: &str) -> Api<DynamicObject> {
        let (name, version) = group.api_version().split_once('/').unwrap_or_default();
        let kind = if group == ApiGroup::V3 && kind == "IPAMConfig" { "IPAMConfiguration" } else { kind };
        Api::all_with(self.lab.client(), &ApiResource::from_gvk(&GroupVersionKind::gvk(name, version, kind)))
    }

    async fn set_ready(&self, group: ApiGroup, ready: bool) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": {"datastoreReady": ready}}));
        self.api(group, "ClusterInformation").patch("default", &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// The group that the cluster has.
    async fn group(&self) -> Result<ApiGroup> {
        let definitions: Api<CustomResourceDefinition> = Api::all(self.lab.client());
        let older = definitions.get_opt("ippools.crd.projectcalico.org").await?;
        Ok(if older.is_some() { ApiGroup::Crd } else { ApiGroup::V3 })
    }

    /// Pending: v3 is defined, v1 is locked and drained. Gives what v1's blocks then say.
    async fn lock(&self) -> Result<BTreeMap<IpAddr, String>> {
        crds::apply(&self.lab.client(), &Crds::Definitions(ApiGroup::V3.crds())).await?;
        sleep(STEP).await;
        self.set_ready(ApiGroup::Crd, false).await?;
        sleep(DRAINED).await;
        self.entries_in(ApiGroup::Crd).await
    }

    /// Migrating: at most so many objects of each kind are copied, v3's lock first.
    async fn copy(&self, most: usize) -> Result<()> {
        for kind in KINDS {
            let to = self.api(ApiGroup::V3, kind);
            for object in self.api(ApiGroup::Crd, kind).list(&ListParams::default()).await?.items.iter().take(most) {
                let copy: DynamicObject = serde_json::from_value(copied(kind, object))?;
                let described = || format!("{kind} {}", copy.name_any());
                to.create(&PostParams::default(), &copy).await.with_context(described)?;
            }
        }
        Ok(())
    }

    /// Converged: v3 holds what v1 held, and is unlocked; v1 stays locked. Gives the log's end just before.
    async fn converge(&self, before: &BTreeMap<IpAddr, String>) -> Result<Mark> {
        let (older, newer) = (self.entries_in(ApiGroup::Crd).await?, self.entries_in(ApiGroup::V3).await?);
        ensure!(older == *before && newer == *before, "v1 had {before:?}, has {older:?}, and v3 {newer:?}");
        let mark = self.lab.mark()?;
        self.set_ready(ApiGroup::V3, true).await?;
        Ok(mark)
    }

    /// Complete, and the migration deleted: v1's definitions go.
    async fn finish(&self) -> Result<()> {
        let definitions: Api<CustomResourceDefinition> = Api::all(self.lab.client());
        for definition in ApiGroup::Crd.crds() {
            definitions.delete(&definition.name_any(), &DeleteParams::default()).await?;
        }
        self.lab
            .until("v1 is no longer defined", || async {
                let left = definitions.list(&ListParams::default()).await?.items.into_iter();
                Ok((left.filter(|one| one.spec.group == ApiGroup::Crd.group()).count() == 0).then_some(()))
            })
            .await
    }

    /// The copies are deleted, and v1 is unlocked.
    async fn abort(&self) -> Result<()> {
        for kind in KINDS {
            let copies = ListParams::default().labels(COPIED);
            self.api(ApiGroup::V3, kind).delete_collection(&DeleteParams::default(), &copies).await?;
        }
        self.set_ready(ApiGroup::Crd, true).await
    }

    /// Every address that is on record, and its pod, in the group that counts.
    async fn entries(&self) -> Result<BTreeMap<IpAddr, String>> {
        self.entries_in(self.group().await?).await
    }

    async fn entries_in(&self, group: ApiGroup) -> Result<BTreeMap<IpAddr, String>> {
        let mut entries = BTreeMap::new();
        for block in self.api(group, "IPAMBlock").list(&ListParams::default()).await?.items {
            let spec: calico::IPAMBlockSpec = serde_json::from_value(block.data["spec"].clone())?;
            for address in &spec.cidr {
                if let calico::Entry::Used { attribute, .. } = spec.entry(address) {
                    let pod = attribute.secondary("pod").unwrap_or_default().to_owned();
                    ensure!(entries.insert(address, pod).is_none(), "{address} is in two blocks");
                }
            }
        }
        Ok(entries)
    }
}

/// An object as the newer group has it, with a UID of its own.
fn copied(kind: &str, object: &DynamicObject) -> Value {
    let mut spec = object.data["spec"].clone();
    let mut labels = object.labels().clone();
    labels.insert(COPIED.to_owned(), "a-uid".to_owned());
    let mut annotations = object.annotations().clone();
    annotations.remove("projectcalico.org/metadata");
    let mut name = object.name_any();
    match kind {
        "BlockAffinity" => spec["deleted"] = (spec["deleted"] == "true").into(),
        // In the case that the id has.
        "IPAMHandle" => spec["handleID"].as_str().unwrap_or_default().clone_into(&mut name),
        "ClusterInformation" => spec["datastoreReady"] = false.into(),
        _ => {}
    }
    json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": if kind == "IPAMConfig" { "IPAMConfiguration" } else { kind },
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
        "spec": spec,
    })
}
