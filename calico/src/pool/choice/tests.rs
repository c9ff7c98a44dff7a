use super::*;
use serde_json::{Value, json};

fn pool(name: &str, cidr: &str, fields: Value) -> IPPool {
    let mut spec = json!({ "cidr": cidr });
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    IPPool::new(name, serde_json::from_value(spec).unwrap())
}

fn pools() -> Vec<IPPool> {
    vec![
        pool("rack", "10.3.0.0/16", json!({"nodeSelector": "rack == 'r1'"})),
        pool("default", "10.1.0.0/16", json!({"nodeSelector": "all()"})),
        pool("manual", "10.2.0.0/16", json!({"assignmentMode": "Manual"})),
        pool("team", "10.4.0.0/16", json!({"namespaceSelector": "team == 'blue'"})),
        pool("off", "10.5.0.0/16", json!({"disabled": true})),
        pool("lb", "10.6.0.0/16", json!({"allowedUses": ["LoadBalancer"]})),
        pool("six", "fd00::/48", json!({})),
    ]
}

struct Ask {
    requested: Vec<PoolRef>,
    node: BTreeMap<String, String>,
    namespace: BTreeMap<String, String>,
    use_: AllowedUse,
    automatic: bool,
}

fn ask(requested: &[&str]) -> Ask {
    Ask {
        requested: requested.iter().map(|text| text.parse().unwrap()).collect(),
        node: BTreeMap::new(),
        namespace: BTreeMap::new(),
        use_: AllowedUse::Workload,
        automatic: true,
    }
}

impl Ask {
    fn of(&self, pools: &[IPPool], family: Family) -> Result<Vec<String>, PoolError> {
        let request = PoolRequest {
            family,
            requested: &self.requested,
            use_: self.use_,
            node_labels: &self.node,
            namespace_labels: &self.namespace,
            automatic: self.automatic,
        };
        Ok(eligible(pools, &request)?.into_iter().map(name).collect())
    }
}

#[test]
fn without_a_request_every_automatic_pool_that_selects_node_and_namespace_is_used_in_order_of_names() {
    assert_eq!(ask(&[]).of(&pools(), Family::V4).unwrap(), ["default"]);
    assert_eq!(ask(&[]).of(&pools(), Family::V6).unwrap(), ["six"]);
    let mut blue = ask(&[]);
    blue.node.insert("rack".to_owned(), "r1".to_owned());
    blue.namespace.insert("team".to_owned(), "blue".to_owned());
    assert_eq!(blue.of(&pools(), Family::V4).unwrap(), ["default", "rack", "team"]);
}

#[test]
fn requested_pools_are_used_in_order_whatever_their_selectors_say() {
    assert_eq!(ask(&["rack", "10.2.0.0/16", "rack"]).of(&pools(), Family::V4).unwrap(), ["rack", "manual"]);
}

#[test]
fn an_explicit_address_may_come_from_any_usable_pool() {
    let explicit = Ask { automatic: false, ..ask(&[]) };
    assert_eq!(explicit.of(&pools(), Family::V4).unwrap(), ["default", "manual", "rack", "team"]);
}

#[test]
fn a_requested_pool_that_cannot_be_used_is_an_error_that_says_why() {
    let error = |requested: &[&str], family| ask(requested).of(&pools(), family).unwrap_err().to_string();
    assert_eq!(error(&["default", "off"], Family::V4), "requested IPPool off (10.5.0.0/16) is disabled");
    assert_eq!(error(&["six"], Family::V4), "requested IPPool six (fd00::/48) is not an IPv4 pool");
    assert_eq!(
        error(&["lb"], Family::V4),
        "requested IPPool lb (10.6.0.0/16) does not allow use Workload, only LoadBalancer"
    );
    let unknown = error(&["10.99.0.0/16"], Family::V4);
    assert!(
        unknown.starts_with(
            "the requested IPPool (10.99.0.0/16) does not exist; the pools are: rack (10.3.0.0/16), default"
        ),
        "{unknown}"
    );
    assert_eq!(
        ask(&["x"]).of(&[], Family::V4).unwrap_err().to_string(),
        "the requested IPPool (x) does not exist; the pools are: there is none"
    );
}

#[test]
fn among_requested_pools_those_for_another_use_are_passed_over() {
    assert_eq!(ask(&["lb", "default"]).of(&pools(), Family::V4).unwrap(), ["default"]);
}

#[test]
fn if_no_pool_fits_the_error_says_why_each_does_not() {
    let pools: Vec<_> = pools().into_iter().filter(|pool| name(pool) != "default").collect();
    let error = ask(&[]).of(&pools, Family::V4).unwrap_err().to_string();
    assert_eq!(
        error,
        "no IPv4 IPPool can be used: lb (10.6.0.0/16) does not allow use Workload, only LoadBalancer, \
         manual (10.2.0.0/16) is for requests that name it only (assignmentMode Manual), \
         off (10.5.0.0/16) is disabled, \
         rack (10.3.0.0/16) does not select this node (nodeSelector rack == 'r1'), \
         team (10.4.0.0/16) does not select this namespace (namespaceSelector team == 'blue')"
    );
    let none = ask(&[]).of(&[], Family::V6).unwrap_err().to_string();
    assert_eq!(none, "no IPv6 IPPool can be used: there is none");
}

#[test]
fn a_selector_that_cannot_be_read_stops_automatic_choice_and_names_the_pool() {
    let mut pools = pools();
    pools.push(pool("typo", "10.7.0.0/16", json!({"nodeSelector": "rack = 'r1'"})));
    assert_eq!(
        ask(&[]).of(&pools, Family::V4).unwrap_err().to_string(),
        "IPPool typo has a nodeSelector that cannot be read: \"rack = 'r1'\": expected == at position 5, found '='"
    );
    assert_eq!(ask(&["typo"]).of(&pools, Family::V4).unwrap(), ["typo"]);
}

#[test]
fn a_pool_that_is_going_away_or_not_allocatable_is_not_used() {
    let mut going = pool("going", "10.1.0.0/16", json!({}));
    going.metadata =
        serde_json::from_value(json!({"name": "going", "deletionTimestamp": "2026-11-23T22:40:56Z"})).unwrap();
    let mut twin = pool("twin", "10.2.0.0/16", json!({}));
    twin.status = serde_json::from_value(json!({"conditions": [{"type": "Allocatable", "status": "False"}]})).unwrap();
    assert_eq!(
        ask(&[]).of(&[going, twin], Family::V4).unwrap_err().to_string(),
        "no IPv4 IPPool can be used: going (10.1.0.0/16) is being deleted, \
         twin (10.2.0.0/16) is marked as not allocatable in its status"
    );
}
