//! The captured steps, and a cluster's objects on which this crate's operations are performed in the order
//! in which a writer would.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use calico::invariants::{self, Snapshot};
use calico::{
    Affinity, AffinityState, AllowedUse, ApiGroup, AssignError, BlockAffinity, Family, Holder, IPAMBlock,
    IPAMBlockSpec, IPAMConfig, IPAMConfigSpec, IPAMHandle, IPAMHandleSpec, IPPool, IPReservation, PoolRequest,
    Released, Reservations,
};
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use kube::ResourceExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Where the 21 steps were captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    /// The newest Calico, its objects in the group.
    Newest(ApiGroup),
    /// v3.28, which stands for v3.24 to v3.29.
    V3_28,
    /// v3.30.
    V3_30,
}

impl Capture {
    const ALL: [Self; 4] = [Self::Newest(ApiGroup::Crd), Self::Newest(ApiGroup::V3), Self::V3_28, Self::V3_30];

    pub fn group(self) -> ApiGroup {
        match self {
            Self::Newest(group) => group,
            Self::V3_28 | Self::V3_30 => ApiGroup::Crd,
        }
    }

    /// Whether its Calico knows labels, cooldowns and the time of a claim.
    pub fn is_newest(self) -> bool {
        matches!(self, Self::Newest(_))
    }

    /// What writers wrote, in the form in which ours and theirs are compared. With an older release our objects lose what its
    /// definitions prune, and neither side counts labels, Calico's copy of them, and what it leaves of a release: the number
    /// of an allocation that is gone.
    pub fn compared(self, mut written: BTreeMap<&'static str, Value>) -> BTreeMap<&'static str, Value> {
        if self.is_newest() {
            return written;
        }
        for object in written.values_mut().flat_map(|list| list.as_array_mut().unwrap()) {
            let meta = object["metadata"].as_object_mut().unwrap();
            meta.remove("labels");
            meta.remove("annotations");
            let kind = object["kind"].as_str().unwrap().to_owned();
            self.prune(&kind, &mut object["spec"]);
            let Some(allocations) = object["spec"]["allocations"].as_array().cloned() else { continue };
            let numbers = object["spec"]["sequenceNumberForAllocation"].as_object_mut().unwrap();
            numbers.retain(|ordinal, _| !allocations[ordinal.parse::<usize>().unwrap()].is_null());
        }
        written
    }

    /// Drops what this release's definition of a kind does not name.
    fn prune(self, kind: &str, spec: &mut Value) {
        let release = if self == Self::V3_28 { "v3.28.5" } else { "v3.30.7" };
        let schema = schemas(ApiGroup::Crd, release);
        let fields = schema[kind]["spec"].as_object().unwrap().clone();
        let keep = |prefix: &str, object: &mut Value| {
            let named =
                |key: &String| ["", "*"].iter().any(|mark| fields.contains_key(&format!("{prefix}{key}{mark}")));
            object.as_object_mut().unwrap().retain(|key, _| named(key));
        };
        keep("", spec);
        spec["attributes"].as_array_mut().into_iter().flatten().for_each(|one| keep("attributes[].", one));
    }

    fn directory(self) -> PathBuf {
        let captures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        match self {
            Self::Newest(ApiGroup::Crd) => captures,
            Self::Newest(ApiGroup::V3) => captures.join("v3-group"),
            Self::V3_28 => captures.join("v3.28"),
            Self::V3_30 => captures.join("v3.30"),
        }
    }

    fn steps(self) -> Vec<(String, Value)> {
        let mut names: Vec<String> = std::fs::read_dir(self.directory())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with(|c: char| c.is_ascii_digit()))
            .collect();
        names.sort();
        names.into_iter().map(|name| (format!("{self:?} {name}"), self.file(&name))).collect()
    }

    fn file(self, name: &str) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.directory().join(name)).unwrap()).unwrap()
    }

    /// A step by its number.
    pub fn step(self, number: &str) -> Value {
        let found = self.steps().into_iter().find(|(name, _)| name.starts_with(&format!("{self:?} {number}")));
        found.unwrap_or_else(|| panic!("no step {number}")).1
    }
}

/// The fields of a release's definitions, by kind.
pub fn schemas(group: ApiGroup, release: &str) -> Value {
    let all = file("schemas.json");
    match &all[format!("{group} {release}")] {
        Value::String(text) if text == "as the release before" => schemas(group, "v3.24.5"),
        found => found.clone(),
    }
}

/// Every captured step, in order: its name and its content.
pub fn steps() -> Vec<(String, Value)> {
    let all: Vec<_> = Capture::ALL.into_iter().flat_map(Capture::steps).collect();
    assert_eq!(all.len(), 84);
    all
}

/// A captured step of the newest Calico in the older group by its number.
pub fn step(number: &str) -> Value {
    Capture::Newest(ApiGroup::Crd).step(number)
}

/// A captured file of the newest Calico in the older group.
pub fn file(name: &str) -> Value {
    file_of(ApiGroup::Crd, name)
}

/// A captured file of the newest Calico in a group.
pub fn file_of(group: ApiGroup, name: &str) -> Value {
    Capture::Newest(group).file(name)
}

/// An object as a group has it.
pub fn shaped(group: ApiGroup, object: &impl Serialize) -> Value {
    let mut value = serde_json::to_value(object).unwrap();
    group.shape(&mut value);
    value
}

/// The objects of one kind in a step.
pub fn objects<T: DeserializeOwned>(step: &Value, plural: &str) -> Vec<T> {
    serde_json::from_value(step[plural].clone()).unwrap()
}

pub fn network(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The objects of a cluster, by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    pub pools: Vec<IPPool>,
    pub config: IPAMConfigSpec,
    pub reservations: Vec<IPReservation>,
    pub blocks: BTreeMap<String, IPAMBlock>,
    pub affinities: BTreeMap<String, BlockAffinity>,
    pub handles: BTreeMap<String, IPAMHandle>,
}

fn by_name<T: DeserializeOwned + kube::Resource>(step: &Value, plural: &str) -> BTreeMap<String, T> {
    objects::<T>(step, plural).into_iter().map(|object| (object.name_any(), object)).collect()
}

fn values<T: Serialize>(group: ApiGroup, objects: &BTreeMap<String, T>) -> Value {
    objects.values().map(|object| shaped(group, object)).collect()
}

impl Cluster {
    /// The objects of a step. Pools, configuration and reservations are what people write.
    pub fn load(step: &Value) -> Self {
        let configs = ["ipamconfigs", "ipamconfigurations"].into_iter().find(|plural| step.get(plural).is_some());
        let config = objects::<IPAMConfig>(step, configs.unwrap()).pop();
        Self {
            pools: objects(step, "ippools"),
            config: config.map(|config| config.spec).unwrap_or_default(),
            reservations: objects(step, "ipreservations"),
            blocks: by_name(step, "ipamblocks"),
            affinities: by_name(step, "blockaffinities"),
            handles: by_name(step, "ipamhandles"),
        }
    }

    /// What writers wrote, as JSON of a group, to be compared with [`written`].
    pub fn written(&self, group: ApiGroup) -> BTreeMap<&'static str, Value> {
        [
            ("ipamblocks", values(group, &self.blocks)),
            ("blockaffinities", values(group, &self.affinities)),
            ("ipamhandles", values(group, &self.handles)),
        ]
        .into()
    }

    /// Every violation of an invariant among the objects.
    pub fn violations(&self) -> Vec<invariants::Violation> {
        let blocks: Vec<_> = self.blocks.values().cloned().collect();
        let handles: Vec<_> = self.handles.values().cloned().collect();
        let affinities: Vec<_> = self.affinities.values().cloned().collect();
        invariants::all(&Snapshot { blocks: &blocks, handles: &handles, affinities: &affinities })
    }

    /// The block that an explicitly named address lies in, by the pools a request may use.
    pub fn block_for(&self, address: IpAddr) -> Option<IpNetwork> {
        let none = BTreeMap::new();
        let request = PoolRequest {
            family: Family::of(address),
            requested: &[],
            use_: AllowedUse::Workload,
            node_labels: &none,
            namespace_labels: &none,
            automatic: false,
        };
        let pools = calico::eligible(&self.pools, &request).ok()?;
        Some(calico::covering(pools, address)?.spec.block_of(address))
    }

    /// Claims a block: pending affinity, block, confirmed affinity.
    pub fn claim(&mut self, cidr: &IpNetwork, owner: &Affinity, now: Timestamp) {
        let affinity = BlockAffinity::pending(owner, cidr);
        self.affinities.insert(affinity.name_any(), affinity.clone());
        let block = IPAMBlockSpec::new(*cidr, owner, now).object();
        assert!(self.blocks.insert(block.name_any(), block).is_none(), "{cidr} was claimed before");
        let confirmed = affinity.with_state(AffinityState::Confirmed);
        self.affinities.insert(confirmed.name_any(), confirmed);
    }

    pub fn block(&mut self, cidr: &IpNetwork) -> &mut IPAMBlockSpec {
        &mut self.blocks.get_mut(&calico::cidr_name(cidr)).unwrap().spec
    }

    fn strict_for(&self, host: &Affinity) -> Option<Affinity> {
        self.config.strict_affinity.then(|| host.clone())
    }

    /// Assigns this very address to a pod on a host. Handle and block change only if the block agrees.
    pub fn assign(
        &mut self,
        address: IpAddr,
        host: &Affinity,
        holder: &Holder,
        now: Timestamp,
    ) -> Result<(), AssignError> {
        let cidr = self.block_for(address).unwrap();
        let (strict, cooldown) = (self.strict_for(host), self.config.cooldown_seconds());
        let mut block = self.block(&cidr).clone();
        block.collect(cooldown, now);
        block.assign(address, holder, strict.as_ref())?;
        self.commit(block, holder);
        Ok(())
    }

    /// Assigns the next unreserved address of a block.
    pub fn assign_first(
        &mut self,
        cidr: &IpNetwork,
        host: &Affinity,
        holder: &Holder,
        now: Timestamp,
    ) -> Result<Option<IpAddr>, AssignError> {
        let (strict, cooldown) = (self.strict_for(host), self.config.cooldown_seconds());
        let reserved = Reservations::new(&self.reservations);
        let mut block = self.block(cidr).clone();
        block.collect(cooldown, now);
        let given = block.assign_first(|address| !reserved.covers(address), holder, strict.as_ref())?;
        if given.is_some() {
            self.commit(block, holder);
        }
        Ok(given)
    }

    fn commit(&mut self, mut block: IPAMBlockSpec, holder: &Holder) {
        let cidr = block.cidr;
        let name = calico::handle_name(&holder.handle);
        let handle = self.handles.entry(name).or_insert_with(|| IPAMHandleSpec::new(&holder.handle).object());
        handle.spec.increment(&cidr, 1);
        block.advance();
        *self.block(&cidr) = block;
    }

    /// Releases everything a handle has; gives what was released.
    pub fn release(&mut self, handle: &str, now: Timestamp) -> Vec<Released> {
        let Some(object) = self.handles.get(&calico::handle_name(handle)) else {
            return Vec::new();
        };
        let cooldown = self.config.cooldown_seconds();
        let mut all = Vec::new();
        for cidr in object.spec.blocks().collect::<Vec<_>>() {
            let mut block = self.block(&cidr).clone();
            block.collect(cooldown, now);
            let released = block.release_handle(handle, cooldown, now);
            if !released.is_empty() {
                block.advance();
                *self.block(&cidr) = block;
                self.count_down(&cidr, &released);
            }
            all.extend(released);
        }
        all
    }

    pub fn count_down(&mut self, cidr: &IpNetwork, released: &[Released]) {
        let block = self.block(cidr);
        if block.is_empty() && block.affinity.is_none() {
            self.blocks.remove(&calico::cidr_name(cidr));
        }
        for released in released {
            let name = calico::handle_name(released.attribute.handle().unwrap());
            let handle = self.handles.get_mut(&name).unwrap();
            handle.spec.decrement(cidr, 1).unwrap();
            if handle.spec.is_empty() {
                self.handles.remove(&name);
            }
        }
    }
}

/// What writers wrote in a step.
pub fn written(step: &Value) -> BTreeMap<&'static str, Value> {
    ["ipamblocks", "blockaffinities", "ipamhandles"].into_iter().map(|plural| (plural, step[plural].clone())).collect()
}
