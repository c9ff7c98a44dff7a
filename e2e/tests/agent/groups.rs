//! Calico's objects are in one API group or the other, and move from one to the other.

use std::time::Duration;

use calico::{ApiGroup, ClusterInformation, ClusterInformationSpec, IPPool};
use e2e::embedded::Options;
use kube::ResourceExt as _;
use kube_ipam::store::Objects as _;
use kube_ipam::store::kube::KubeStore;
use serde_json::Value;

use super::ground::{Ground, assert_ok, assert_refused};
use super::process::{Agent, until};

impl Ground {
    async fn store(&self, group: ApiGroup) -> KubeStore {
        KubeStore::from_kubeconfig(self.cluster.kubeconfig(), None).await.unwrap().in_group(group.into())
    }

    async fn set_ready_in(&self, group: ApiGroup, ready: bool) {
        let store = self.store(group).await;
        let spec = ClusterInformationSpec { datastore_ready: Some(ready), ..Default::default() };
        match store.get::<ClusterInformation>(None, "default").await.unwrap() {
            Some(mut found) => {
                found.spec = spec;
                store.replace(&found).await.unwrap();
            }
            None => drop(store.create(&ClusterInformation::new("default", spec)).await.unwrap()),
        }
    }

    /// What a migration does before it unlocks the newer group: pools are all that there is.
    async fn copy_pools(&self) {
        let (from, to) = (self.store(ApiGroup::Crd).await, self.store(ApiGroup::V3).await);
        for pool in from.list::<IPPool>("").await.unwrap() {
            to.create(&IPPool::new(&pool.name_any(), pool.spec)).await.unwrap();
        }
    }

    fn named_group(&self) -> Value {
        let text = std::fs::read_to_string(self.path("net.d/10-calico.conflist")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["plugins"][0]["calico_api_group"].clone()
    }

    /// How many blocks are in a group.
    fn blocks_in(&self, group: ApiGroup) -> usize {
        let resource = format!("ipamblocks.{}/", group.group());
        self.server().snapshot().keys().filter(|id| id.starts_with(&resource)).count()
    }

    /// Everything that v1 holds.
    fn in_v1(&self) -> Vec<Value> {
        let of_v1 = format!(".{}/", ApiGroup::Crd.group());
        self.server().snapshot().into_iter().filter(|(id, _)| id.contains(&of_v1)).map(|(_, object)| object).collect()
    }

    fn prepare_list(&self) {
        std::fs::create_dir_all(self.path("net.d")).unwrap();
        std::fs::write(self.path("net.d/10-calico.conflist"), self.conflist().to_string()).unwrap();
        std::fs::write(self.path("ipam.json"), self.conf["ipam"].to_string()).unwrap();
    }

    async fn agent_with_files(&self) -> Agent {
        Agent::start_with(self, true, |command| {
            command.arg("--ipam").arg(self.path("ipam.json"));
        })
        .await
    }
}

/// The plugin then calls by the list that its node has.
fn by_list(ground: &mut Ground) {
    ground.conf["calico_api_group"] = ground.named_group();
}

#[tokio::test]
async fn an_agent_moves_with_the_cluster_and_back() {
    let both = ApiGroup::BOTH.into_iter().flat_map(ApiGroup::crds).collect();
    let mut ground = Ground::with(Options { crds: both, ..Options::default() }).await;
    ground.set_ready_in(ApiGroup::Crd, true).await;
    ground.prepare_list();
    let agent = ground.agent_with_files().await;
    ground.either("r-1");
    assert_ok(&ground.add_pod("r-1", "a").await);
    // The older group is what a list means that names none.
    assert_eq!((ground.named_group(), ground.blocks_in(ApiGroup::Crd)), (Value::Null, 1));

    ground.set_ready_in(ApiGroup::Crd, false).await;
    ground.copy_pools().await;
    ground.set_ready_in(ApiGroup::V3, false).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(ground.named_group(), Value::Null, "neither group may be written yet");
    ground.set_ready_in(ApiGroup::V3, true).await;
    until("the list names it", async || (ground.named_group() == "projectcalico.org/v3").then_some(())).await;
    agent.ended().await;
    by_list(&mut ground);
    let agent = ground.agent_with_files().await;
    ground.either("r-2");
    assert_ok(&ground.add_pod("r-2", "b").await);
    assert_eq!((agent.answered("ADD"), ground.blocks_in(ApiGroup::V3)), (2, 1), "{}", agent.log());

    // The migration is aborted.
    ground.set_ready_in(ApiGroup::V3, false).await;
    ground.set_ready_in(ApiGroup::Crd, true).await;
    until("the list names it", async || (ground.named_group() == "crd.projectcalico.org/v1").then_some(())).await;
    agent.ended().await;
}

/// When v1's definitions are deleted, ClusterInformation goes before the blocks do: whoever goes by a list that names no
/// group still finds v1 served, and no lock.
#[tokio::test]
async fn nothing_is_written_to_v1_while_its_definitions_are_deleted() {
    let both = ApiGroup::BOTH.into_iter().flat_map(ApiGroup::crds).collect();
    let ground = Ground::with(Options { crds: both, ..Options::default() }).await;
    ground.set_ready_in(ApiGroup::Crd, true).await;
    ground.prepare_list();
    let agent = Agent::start(&ground, false).await;
    ground.either("r-1");
    assert_ok(&ground.add_pod("r-1", "a").await);
    ground.set_ready_in(ApiGroup::Crd, false).await;
    ground.copy_pools().await;
    // Frozen since then, so that it learns of all the rest at once.
    agent.signal("STOP");
    ground.set_ready_in(ApiGroup::V3, true).await;
    let older = ground.store(ApiGroup::Crd).await;
    older.delete(&older.get::<ClusterInformation>(None, "default").await.unwrap().unwrap()).await.unwrap();
    // A handle that is gone there may be in v3.
    assert_refused(&ground.of_pod("DEL", "r-9", "never").run().await, 11, &["ClusterInformation default"]);
    let before = ground.in_v1();
    ground.either("r-2");
    let refused = ground.add_pod("r-2", "b").await;
    assert_refused(&refused, 11, &["ClusterInformation default"]);
    agent.signal("CONT");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_refused(&ground.add_pod("r-2", "c").await, 11, &[]);
    assert_eq!(ground.in_v1(), before);
    drop(agent);
    // Nobody has ClusterInformation: then nothing is locked.
    let newer = ground.store(ApiGroup::V3).await;
    newer.delete(&newer.get::<ClusterInformation>(None, "default").await.unwrap().unwrap()).await.unwrap();
    assert_ok(&ground.add_pod("r-2", "d").await);
    assert_ne!(ground.in_v1(), before);
}

#[tokio::test]
async fn a_call_by_another_group_is_left_to_the_plugin() {
    let both = ApiGroup::BOTH.into_iter().flat_map(ApiGroup::crds).collect();
    let mut ground = Ground::with(Options { crds: both, ..Options::default() }).await;
    ground.copy_pools().await;
    let agent = Agent::start(&ground, false).await;
    ground.conf["calico_api_group"] = "projectcalico.org/v3".into();
    ground.either("r-1");
    assert_ok(&ground.add_pod("r-1", "a").await);
    assert_eq!((ground.blocks_in(ApiGroup::Crd), ground.blocks_in(ApiGroup::V3)), (0, 1));
    assert_ok(&ground.del_pod("r-1", "a").await);
    assert_eq!(agent.answered("ADD") + agent.answered("DEL"), 0, "{}", agent.log());
    ground.conf["calico_api_group"] = "crd.projectcalico.org/v1".into();
    assert_ok(&ground.add_pod("r-1", "b").await);
    assert_eq!(agent.answered("ADD"), 1);
    agent.stop().await;
}

/// Neither the list nor the environment says it, and nobody has to.
#[tokio::test]
async fn an_agent_and_a_plugin_alone_find_the_newer_group() {
    let ground = Ground::with(Options { crds: ApiGroup::V3.crds(), ..Options::default() }).await;
    ground.prepare_list();
    ground.either("r-1");
    assert_ok(&ground.add_pod("r-1", "a").await);
    let agent = ground.agent_with_files().await;
    until("the list names it", async || (ground.named_group() == "projectcalico.org/v3").then_some(())).await;
    ground.either("r-2");
    assert_ok(&ground.add_pod("r-2", "b").await);
    assert_ok(&ground.del_pod("r-1", "a").await);
    ground.settled().await;
    assert_eq!((agent.answered("ADD"), ground.blocks_in(ApiGroup::V3)), (1, 1), "{}", agent.log());
    agent.stop().await;
}
