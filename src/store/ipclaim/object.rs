//! The kind `IPClaim`: a claim as a Kubernetes object, and the name by which everybody finds it.
//!
//! One address of one network has exactly one name, so that creating the object is claiming the address.

use std::borrow::Cow;
use std::net::IpAddr;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::{ClusterResourceScope, ObjectMeta};
use kube::{CustomResource, CustomResourceExt as _, Resource};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::claim::Claim;
use crate::cni::names::is_dns_subdomain;

/// Label of an IPClaim: its network, in the form of [`network_token`].
pub const NETWORK_LABEL: &str = "kube-ipam.io/network";

/// What the tokens of networks begin with whose names cannot be labels.
const HASHED: &str = "sha256-";
/// Hexadecimal digits of such a hash: 128 bits.
const DIGITS: usize = 32;
/// Characters of the longest IPv6 address.
const LONGEST_ADDRESS: usize = 39;
/// Kubernetes' limit for a label's value.
const LONGEST_LABEL: usize = 63;

/// Who owns one fixed address, and which pod has it now.
#[derive(CustomResource, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "kube-ipam.io",
    version = "v1alpha1",
    kind = "IPClaim",
    plural = "ipclaims",
    singular = "ipclaim",
    derive = "PartialEq",
    doc = "A claim on one fixed address: who owns it, and which pod has it now. kube-ipam writes it; what it says decides.",
    printcolumn = r#"{"name": "Address", "type": "string", "jsonPath": ".spec.address"}"#,
    printcolumn = r#"{"name": "Owner", "type": "string", "jsonPath": ".spec.ownedBy"}"#,
    printcolumn = r#"{"name": "Holder", "type": "string", "jsonPath": ".spec.holder.pod"}"#,
    printcolumn = r#"{"name": "Node", "type": "string", "jsonPath": ".spec.holder.node"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".spec.created"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct IPClaimSpec {
    /// The ledger's network.
    pub network: String,
    /// The owner in words, for people; written anew with every change, and never read.
    #[serde(default)]
    pub owned_by: String,
    /// The claim itself.
    #[serde(flatten)]
    pub claim: Claim,
}

impl IPClaimSpec {
    /// `claim` as it is stored for `network`.
    pub fn new(network: &str, claim: &Claim) -> Self {
        Self { network: network.to_owned(), owned_by: claim.owner.to_string(), claim: claim.clone() }
    }

    /// The object of this claim, with whatever else an earlier version of it bears in `metadata`.
    pub fn object(self, metadata: ObjectMeta) -> IPClaim {
        let name = object_name(&self.network, self.claim.address);
        let mut metadata = ObjectMeta { name: Some(name), managed_fields: None, ..metadata };
        let labels = metadata.labels.get_or_insert_default();
        labels.insert(NETWORK_LABEL.to_owned(), network_token(&self.network).into_owned());
        IPClaim { metadata, spec: self }
    }
}

/// An IPClaim of a list, of which only the name is known yet: one that cannot be read costs itself, not the list.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub(super) struct Unread {
    pub metadata: ObjectMeta,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Unread {
    pub(super) fn read(self) -> Result<IPClaim, serde_json::Error> {
        let spec = self.rest.get("spec").cloned().unwrap_or_default();
        Ok(IPClaim { metadata: self.metadata, spec: serde_json::from_value(spec)? })
    }
}

impl Resource for Unread {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        IPClaim::kind(&())
    }

    fn group(_: &()) -> Cow<'_, str> {
        IPClaim::group(&())
    }

    fn version(_: &()) -> Cow<'_, str> {
        IPClaim::version(&())
    }

    fn plural(_: &()) -> Cow<'_, str> {
        IPClaim::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The definition of the kind, as `yaml/ipclaims.yaml` has it.
pub fn crd() -> CustomResourceDefinition {
    IPClaim::crd()
}

/// Name of the object for an address: `kube-subnet.10-244-0-216`,
/// `kube-subnet.fd00-0010-0244-0000-0000-0000-0000-0216`. The address is what follows the last dot.
pub fn object_name(network: &str, address: IpAddr) -> String {
    let address = match address {
        IpAddr::V4(v4) => v4.octets().map(|octet| octet.to_string()).join("-"),
        IpAddr::V6(v6) => v6.segments().map(|segment| format!("{segment:04x}")).join("-"),
    };
    format!("{}.{address}", network_token(network))
}

/// The address that an object of this name is the claim on.
pub(super) fn address_of(name: &str) -> Option<IpAddr> {
    let (_, part) = name.rsplit_once('.')?;
    let address = part.replace('-', if part.matches('-').count() == 3 { "." } else { ":" }).parse().ok()?;
    object_name("", address).strip_suffix(part)?.ends_with('.').then_some(address)
}

/// A network as a label's value and as the beginning of a name: itself where that is permitted, else a hash.
/// Two networks never have the same.
pub fn network_token(network: &str) -> Cow<'_, str> {
    if network.len() <= LONGEST_LABEL && is_dns_subdomain(network) && !network.starts_with(HASHED) {
        return network.into();
    }
    let digest: String = Sha256::digest(network).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{HASHED}{}", &digest[..DIGITS]).into()
}

impl JsonSchema for IPClaimSpec {
    fn schema_name() -> Cow<'static, str> {
        "IPClaimSpec".into()
    }

    /// Fields of newer versions are kept where [`Claim`] and its holder keep them.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let name = |what: &str| json_schema!({"type": "string", "minLength": 1, "description": what});
        let text = |what: &str| json_schema!({"type": "string", "description": what});
        let time = |what: &str| json_schema!({"type": "string", "format": "date-time", "description": what});
        let count =
            |what: &str| json_schema!({"type": "integer", "format": "int64", "minimum": 0, "description": what});
        let owner = json_schema!({
            "type": "object",
            "description": "The workload that owns the address; it outlives its pods.",
            "required": ["namespace", "group", "kind", "name"],
            "properties": {
                "namespace": name("The pods' namespace."),
                "group": text("API group of the kind; empty for the core group."),
                "version": text("API version of the kind; says nothing about identity."),
                "kind": name("Deployment, StatefulSet, Pod, ..."),
                "name": name("The object's name."),
                "ordinal": count("Which pod of a StatefulSet."),
            },
        });
        let holder = json_schema!({
            "type": "object",
            "description": "The pod that has the address now; absent while none has.",
            "x-kubernetes-preserve-unknown-fields": true,
            "required": ["podUid", "pod", "containerId", "interface", "node", "since"],
            "properties": {
                "podUid": text("UID of the pod."),
                "pod": name("Name of the pod, in the owner's namespace."),
                "containerId": text("Container id of its sandbox; empty until there is one."),
                "interface": text("Interface inside the pod."),
                "node": text("Name of its node."),
                "nodeUid": text("UID of the Node object."),
                "since": time("When it got the address."),
            },
        });
        let successor = json_schema!({
            "type": "object",
            "description": "The pod that an update hands the address over to; no other pod takes it until then.",
            "x-kubernetes-preserve-unknown-fields": true,
            "required": ["podUid", "pod", "until"],
            "properties": {
                "podUid": text("UID of the pod."),
                "pod": name("Name of the pod, in the owner's namespace."),
                "until": time("The end of the reservation. It ends before if the pod ends, or its node is not Ready for a minute."),
            },
        });
        json_schema!({
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": true,
            "required": ["network", "address", "owner", "created", "generation"],
            "properties": {
                "network": name("The network: ipam.name of the CNI configuration."),
                "address": json_schema!({
                    "type": "string", "maxLength": LONGEST_ADDRESS, "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}],
                    "description": "The address; the object's name must be the one that belongs to it.",
                }),
                "ownedBy": text("The owner in words. Written for people, never read."),
                "owner": owner,
                "holder": holder,
                "successor": successor,
                "created": time("When the owner got it."),
                "generation": count("Counts the holders."),
                "origin": text("What made it: annotation, or nothing where a person did."),
                "moved": text("The ledger that the claim was carried to; what stands there decides."),
                "contested": time("Since when its node may still release it for a pod that is gone, or has another address."),
                "ownerGone": time("Since when nobody holds it and its owner is gone; ten minutes later it is dropped."),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim() -> Claim {
        let owner = json!({"namespace": "default", "group": "apps", "kind": "Deployment", "name": "web"});
        serde_json::from_value(json!({
            "address": "10.244.0.216", "owner": owner, "created": "2026-11-24T02:01:28Z", "generation": 3,
            "later": {"kept": true},
            "holder": {
                "podUid": "u", "pod": "web-1", "containerId": "c", "interface": "eth0", "node": "n1",
                "since": "2026-11-24T02:01:28.5Z", "mood": "fine",
            },
        }))
        .unwrap()
    }

    #[test]
    fn one_address_has_one_name_and_two_never_share_one() {
        let name = |network: &str, address: &str| object_name(network, address.parse().unwrap());
        assert_eq!(name("kube-subnet", "10.244.0.216"), "kube-subnet.10-244-0-216");
        let expanded = "kube-subnet.fd00-0010-0244-0000-0000-0000-0000-0216";
        assert_eq!(name("kube-subnet", "fd00:10:244::216"), expanded);
        assert_eq!(name("kube-subnet", "fd00:0010:244:0:0::0216"), expanded);
        assert_ne!(name("a", "fd00::1"), name("a", "fd00::1:0"));
        assert_ne!(name("net", "10.1.2.3"), name("net.10", "1.2.3.4"));
    }

    #[test]
    fn a_name_tells_its_address() {
        for (network, address) in [("kube-subnet", "10.244.0.216"), ("Net.10", "fd00:10:244::216"), ("a-1", "::1")] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(address_of(&object_name(network, address)), Some(address));
        }
        for name in
            ["kube-subnet", "kube-subnet.10-244-0", "kube-subnet.10-244-0-256", "kube-subnet.fd00-1", "a.01-2-3-4"]
        {
            assert_eq!(address_of(name), None, "{name}");
        }
    }

    #[test]
    fn every_network_has_a_name_that_kubernetes_permits() {
        let long = "n".repeat(200);
        let names = ["Net", "net", "net_1", "net-", "net.", "a..b", "sha256-0", &long, &long[1..]];
        let mut seen = std::collections::BTreeSet::new();
        for network in names {
            let token = network_token(network);
            assert!(token.len() <= LONGEST_LABEL && is_dns_subdomain(&token), "{token}");
            assert!(is_dns_subdomain(&object_name(network, "fd00::1".parse().unwrap())));
            assert!(seen.insert(token.into_owned()), "{network}");
        }
    }

    #[test]
    fn a_claim_comes_back_as_it_was_with_the_fields_of_newer_versions() {
        let object = IPClaimSpec::new("net", &claim()).object(ObjectMeta::default());
        let stored: Value = serde_json::to_value(&object).unwrap();
        assert_eq!(stored["spec"]["ownedBy"], "Deployment default/web");
        assert_eq!(
            (&stored["spec"]["later"]["kept"], &stored["spec"]["holder"]["mood"]),
            (&json!(true), &json!("fine"))
        );
        assert_eq!(stored["metadata"]["labels"][NETWORK_LABEL], "net");
        let read: IPClaim = serde_json::from_value(stored).unwrap();
        assert_eq!(read.spec.claim, claim());
    }

    #[test]
    fn what_somebody_else_put_on_the_object_stays_there() {
        let labels = [("team".to_owned(), "db".to_owned())].into();
        let finalizers = Some(vec!["example.org/keep".to_owned()]);
        let metadata = ObjectMeta { labels: Some(labels), finalizers, ..ObjectMeta::default() };
        let object = IPClaimSpec::new("net", &claim()).object(metadata);
        let labels = object.metadata.labels.unwrap();
        assert_eq!((labels.len(), labels["team"].as_str()), (2, "db"));
        assert!(object.metadata.finalizers.is_some());
    }

    /// Regenerate with `cargo test -p kube-ipam ipclaims_yaml -- --ignored`.
    fn file() -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml/ipclaims.yaml")
    }

    fn generated() -> String {
        let head = "# The claims of kube-ipam as Kubernetes objects, for clusters whose conflist names no etcdConfig.\n\
                    # Generated from the type in src/store/ipclaim/object.rs; do not edit.\n";
        format!("{head}{}", serde_yaml_ng::to_string(&crd()).unwrap())
    }

    #[test]
    fn the_manifest_is_the_one_that_the_type_gives() {
        assert_eq!(std::fs::read_to_string(file()).unwrap_or_default(), generated());
    }

    #[test]
    #[ignore = "writes yaml/ipclaims.yaml"]
    fn ipclaims_yaml() {
        std::fs::write(file(), generated()).unwrap();
    }

    #[test]
    fn kubectl_shows_who_has_what() {
        let crd = serde_json::to_value(crd()).unwrap();
        assert_eq!(crd["metadata"]["name"], "ipclaims.kube-ipam.io");
        assert_eq!(crd["spec"]["scope"], "Cluster");
        let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap();
        let names: Vec<&str> = columns.iter().map(|column| column["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["Address", "Owner", "Holder", "Node", "Age"]);
        let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        for kept in [spec, &spec["properties"]["holder"]] {
            assert_eq!(kept["x-kubernetes-preserve-unknown-fields"], true, "{kept}");
        }
    }
}
