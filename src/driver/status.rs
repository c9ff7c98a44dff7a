//! STATUS: could an ADD be served now?

use calico::{Family, IPAMBlock, IPAMConfig, IPAMConfigSpec, IPPool, IPReservation, Reservations};

use super::snapshot::check_coverage;
use super::{Driver, Error, Exhaustion};
use crate::netconf::NetConf;
use crate::range::RangeSet;
use crate::store::{Ledger, Objects, if_ours};

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Asks both stores and looks for a free address in every configured family.
    ///
    /// # Errors
    /// What would keep an ADD from being served.
    pub async fn status(&self, net: &NetConf) -> Result<(), Error> {
        let (pools, reservations, config, ()) = tokio::try_join!(
            self.objects.list::<IPPool>(""),
            self.optional::<IPReservation>(),
            self.objects.get::<IPAMConfig>(None, "default"),
            self.may_assign(),
        )?;
        if let Some(ledger) = &self.ledger {
            // Without one, or with another cluster's, only fixed addresses are refused.
            if_ours(ledger.all().await)?;
        }
        let reservations = Reservations::new(&reservations);
        let config = config.map_or_else(IPAMConfigSpec::default, |c| c.spec);
        let mut blocks = self.objects.list::<IPAMBlock>("").await?;
        blocks.retain(|b| !b.spec.is_deleted());
        for block in &mut blocks {
            block.spec.collect(config.cooldown_seconds(), self.now());
        }
        for ranges in Family::BOTH.into_iter().filter_map(|f| net.ipam.ranges(f)) {
            check_coverage(ranges, &pools)?;
            look_for_room(ranges, &blocks, &reservations)?;
        }
        Ok(())
    }
}

/// An error if every address of the range is in use or reserved inside the blocks that exist, and no block
/// more could be made of it.
fn look_for_room(ranges: &RangeSet, blocks: &[IPAMBlock], reservations: &Reservations) -> Result<(), Error> {
    let (mut used, mut reserved) = (0, 0);
    for block in blocks {
        if block.spec.free(|a| ranges.permits_random(a) && !reservations.covers(a)) > 0 {
            return Ok(());
        }
        used += block.spec.entries().filter(|(a, _)| ranges.permits_random(*a)).count() as u128;
        reserved += block.spec.free(|a| ranges.permits_random(a)) as u128;
    }
    if used + reserved < ranges.size() {
        return Ok(());
    }
    let (family, range, size) = (ranges.family(), format!("range {ranges}"), ranges.size());
    Err(Error::Exhausted(Box::new(Exhaustion { family, range, size, used, reserved, out_of_reach: 0, because: None })))
}
