//! Which nodes there are, and whether they work.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;

use crate::claim::NodeState;
use crate::driver::node_state;

/// All nodes, by name.
#[derive(Default)]
pub(in crate::collector) struct Nodes(BTreeMap<String, Record>);

struct Record {
    uid: Option<String>,
    state: NodeState,
}

impl Nodes {
    pub(in crate::collector) fn add(&mut self, node: Node) {
        let state = node_state(Some(&node), None);
        if let Some(name) = node.metadata.name {
            self.0.insert(name, Record { uid: node.metadata.uid, state });
        }
    }

    pub(in crate::collector) fn exists(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A node's state, compared by UID where one was recorded.
    pub(in crate::collector) fn state(&self, name: &str, uid: Option<&str>) -> NodeState {
        let same = |record: &&Record| uid.is_none_or(|uid| record.uid.as_deref() == Some(uid));
        self.0.get(name).filter(same).map_or(NodeState::Deleted, |record| record.state)
    }
}
