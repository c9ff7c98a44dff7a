//! `show`: pools, blocks, borrowed addresses, claims, and who uses an address.

mod address;
mod borrowed;
mod pools;

use std::net::IpAddr;

use anyhow::Result;
use calico::{IPAMBlock, IPPool, IPReservation, Reservations, Utilization};
use clap::Args;

use super::Outcome;
use super::claims::Claims;
use super::connect::{Connection, blocks_around, optional};
use super::output::{self, Format, Progress};
use crate::claim::Claim;
use crate::store::{Ledger as _, Objects as _};

/// What is asked for; pools, if nothing else is.
#[derive(Args, Debug, Clone)]
pub(super) struct Show {
    #[command(flatten)]
    what: What,
    /// With --claims: only claims of owners in this namespace.
    #[arg(short, long, requires = "claims")]
    namespace: Option<String>,
}

#[derive(Args, Debug, Clone)]
#[group(multiple = false)]
struct What {
    /// Every block, with its node.
    #[arg(long)]
    blocks: bool,
    /// Addresses that are used on another node than their block's.
    #[arg(long)]
    borrowed: bool,
    /// Who uses these addresses, and whose they are. May be repeated.
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS", value_parser = output::address)]
    ip: Vec<IpAddr>,
    /// The claims on fixed addresses.
    #[arg(long)]
    claims: bool,
}

impl Show {
    pub(super) async fn run(&self, connection: &Connection, format: Format) -> Result<Outcome> {
        if self.what.claims {
            return Claims { namespace: self.namespace.clone(), action: None }.run(connection, format).await;
        }
        if !self.what.ip.is_empty() {
            return addresses(&self.what.ip, connection, format).await;
        }
        let store = connection.store().await?;
        let progress = Progress::new();
        progress.reading("blocks");
        let blocks: Vec<IPAMBlock> = store.list("").await?;
        if self.what.borrowed {
            drop(progress);
            let rows = borrowed::rows(&blocks);
            return output::print(format, &rows, || borrowed::table(&rows));
        }
        progress.reading("pools and reservations");
        let pools: Vec<IPPool> = store.list("").await?;
        let reservations = Reservations::new(&optional(store.list::<IPReservation>("").await)?);
        drop(progress);
        let used = Utilization::of(&pools, &blocks, &reservations);
        if self.what.blocks {
            let rows = pools::block_rows(&used);
            return output::print(format, &rows, || pools::block_table(&rows));
        }
        let rows = pools::rows(&used);
        output::print(format, &rows, || pools::table(&rows, &used))
    }
}

async fn addresses(addresses: &[IpAddr], connection: &Connection, format: Format) -> Result<Outcome> {
    let (site, store) = connection.open().await?;
    let ledger = site.ledger(&store).await?.ok();
    let pools: Vec<IPPool> = store.list("").await?;
    let reservations = Reservations::new(&optional(store.list::<IPReservation>("").await)?);
    let blocks = blocks_around(&store, &pools, addresses).await?;
    let mut shown = Vec::new();
    for address in addresses {
        let claim: Option<Option<Claim>> = match &ledger {
            Some(ledger) => Some(ledger.read(*address).await?.map(|claim| claim.value)),
            None => None,
        };
        shown.push(address::Shown::of(*address, &pools, &blocks, &reservations, claim));
    }
    output::print(format, &shown, || shown.iter().map(address::Shown::text).collect::<Vec<_>>().join("\n\n"))
}
