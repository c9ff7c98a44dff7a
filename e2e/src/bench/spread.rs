//! How a set of times is spread.

use std::time::Duration;

use serde::Serialize;

/// Percentiles of measured times, by nearest rank: each is a time that was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// How many times were measured.
    pub count: usize,
    /// Half of the times are not above it, in milliseconds.
    pub p50: f64,
    /// 99 of 100 times are not above it, in milliseconds. Of fewer than 100 times it is the longest.
    pub p99: f64,
}

impl Spread {
    /// The spread of these times; `None` if there are none.
    pub fn of(times: &[Duration]) -> Option<Spread> {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100).max(1);
            sorted.get(rank - 1).map(|time| milliseconds(*time))
        };
        Some(Spread { count: sorted.len(), p50: at(50)?, p99: at(99)? })
    }
}

/// Milliseconds to two digits after the point.
pub(super) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 100_000.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(times: impl IntoIterator<Item = u64>) -> Option<Spread> {
        Spread::of(&times.into_iter().map(Duration::from_millis).collect::<Vec<_>>())
    }

    #[test]
    fn percentiles_are_times_that_were_measured() {
        assert_eq!(spread([]), None);
        assert_eq!(spread([7]), Some(Spread { count: 1, p50: 7.0, p99: 7.0 }));
        assert_eq!(spread((1..=100).rev()), Some(Spread { count: 100, p50: 50.0, p99: 99.0 }));
        assert_eq!(spread([3, 1, 2]), Some(Spread { count: 3, p50: 2.0, p99: 3.0 }));
    }
}
