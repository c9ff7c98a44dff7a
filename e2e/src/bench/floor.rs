//! The floor: the two writes that put an address on record, one after the other over a connection that is warm.
//! No plugin that writes them can be faster.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use calico::{Holder, IPAMBlock, IPAMHandle, IPAMHandleSpec};
use jiff::Timestamp;
use kube_ipam::store::Objects as _;
use kube_ipam::store::kube::KubeStore;

use super::ground::{Ground, block_of};

/// A block whose last state is known, so that it need not be read.
pub(super) struct Floor<'a> {
    store: &'a KubeStore,
    node: String,
    block: IPAMBlock,
    number: usize,
}

/// An address on record.
pub(super) struct Recorded {
    handle: IPAMHandle,
}

impl<'a> Floor<'a> {
    /// A node with a block in which `resident` addresses are in use, at most all but one.
    pub(super) async fn prepare(ground: &'a Ground, section: usize, resident: usize) -> Result<Floor<'a>> {
        let node = format!("bench-{section}-floor");
        let block = ground.claim(&node, block_of(section)?).await?;
        let mut floor = Floor { store: ground.store(), node, block, number: 0 };
        for _ in 0..resident.min(63) {
            floor.assign()?;
        }
        floor.block = floor.store.replace(&floor.block).await?;
        Ok(floor)
    }

    /// A handle is created, then the block is updated.
    pub(super) async fn add(&mut self) -> Result<(Recorded, Duration)> {
        let handle = self.assign()?;
        let mut spec = IPAMHandleSpec::new(&handle);
        spec.increment(&self.block.spec.cidr, 1);
        let started = Instant::now();
        let handle = self.store.create(&spec.object()).await?;
        self.block = self.store.replace(&self.block).await?;
        Ok((Recorded { handle }, started.elapsed()))
    }

    /// The block is updated, then the handle is deleted.
    pub(super) async fn del(&mut self, recorded: Recorded) -> Result<Duration> {
        self.block.spec.release_handle(&recorded.handle.spec.handle_id, 0, Timestamp::now());
        self.block.spec.advance();
        let started = Instant::now();
        self.block = self.store.replace(&self.block).await?;
        self.store.delete(&recorded.handle).await?;
        Ok(started.elapsed())
    }

    /// Puts a new container into the block as it is known here; gives the container's handle.
    fn assign(&mut self) -> Result<String> {
        self.number += 1;
        let handle = format!("k8s-pod-network.{:064x}", self.number);
        let holder =
            Holder::pod(&handle, "bench", &format!("{}-{}", self.node, self.number), &self.node, Timestamp::now());
        let address: Option<IpAddr> = self.block.spec.assign_first(|_| true, &holder, None)?;
        address.context("the floor's block is full")?;
        self.block.spec.advance();
        Ok(handle)
    }
}
