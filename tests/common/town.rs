//! A cluster in memory under a collector, with a clock that a test moves and stores that a test disturbs.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use calico::{BlockAffinity, IPAMBlock, IPAMHandle};
use futures::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use kube_ipam::audit::{self, Snapshot, Violation, audit};
use kube_ipam::claim::Claim;
use kube_ipam::collector::{Always, Collector, Kind, Options, Repair, Report, Unread};
use kube_ipam::driver::{Assigned, Driver, Error, GatedDriver};
use kube_ipam::pod::Owner;
use kube_ipam::store::faulty::{Call, Fault, Faults, Faulty};
use kube_ipam::store::memory::{MemoryLedger, MemoryObjects};
use kube_ipam::store::{Gated, Ledger as _, Object, Objects, StoreError};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{World, object};

thread_local! {
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The wall clock of a paused runtime: it moves with tokio's.
pub fn clock() -> Timestamp {
    let start = START.get().unwrap_or_else(Instant::now);
    let elapsed = SignedDuration::try_from(Instant::now().duration_since(start)).unwrap();
    Timestamp::from_second(1_800_000_000).unwrap() + elapsed
}

/// What happens at a call of the collector.
pub type Hook = Box<dyn FnMut(&Call) -> Option<Fault> + Send>;

/// A store of objects that lists nothing of some kinds, and says so without an error.
#[derive(Clone)]
pub struct Blind {
    inner: MemoryObjects,
    kinds: Arc<Mutex<BTreeSet<String>>>,
}

/// The collector's stores.
type Watched = Collector<Gated<Faulty<Blind>>, Gated<Faulty<MemoryLedger>>>;

pub struct Town {
    pub world: World,
    pub collector: Watched,
    pub faults: Faults,
    hook: Arc<Mutex<Option<Hook>>>,
    blind: Blind,
}

impl Town {
    pub fn new() -> Self {
        Self::with(World::new())
    }

    pub fn with(world: World) -> Self {
        START.set(Some(Instant::now()));
        let hook: Arc<Mutex<Option<Hook>>> = Arc::default();
        let shared = hook.clone();
        let faults = Faults::new(move |call| shared.lock().unwrap().as_mut().and_then(|hook| hook(call)));
        let blind = Blind { inner: world.objects.clone(), kinds: Arc::default() };
        let collector = collector(&world, &faults, &blind);
        Self { world, collector, faults, hook, blind }
    }

    /// Another process takes over: nothing is remembered.
    pub fn restart_collector(&mut self) {
        self.collector = collector(&self.world, &self.faults, &self.blind);
    }

    pub fn on_call(&self, hook: impl FnMut(&Call) -> Option<Fault> + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }

    /// Runs `action` once, at the first call of `verb` on `object`.
    pub fn at(&self, verb: &'static str, object: &str, action: impl FnOnce() + Send + 'static) {
        let (object, mut action) = (object.to_owned(), Some(action));
        self.on_call(move |call| {
            if call.verb == verb
                && call.object.starts_with(&object)
                && let Some(action) = action.take()
            {
                action();
            }
            None
        });
    }

    pub fn undisturbed(&self) {
        *self.hook.lock().unwrap() = None;
        self.blind.kinds.lock().unwrap().clear();
    }

    pub fn list_nothing_of<K: Object>(&self) {
        self.blind.kinds.lock().unwrap().insert(K::plural(&()).into_owned());
    }

    pub async fn pass(&self, seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    pub async fn try_round(&mut self) -> Result<Report, Unread> {
        self.collector.round(&Always).await
    }

    pub async fn round(&mut self) -> Report {
        let report = self.try_round().await.unwrap();
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        report
    }

    /// Rounds every 30 seconds, for `seconds`; everything that was repaired.
    pub async fn rounds_for(&mut self, seconds: u64) -> Vec<Repair> {
        let mut repairs = self.round().await.repairs;
        for _ in 0..seconds.div_ceil(30) {
            self.pass(30).await;
            repairs.extend(self.round().await.repairs);
        }
        repairs
    }

    /// Rounds for `seconds` repair nothing at all, and leave every object as it was.
    pub async fn stays_for(&mut self, seconds: u64) {
        let before = (self.world.objects.dump(), self.world.ledger.all().await.unwrap());
        assert_eq!(self.rounds_for(seconds).await, []);
        assert_eq!((self.world.objects.dump(), self.world.ledger.all().await.unwrap()), before);
    }

    /// Rounds for `seconds` make exactly the repairs of these kinds.
    pub async fn repairs(&mut self, seconds: u64, kinds: &[Kind]) -> Vec<Repair> {
        let repairs = self.rounds_for(seconds).await;
        assert_eq!(repairs.iter().map(|r| r.kind).collect::<Vec<_>>(), kinds, "{repairs:#?}");
        repairs
    }

    pub fn driver(&self) -> GatedDriver<MemoryObjects, MemoryLedger> {
        driver(&self.world)
    }

    pub async fn add(&self, node: &str, pod: &str, container: &str) -> Result<Vec<Assigned>, Error> {
        super::add(&self.driver(), &self.world.net(), node, pod, container).await
    }

    pub async fn del(&self, node: &str, pod: &str, container: &str) {
        super::del(&self.driver(), &self.world.net(), node, pod, container).await.unwrap();
    }

    /// A pod whose sandbox `c-<name>` is up and whose status says so.
    pub async fn run(&self, pod: Pod, node: &str) -> IpAddr {
        let name = pod.name_any();
        let assigned = self.add(node, &name, &format!("c-{name}")).await.unwrap();
        let addresses: Vec<IpAddr> = assigned.iter().map(|a| a.address).collect();
        report(&self.world, pod, node, &addresses);
        addresses[0]
    }

    pub fn remove_node(&self, name: &str) {
        assert!(self.world.objects.remove::<Node>(None, name));
    }

    pub async fn claim(&self, address: &str) -> Option<Claim> {
        self.world.claim(address).await.map(|claim| claim.value)
    }

    pub async fn owners(&self) -> Vec<(IpAddr, Owner)> {
        self.world.ledger.all().await.unwrap().into_iter().map(|c| (c.value.address, c.value.owner)).collect()
    }

    pub fn pod(&self, name: &str) -> Pod {
        self.world.objects.get(Some("default"), name).now_or_never().unwrap().unwrap().unwrap()
    }

    pub async fn block_of(&self, address: IpAddr) -> IPAMBlock {
        let blocks = self.world.list::<IPAMBlock>().await;
        blocks.into_iter().find(|block| block.spec.cidr.contains(address)).unwrap()
    }

    /// Changes the block of an address as another writer would.
    pub async fn change_block(&self, address: IpAddr, change: impl FnOnce(&mut IPAMBlock)) {
        let mut block = self.block_of(address).await;
        change(&mut block);
        block.spec.advance();
        self.world.objects.put(&block);
    }

    pub async fn is_allocated(&self, address: IpAddr) -> bool {
        self.world.allocated().await.iter().any(|(a, _)| *a == address)
    }

    pub async fn affinity(&self, name: &str) -> Option<BlockAffinity> {
        self.world.objects.get::<BlockAffinity>(None, name).await.unwrap()
    }

    pub async fn handle(&self, id: &str) -> Option<IPAMHandle> {
        self.world.objects.get::<IPAMHandle>(None, &calico::handle_name(id)).await.unwrap()
    }

    pub async fn snapshot(&self) -> Snapshot {
        let reading = audit::read(&self.world.objects, Some(&self.world.ledger), &|_| {}).await;
        assert!(reading.unread.is_empty(), "{:?}", reading.unread);
        Snapshot { net: Some(self.world.net()), ..reading.snapshot.unwrap() }
    }

    pub async fn violations(&self) -> Vec<Violation> {
        audit(&self.snapshot().await)
    }

    pub async fn assert_clean(&self) {
        let found = self.violations().await;
        assert!(found.is_empty(), "{found:#?}");
    }
}

fn collector(world: &World, faults: &Faults, blind: &Blind) -> Watched {
    let driver = Driver::new(faults.wrap(blind.clone()), Some(faults.wrap(world.ledger.clone())), clock);
    Collector::new(driver, &world.net(), Options::default())
}

/// A node's driver, undisturbed.
pub fn driver(world: &World) -> GatedDriver<MemoryObjects, MemoryLedger> {
    Driver::new(world.objects.clone(), Some(world.ledger.clone()), clock)
}

/// What a kubelet writes once a pod's sandbox is up.
pub fn report(world: &World, pod: Pod, node: &str, addresses: &[IpAddr]) {
    let mut value = serde_json::to_value(pod).unwrap();
    value["spec"]["nodeName"] = json!(node);
    let ips: Vec<Value> = addresses.iter().map(|a| json!({"ip": a})).collect();
    value["status"] = json!({"phase": "Running", "podIP": addresses.first(), "podIPs": ips});
    world.objects.put::<Pod>(&object(value));
}

impl Objects for Blind {
    async fn get<K: Object>(&self, namespace: Option<&str>, name: &str) -> Result<Option<K>, StoreError> {
        self.inner.get(namespace, name).await
    }

    async fn list<K: Object>(&self, selector: &str) -> Result<Vec<K>, StoreError> {
        let nothing = self.kinds.lock().unwrap().contains(K::plural(&()).as_ref());
        if nothing { Ok(Vec::new()) } else { self.inner.list(selector).await }
    }

    async fn create<K: Object>(&self, object: &K) -> Result<K, StoreError> {
        self.inner.create(object).await
    }

    async fn replace<K: Object>(&self, object: &K) -> Result<K, StoreError> {
        self.inner.replace(object).await
    }

    async fn delete<K: Object>(&self, object: &K) -> Result<(), StoreError> {
        self.inner.delete(object).await
    }

    async fn owner(&self, owner: &Owner) -> Result<Option<Value>, StoreError> {
        self.inner.owner(owner).await
    }
}
