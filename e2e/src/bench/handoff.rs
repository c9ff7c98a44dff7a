//! How soon a waiting ADD has its fixed address after the old pod's DEL on another node.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::ground::Ground;
use super::seat::{Seat, attachment};

/// Time for the new pod's ADD to find the holder and to wait for its end.
const BEGIN: Duration = Duration::from_millis(300);

/// From DEL's answer to ADD's, `turns` times: the address goes to and fro between `seat` and a second node.
pub(super) async fn measure(ground: &Ground, seat: &Seat<'_>, turns: usize) -> Result<Vec<Duration>> {
    let Some(annotations) = seat.fixed_annotations() else { return Ok(Vec::new()) };
    let other = Seat::bare(ground, seat.way, &format!("{}-other", seat.node())).await?;
    let mut times = Vec::new();
    let old = ground.create_pod(seat.node(), format!("{}-from", seat.node()), annotations.clone()).await?;
    let new = ground.create_pod(other.node(), format!("{}-to", other.node()), annotations).await?;
    let mut ends = [(seat, attachment(&old)), (&other, attachment(&new))];
    ends[0].0.call("ADD", &ends[0].1).await?;
    for _ in 0..turns {
        let [(from, leaving), (to, coming)] = &ends;
        let add = async {
            to.call("ADD", coming).await?;
            anyhow::Ok(Instant::now())
        };
        let del = async {
            tokio::time::sleep(BEGIN).await;
            from.call("DEL", leaving).await?;
            anyhow::Ok(Instant::now())
        };
        let (added, deleted) = tokio::try_join!(add, del)?;
        times.push(added.saturating_duration_since(deleted));
        ends.reverse();
    }
    ends[0].0.call("DEL", &ends[0].1).await?;
    ground.remove_pod(&old).await?;
    ground.remove_pod(&new).await?;
    Ok(times)
}
