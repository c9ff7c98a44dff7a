//! Calico's IPAM objects and the algebra on them, without any I/O and without a clock.
//!
//! # Layout
//!
//! | module | noun |
//! |---|---|
//! | [`block`] | `IPAMBlock`: which address of a slice of a pool is whose |
//! | [`block_affinity`] | `BlockAffinity`: which node may allocate from a block without borrowing |
//! | [`handle`] | `IPAMHandle`: how many addresses a handle has, by block |
//! | [`pool`] | `IPPool`: which pools a request may use, and the blocks of a pool |
//! | [`reservation`] | `IPReservation`: what automatic assignment skips |
//! | [`config`], [`cluster_information`] | the two singletons that steer Calico |
//! | [`machine`] | virtual machines, whose addresses outlive their pods |
//! | [`utilization`] | how full pools and blocks are |
//! | [`affinity`], [`holder`], [`names`], [`selector`] | the values those objects are made of |
//! | [`invariants`] | what must hold over all of them, as named functions |
//! | [`group`] | in which API group a cluster keeps them, and what differs there |
//! | [`crd`] | the CustomResourceDefinitions |
//!
//! Everything here takes `now` and snapshots as values and returns values. Objects come from other
//! writers: nothing in this crate panics on what they hold, see [`block::Corrupt`].
//!
//! The types read the objects of either group and serialise as `crd.projectcalico.org/v1` has them, see [`ApiGroup`]. Every
//! kind keeps the fields it does not know.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod affinity;
pub mod block;
pub mod block_affinity;
pub mod cluster_information;
pub mod config;
pub mod crd;
pub mod group;
pub mod handle;
pub mod holder;
pub mod invariants;
pub mod machine;
pub mod names;
mod net;
pub mod pool;
pub mod reservation;
pub mod selector;
pub mod utilization;
mod wire;

pub use affinity::Affinity;
pub use block::{
    AllocationAttribute, AssignError, Corrupt, Entry, Expect, IPAMBlock, IPAMBlockSpec, ReleaseError, Released,
};
pub use block_affinity::{AffinityState, BlockAffinity, BlockAffinitySpec};
pub use cluster_information::{ClusterInformation, ClusterInformationSpec};
pub use config::{IPAMConfig, IPAMConfigSpec};
pub use crd::crds;
pub use group::ApiGroup;
pub use handle::{HandleError, IPAMHandle, IPAMHandleSpec};
pub use holder::Holder;
pub use names::{affinity_name, cidr_name, handle_name, hostname_hash};
pub use net::{between as addresses_between, count as address_count};
pub use pool::{AllowedUse, Family, IPPool, IPPoolSpec, PoolError, PoolRef, PoolRequest, covering, eligible};
pub use reservation::{IPReservation, IPReservationSpec, Reservations};
pub use selector::{Selector, SelectorError};
pub use utilization::Utilization;
