//! Calico's migration from its older API group to the newer one, under load: the real API server with stand-in nodes, and
//! its audit log for a judge. Aborted half-way first, then to its end.

use e2e::lab::Lab;
use e2e::run::{Errand, Tier, tiers};
use e2e::scenarios::migration::{goes_through, is_aborted};

fn main() -> std::process::ExitCode {
    tiers(vec![Tier::new("migration", Lab::that_moves).bare().then(&[
        Errand { name: "aborted_half_way_it_was_as_if_it_had_not_been", run: |lab| Box::pin(is_aborted(lab)) },
        Errand { name: "no_allocation_is_lost_and_none_is_written_to_v1", run: |lab| Box::pin(goes_through(lab)) },
    ])])
}
