//! Who an address is assigned to, as it goes into a block's attributes.

use std::collections::BTreeMap;

use jiff::Timestamp;

/// The party an address is assigned to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Handle id: `<network>.<container id>` for a pod. What a release names.
    pub handle: String,
    /// What people and controllers read: `pod`, `namespace`, `node`, `timestamp`, or any more keys.
    pub secondary: BTreeMap<String, String>,
}

impl Holder {
    /// A pod on a node, described with the four keys that Calico's own plugin writes.
    pub fn pod(handle: impl Into<String>, namespace: &str, pod: &str, node: &str, now: Timestamp) -> Self {
        let mut holder = Self::node(handle, node, now);
        holder.secondary.insert("namespace".to_owned(), namespace.to_owned());
        holder.secondary.insert("pod".to_owned(), pod.to_owned());
        holder
    }

    /// A container on a node that belongs to no pod.
    pub fn node(handle: impl Into<String>, node: &str, now: Timestamp) -> Self {
        let secondary = [("node", node.to_owned()), ("timestamp", timestamp(now))];
        Self { handle: handle.into(), secondary: secondary.map(|(key, value)| (key.to_owned(), value)).into() }
    }
}

/// A time as Calico writes it in `secondary`: `2026-11-23 22:40:56.68604405 +0000 UTC`, always UTC, trailing
/// zeros of the fraction left out.
pub fn timestamp(now: Timestamp) -> String {
    now.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string()
}

/// The time that such a text says; `None` if it is none.
pub fn parse_timestamp(text: &str) -> Option<Timestamp> {
    let (time, _) = text.split_once(" +0000 UTC")?;
    format!("{}Z", time.replacen(' ', "T", 1)).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_reads_like_calicos() {
        let at = |text: &str| timestamp(text.parse().unwrap());
        assert_eq!(at("2026-11-23T22:40:56.686044050Z"), "2026-11-23 22:40:56.68604405 +0000 UTC");
        assert_eq!(at("2026-11-23T22:41:00Z"), "2026-11-23 22:41:00 +0000 UTC");
    }

    #[test]
    fn the_time_that_calico_wrote_is_read() {
        for text in ["2026-11-23T22:40:56.68604405Z", "2026-11-23T22:41:00Z"] {
            let time: Timestamp = text.parse().unwrap();
            assert_eq!(parse_timestamp(&timestamp(time)), Some(time));
        }
        // Go's own form, with the reading of its monotonic clock behind it.
        let go = parse_timestamp("2026-11-23 22:40:56.5 +0000 UTC m=+0.03");
        assert_eq!(go, Some("2026-11-23T22:40:56.5Z".parse().unwrap()));
        assert_eq!((parse_timestamp("now"), parse_timestamp("")), (None, None));
    }
}
