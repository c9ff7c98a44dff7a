//! `yaml/policy.yaml` on a real API server: what the plugin would refuse is refused at once and in its words, and
//! nothing else is.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use e2e::manifests::{apply, directory, documents};
use e2e::real::{ControlPlane, ControlPlaneOptions, Crds};
use e2e::tools::Tools;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use kube_ipam::netconf::NetConf;
use kube_ipam::pod::{FixedAddresses, FixedRequest, Owner, check_namespace};
use serde_json::{Value, json};

/// What the namespace `limited` allows.
const LIMITED: &str = "10.244.1.0/24, 10.244.2.9,fd00:10:244::/112, 10.244.4.20-10.244.4.29,10.244.4.30/31,\
                       fd00:10:244::2:5 - fd00:10:244::2:f";
const LIMIT: Duration = Duration::from_secs(60);

/// Samples that are let in with a warning.
const WARNINGS: [&str; 4] = [
    "annotation-of-the-workload.yaml",
    "daemonset-that-waits-for-itself.yaml",
    "host-network.yaml",
    "update-that-waits-for-itself.yaml",
];

struct Ground {
    client: Client,
    _control_plane: ControlPlane,
}

impl Ground {
    /// With the policy in force; `None` if it cannot run here, which has been said.
    async fn prepare() -> Option<Ground> {
        kube_ipam::store::choose_tls();
        let tools = Tools::or_skip().unwrap()?;
        let options = ControlPlaneOptions { crds: Crds::None, ..Default::default() };
        let control_plane = ControlPlane::start(tools, options).await.unwrap();
        let ground = Ground { client: control_plane.client(), _control_plane: control_plane };
        ground.namespace("kube-system", json!({})).await;
        ground.namespace("open", json!({})).await;
        ground.namespace("limited", json!({"kube-ipam.allowed": LIMITED})).await;
        for document in documents("policy.yaml").unwrap() {
            apply(&ground.client, &document).await.unwrap();
        }
        ground.in_force("kube-ipam-annotations", "open", &pod(json!({"kube-ipam.ip": "x"}))).await;
        Some(ground)
    }

    async fn namespace(&self, name: &str, annotations: Value) {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": annotations},
        });
        let api: Api<Namespace> = Api::all(self.client.clone());
        api.patch(name, &PatchParams::apply("e2e").force(), &Patch::Apply(&namespace)).await.unwrap();
        // No controller makes it, and without it no pod is admitted.
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), name);
        let account = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
        let _ = accounts.create(&PostParams::default(), &account).await;
    }

    /// A policy begins to hold a moment after it was written.
    async fn in_force(&self, policy: &str, namespace: &str, illegal: &Value) {
        let started = Instant::now();
        while self.refused(namespace, illegal).await.is_none() {
            assert!(started.elapsed() < LIMIT, "{policy} is not in force");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn api(&self, namespace: &str, object: &Value) -> Api<DynamicObject> {
        let version = object["apiVersion"].as_str().unwrap();
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let kind = GroupVersionKind::gvk(group, version, object["kind"].as_str().unwrap());
        Api::namespaced_with(self.client.clone(), namespace, &ApiResource::from_gvk(&kind))
    }

    async fn create(&self, namespace: &str, object: &Value, dry_run: bool) -> Result<DynamicObject, String> {
        let parameters = PostParams { dry_run, ..Default::default() };
        let object: DynamicObject = serde_json::from_value(object.clone()).unwrap();
        let created = self.api(namespace, &serde_json::to_value(&object).unwrap()).create(&parameters, &object).await;
        created.map_err(|error| error.to_string())
    }

    /// What the policy says to it, if anything.
    async fn refused(&self, namespace: &str, object: &Value) -> Option<String> {
        let said = self.create(namespace, object, true).await.err()?;
        assert!(said.contains("ValidatingAdmissionPolicy"), "refused by something else: {said}");
        Some(said)
    }

    /// A request as it is, by `user` if one is named; status and body of the answer, and its warnings.
    async fn send(&self, request: http::request::Builder, user: Option<&str>, body: &Value) -> (u16, Value, String) {
        let request = match user {
            Some(user) => request.header("impersonate-user", user),
            None => request,
        };
        let request = request.body(kube::client::Body::from(serde_json::to_vec(body).unwrap())).unwrap();
        let answer = self.client.send(request).await.unwrap();
        let warnings: Vec<String> =
            answer.headers().get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned()).collect();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect_bytes().await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default(), warnings.join("\n"))
    }

    /// What is warned of when it is made. It is let in.
    async fn warnings(&self, namespace: &str, object: &Value) -> String {
        let (version, kind) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
        let root = if version == "v1" { "api" } else { "apis" };
        let path = format!("/{root}/{version}/namespaces/{namespace}/{}s?dryRun=All", kind.to_lowercase());
        let request = http::Request::post(path).header("content-type", "application/json");
        let (status, body, warnings) = self.send(request, None, object).await;
        assert!((200..300).contains(&status), "{status}: {body}");
        warnings
    }

    /// Scales a workload, and says how that was answered.
    async fn scale(&self, workload: &str, replicas: u64, user: Option<&str>) -> (u16, String) {
        let (plural, name) = workload.split_once('/').unwrap_or((workload, "w"));
        let path = format!("/apis/apps/v1/namespaces/open/{plural}/{name}/scale");
        // As autoscalers do, who may not patch.
        let scale = json!({
            "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": name, "namespace": "open"},
            "spec": {"replicas": replicas},
        });
        let request = http::Request::put(path).header("content-type", "application/json");
        let (status, body, _) = self.send(request, user, &scale).await;
        (status, body["message"].as_str().unwrap_or_default().to_owned())
    }

    async fn is_legal(&self, namespace: &str, object: &Value) {
        let said = self.create(namespace, object, true).await.err();
        assert_eq!(said, None, "{object}");
    }
}

fn pod(annotations: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "annotations": annotations},
        "spec": {"containers": [{"name": "c", "image": "nginx:latest"}]},
    })
}

/// A workload of this kind whose pods ask for addresses.
fn workload(version: &str, kind: &str, replicas: Option<u64>, annotations: Value) -> Value {
    let template = json!({
        "metadata": {"labels": {"app": "a"}, "annotations": annotations},
        "spec": {"containers": [{"name": "c", "image": "nginx:latest"}], "restartPolicy": if version.starts_with("batch") { "Never" } else { "Always" }},
    });
    let mut spec = match kind {
        "CronJob" => json!({"schedule": "0 3 * * *", "jobTemplate": {"spec": {"template": template}}}),
        "Job" => json!({"template": template}),
        "ReplicationController" => json!({"selector": {"app": "a"}, "template": template}),
        _ => json!({"selector": {"matchLabels": {"app": "a"}}, "template": template}),
    };
    if let Some(replicas) = replicas {
        spec["replicas"] = replicas.into();
    }
    if kind == "Deployment" {
        spec["strategy"] = json!({"type": "Recreate"});
    }
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": "w"}, "spec": spec})
}

/// What the plugin says to a pod with these annotations in the namespace `limited`, or in one without an annotation.
fn plugin_says(annotations: &Value, limited: bool) -> Result<(), String> {
    let ipam =
        json!({"type": "kube-ipam", "ranges": [[{"subnet": "10.244.0.0/16"}], [{"subnet": "fd00:10:244::/64"}]]});
    let conf = json!({"name": "n", "cniVersion": "0.3.1", "type": "calico", "ipam": ipam});
    let net = NetConf::parse(&conf, "kube-ipam").unwrap();
    let metadata = json!({"name": "p", "namespace": "limited", "annotations": annotations});
    let pod: Pod = serde_json::from_value(json!({"metadata": metadata})).unwrap();
    let of_namespace = [("kube-ipam.allowed".to_owned(), LIMITED.to_owned())];
    let judge = || {
        let request = FixedRequest::parse(pod.metadata.annotations.as_ref().unwrap(), &net.ipam)?;
        Owner::of(&pod)?;
        let of_namespace = limited.then(|| of_namespace.into());
        request.map_or(Ok(()), |r| check_namespace(&r, "limited", of_namespace.as_ref(), FixedAddresses::AnyNamespace))
    };
    judge().map_err(|error| error.to_string())
}

#[tokio::test]
async fn every_sample_is_refused_in_the_plugins_words() {
    let Some(ground) = Ground::prepare().await else { return };
    let mut samples = 0;
    for file in std::fs::read_dir(directory().join("illegal")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        for sample in documents(&format!("illegal/{name}")).unwrap() {
            samples += 1;
            if WARNINGS.contains(&name.as_str()) {
                continue; // see below
            }
            let (namespace, limited) =
                if name == "not-allowed-here.yaml" { ("limited", true) } else { ("open", false) };
            let said = ground.refused(namespace, &sample).await.unwrap_or_else(|| panic!("{name} is let in"));
            if sample["kind"] == "Pod" {
                let plugin = plugin_says(&sample["metadata"]["annotations"], limited).unwrap_err();
                // The plugin guesses what was meant by a misspelt name; the policy lists what there is.
                let words = if name == "misspelt.yaml" {
                    plugin.split(';').next().unwrap().replace("\"10.244.0.216\" ", "").replace(':', "")
                } else {
                    plugin.clone()
                };
                assert!(said.contains(&words), "{name}:\n policy: {said}\n plugin: {plugin}");
            } else {
                assert!(said.contains("fewer addresses than 3 replicas need"), "{said}");
            }
        }
    }
    assert!(samples >= 20, "only {samples} samples were judged");
}

#[tokio::test]
async fn policy_and_plugin_agree_on_what_is_legal() {
    let Some(ground) = Ground::prepare().await else { return };
    let cases = [
        json!({}),
        json!({"other.io/kube-ipam": "x"}),
        json!({"kube-ipam.ip": "10.244.1.5"}),
        json!({"kube-ipam.ip": " 10.244.1.5 , 10.244.2.9 ", "kube-ipam.netmask": "255.255.0.0", "kube-ipam.gateway": "10.244.0.1"}),
        json!({"kube-ipam.ip": "10.244.1.5,fd00:10:244::5", "kube-ipam.netmask": "16,/64"}),
        json!({"kube-ipam.ip": "10.244.1.5", "kube-ipam.netmask": "/16", "kube-ipam.owner": "mail-2.example"}),
        json!({"kube-ipam.ip": "FD00:10:244:0::5", "kube-ipam.gateway": "fd00:10:244::1"}),
        json!({"kube-ipam.ip": "10.244.3.5"}),
        json!({"kube-ipam.ip": "10.244.1.5,10.244.2.10"}),
        json!({"kube-ipam.ip": "fd00:10:244::1:5"}),
        json!({"kube-ipam.ip": ""}),
        json!({"kube-ipam.ip": "::ffff:10.244.1.5"}),
        json!({"kube-ipam.ip": "010.244.1.5"}),
        json!({"kube-ipam.ip": "fe80::1%eth0"}),
        json!({"kube-ipam.ip": "10.244.1.5", "kube-ipam.netmask": "129"}),
        json!({"kube-ipam.ip": "10.244.1.5", "kube-ipam.netmask": "255.255.0.0.0"}),
        json!({"kube-ipam.ip": "10.244.1.5", "kube-ipam.netmask": "0016"}),
        json!({"kube-ipam.ip": "10.244.1.5", "kube-ipam.gateway": "10.244.0.1,"}),
        json!({"kube-ipam.ip": "10.244.1.5", "kube-ipam.owner": ""}),
        json!({"kube-ipam.ip": "10.244.1.5", "kube-ipam.owner": "-a"}),
        json!({"kube-ipam.IP": "10.244.1.5"}),
        json!({"kube-ipam.ip": "10.244.1.0/25"}),
        json!({"kube-ipam.ip": "10.244.1.250-10.244.1.255,10.244.3.0"}),
        json!({"kube-ipam.ip": "10.244.1.250 - 10.244.1.255, 10.244.2.9/32"}),
        json!({"kube-ipam.ip": "10.244.1.250-10.244.2.1"}),
        json!({"kube-ipam.ip": "10.244.4.20-10.244.4.29"}),
        json!({"kube-ipam.ip": "10.244.4.20-10.244.4.30"}),
        json!({"kube-ipam.ip": "10.244.4.18-10.244.4.20"}),
        json!({"kube-ipam.ip": "10.244.4.29-10.244.4.32"}),
        json!({"kube-ipam.ip": "10.244.1.0/24,10.244.4.20"}),
        json!({"kube-ipam.ip": "10.244.1.0/24,10.244.4.20-10.244.4.21"}),
        json!({"kube-ipam.ip": "10.244.0.0/22"}),
        json!({"kube-ipam.ip": "10.244.1.5-10.244.1.4"}),
        json!({"kube-ipam.ip": "10.244.1.5-fd00:10:244::5"}),
        json!({"kube-ipam.ip": "10.244.1.5-"}),
        json!({"kube-ipam.ip": "10.244.1.5-9"}),
        json!({"kube-ipam.ip": "10.244.1.5-10.244.1.6-10.244.1.7"}),
        json!({"kube-ipam.ip": "10.244.1.4/30,10.244.1.7"}),
        json!({"kube-ipam.ip": "10.244.1.4-10.244.1.9,10.244.1.8/31"}),
        json!({"kube-ipam.ip": "10.244.1.5/33"}),
        json!({"kube-ipam.ip": "10.244.1.5/24"}),
        json!({"kube-ipam.ip": "web/24"}),
        json!({"kube-ipam.ip": "fd00:10:244::40/122,fd00:10:244::9-fd00:10:244::1f"}),
        json!({"kube-ipam.ip": "fd00:10:244::1f-fd00:10:244::9"}),
        json!({"kube-ipam.ip": "fd00:10:244::40/122,fd00:10:244::41"}),
        json!({"kube-ipam.ip": "fd00:10:244::40/122,fd00:10:244:0::7f"}),
        json!({"kube-ipam.ip": "fd00:10:244::40/122,fd00:10:244:0::80"}),
        json!({"kube-ipam.ip": "fd00:10:244::200/119"}),
        json!({"kube-ipam.ip": "fd00:10:244::100/120"}),
        json!({"kube-ipam.ip": "fd00:10:244::200-fd00:10:244::301"}),
        json!({"kube-ipam.ip": "fd00:10:244::fff0-fd00:10:244::1:1"}),
        json!({"kube-ipam.ip": "fd00:10:244::2:5-fd00:10:244::2:7"}),
        json!({"kube-ipam.ip": "fd00:10:244::2:5-fd00:10:244::2:17"}),
        json!({"kube-ipam.ip": "fd00:10:244::2:8/125"}),
        json!({"kube-ipam.ip": "fd00:10:244::2:10/125"}),
        json!({"kube-ipam.ip": "10.244.1.4-10.244.1.9", "kube-ipam.gateway": "10.244.1.7"}),
        json!({"kube-ipam.ip": "10.244.1.4-10.244.1.9", "kube-ipam.gateway": "10.244.1.1-10.244.1.2"}),
        json!({"kube-ipam.ip": "fd00:10:244::4-fd00:10:244::9", "kube-ipam.gateway": "fd00:10:244:0:0::7"}),
        json!({"kube-ipam.ip": "fd00:10:244::4-fd00:10:244::9", "kube-ipam.gateway": "fd00:10:244::1"}),
        json!({"kube-ipam.owner": "Mail"}),
        json!({"kube-ipam.ip": "10.244.1.5", "kube-ipam.handover": "evict"}),
        json!({"kube-ipam.ip": "10.244.1.5", "kube-ipam.handover": "refuse"}),
        json!({"kube-ipam.ip": "10.244.1.5", "kube-ipam.handover": "Evict"}),
        json!({"kube-ipam.handover": ""}),
    ];
    for annotations in cases {
        for (namespace, limited) in [("open", false), ("limited", true)] {
            let policy = ground.refused(namespace, &pod(annotations.clone())).await;
            let plugin = plugin_says(&annotations, limited);
            assert_eq!(policy.is_some(), plugin.is_err(), "{annotations} in {namespace}: {policy:?} {plugin:?}");
        }
    }
}

#[tokio::test]
async fn templates_of_every_kind_are_judged_and_replicas_counted() {
    let Some(ground) = Ground::prepare().await else { return };
    let kinds = [
        ("v1", "ReplicationController"),
        ("apps/v1", "Deployment"),
        ("apps/v1", "ReplicaSet"),
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "DaemonSet"),
        ("batch/v1", "Job"),
        ("batch/v1", "CronJob"),
    ];
    let (good, bad) = (json!({"kube-ipam.ip": "10.244.1.5,10.244.1.6"}), json!({"kube-ipam.ip": "10.244.1.500"}));
    for (version, kind) in kinds {
        ground.is_legal("open", &workload(version, kind, None, good.clone())).await;
        ground.is_legal("open", &workload(version, kind, None, json!({}))).await;
        let said = ground.refused("open", &workload(version, kind, None, bad.clone())).await.expect(kind);
        assert!(said.contains("\"10.244.1.500\", which is not an IP address"), "{kind}: {said}");
    }
    for kind in ["Deployment", "ReplicaSet", "StatefulSet"] {
        ground.is_legal("open", &workload("apps/v1", kind, Some(2), good.clone())).await;
        ground.is_legal("open", &workload("apps/v1", kind, Some(0), good.clone())).await;
        assert!(ground.refused("open", &workload("apps/v1", kind, Some(3), good.clone())).await.is_some(), "{kind}");
        // One for each replica in each family that is asked for.
        let fifty = json!({"kube-ipam.ip": "10.244.1.201-10.244.1.249,10.244.1.9,fd00:10:244::100/122"});
        ground.is_legal("open", &workload("apps/v1", kind, Some(50), fifty.clone())).await;
        let said = ground.refused("open", &workload("apps/v1", kind, Some(51), fifty)).await.expect(kind);
        assert!(said.contains("fewer addresses than 51 replicas need"), "{kind}: {said}");
        let both = json!({"kube-ipam.ip": "10.244.1.5,10.244.1.6,fd00:10:244::5"});
        assert!(ground.refused("open", &workload("apps/v1", kind, Some(2), both)).await.is_some(), "{kind}");
    }
    ground.is_legal("open", &documents("fixed-ip-statefulset.yaml").unwrap()[0]).await;
    let mut set = workload("apps/v1", "StatefulSet", Some(2), good);
    set["spec"]["ordinals"] = json!({"start": 1});
    assert!(ground.refused("open", &set).await.is_some(), "the pod with ordinal 2 has no address");
}

#[tokio::test]
async fn what_was_there_before_the_policy_can_still_be_changed_and_deleted() {
    let Some(ground) = Ground::prepare().await else { return };
    let policy = documents("policy.yaml").unwrap();
    let binding = policy.iter().find(|d| d["kind"] == "ValidatingAdmissionPolicyBinding").unwrap();
    let api = kube::Api::<DynamicObject>::all_with(
        ground.client.clone(),
        &ApiResource::from_gvk(&GroupVersionKind::gvk(
            "admissionregistration.k8s.io",
            "v1",
            "ValidatingAdmissionPolicyBinding",
        )),
    );
    api.delete("kube-ipam-annotations", &DeleteParams::default()).await.unwrap();
    let bad = workload("apps/v1", "Deployment", Some(3), json!({"kube-ipam.ip": "10.244.1.500"}));
    let started = Instant::now();
    while ground.create("open", &bad, false).await.is_err() {
        assert!(started.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    apply(&ground.client, binding).await.unwrap();
    ground.in_force("kube-ipam-annotations", "open", &pod(json!({"kube-ipam.ip": "x"}))).await;
    let deployments = ground.api("open", &bad);
    let patch = async |patch: Value| deployments.patch("w", &PatchParams::default(), &Patch::Merge(patch)).await;
    patch(json!({"metadata": {"labels": {"team": "b"}}})).await.unwrap();
    patch(json!({"spec": {"replicas": 1}})).await.unwrap();
    let worse = json!({"spec": {"template": {"metadata": {"annotations": {"kube-ipam.ip": "10.244.1.501"}}}}});
    assert!(patch(worse).await.unwrap_err().to_string().contains("10.244.1.501"));
    let better = json!({"spec": {"template": {"metadata": {"annotations": {"kube-ipam.ip": "10.244.1.5"}}}}});
    patch(better).await.unwrap();
    assert!(patch(json!({"spec": {"replicas": 2}})).await.is_err(), "one address for two");
    deployments.delete("w", &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn namespaces_without_an_annotation_are_shut_out_where_the_configuration_says_so() {
    let Some(ground) = Ground::prepare().await else { return };
    let asks = pod(json!({"kube-ipam.ip": "10.244.1.5"}));
    ground.is_legal("open", &asks).await;
    let config = |text: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-ipam", "namespace": "kube-system"},
            "data": {"ipam.json": text},
        })
    };
    apply(&ground.client, &config(r#"{"type": "kube-ipam", "fixedAddresses":  "allowedNamespaces"}"#)).await.unwrap();
    ground.in_force("kube-ipam-allowed", "open", &asks).await;
    let said = ground.refused("open", &asks).await.unwrap();
    assert!(said.contains("kubectl annotate namespace open kube-ipam.allowed=10.244.1.5"), "{said}");
    ground.is_legal("limited", &asks).await;
    ground.is_legal("open", &pod(json!({}))).await;
}

#[tokio::test]
async fn an_update_that_would_wait_for_itself_is_warned_of() {
    let Some(ground) = Ground::prepare().await else { return };
    let warned = async |deployment: &Value| ground.warnings("open", deployment).await;
    let sample = &documents("illegal/update-that-waits-for-itself.yaml").unwrap()[0];
    let started = Instant::now();
    while warned(sample).await.is_empty() {
        assert!(started.elapsed() < LIMIT, "no warning");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(warned(sample).await.contains("strategy.type to Recreate"), "{}", warned(sample).await);
    let mut deployment = workload(
        "apps/v1",
        "Deployment",
        Some(4),
        json!({"kube-ipam.ip": "10.244.1.4,10.244.1.5,10.244.1.6,10.244.1.7"}),
    );
    assert_eq!(warned(&deployment).await, "");
    for (surge, warns) in
        [(json!(0), false), (json!("0%"), false), (json!(1), true), (json!("25%"), true), (json!("1%"), true)]
    {
        deployment["spec"]["strategy"] =
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 1}});
        assert_eq!(!warned(&deployment).await.is_empty(), warns, "maxSurge {surge}");
    }
    // An address more than replicas is room for one more pod.
    let more = json!({"kube-ipam.ip": "10.244.1.4,10.244.1.5,10.244.1.6,10.244.1.7,10.244.1.8"});
    deployment["spec"]["template"]["metadata"]["annotations"] = more;
    deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"] = json!(1);
    assert_eq!(warned(&deployment).await, "");
    let range = json!({"kube-ipam.ip": "10.244.1.4-10.244.1.8"});
    deployment["spec"]["template"]["metadata"]["annotations"] = range;
    assert_eq!(warned(&deployment).await, "");
    deployment["spec"]["template"]["metadata"]["annotations"] = json!({"kube-ipam.ip": "10.244.1.4/30"});
    assert!(!warned(&deployment).await.is_empty());
    // What is said depends on what the workload says of handovers, as the guide's own sample does not.
    let mut guides = documents("fixed-ip-test.yaml").unwrap().remove(0);
    let (evicts, waits) = ("are evicted for them, one at a time", "strategy.type to Recreate");
    for (handover, says) in
        [(Value::Null, [true, true]), (json!("evict"), [true, false]), (json!("refuse"), [false, true])]
    {
        guides["spec"]["template"]["metadata"]["annotations"]["kube-ipam.handover"] = handover.clone();
        if handover.is_null() {
            let annotations = guides.pointer_mut("/spec/template/metadata/annotations").unwrap();
            annotations.as_object_mut().unwrap().remove("kube-ipam.handover");
        }
        let said = warned(&guides).await;
        assert_eq!([evicts, waits].map(|words| said.contains(words)), says, "{handover}: {said}");
    }
}

#[tokio::test]
async fn an_annotation_that_does_nothing_is_warned_of_with_its_right_place() {
    let Some(ground) = Ground::prepare().await else { return };
    let sample = |name: &str| documents(&format!("illegal/{name}.yaml")).unwrap().remove(0);
    let misplaced = sample("annotation-of-the-workload");
    let started = Instant::now();
    while ground.warnings("open", &misplaced).await.is_empty() {
        assert!(started.elapsed() < LIMIT, "no warning");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (name, words) in [
        ("annotation-of-the-workload", "annotation kube-ipam.ip of this Deployment is ignored"),
        ("annotation-of-the-workload", "spec.template.metadata.annotations"),
        ("host-network", "a pod with hostNetwork has its node's address"),
        ("daemonset-that-waits-for-itself", "rollingUpdate.maxSurge to 0"),
    ] {
        let said = ground.warnings("open", &sample(name)).await;
        assert!(said.contains(words), "{name}: {said}");
    }
    let good = json!({"kube-ipam.ip": "10.244.1.5"});
    for (version, kind) in [
        ("v1", "ReplicationController"),
        ("apps/v1", "Deployment"),
        ("apps/v1", "ReplicaSet"),
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "DaemonSet"),
        ("batch/v1", "Job"),
        ("batch/v1", "CronJob"),
    ] {
        let mut object = workload(version, kind, None, json!({}));
        object["metadata"]["annotations"] = good.clone();
        let said = ground.warnings("open", &object).await;
        let place =
            if kind == "CronJob" { "spec.jobTemplate.spec.template.metadata" } else { " spec.template.metadata" };
        assert!(said.contains(&format!("of this {kind} is ignored")) && said.contains(place), "{kind}: {said}");
        // A controller copies what its workload has.
        let owner = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "w", "uid": "u", "controller": true});
        object["metadata"]["ownerReferences"] = json!([owner]);
        assert_eq!(ground.warnings("open", &object).await, "", "{kind}");
        let mut object = workload(version, kind, None, good.clone());
        assert_eq!(ground.warnings("open", &object).await, "", "{kind}");
        let spec = if kind == "CronJob" { "/spec/jobTemplate/spec/template/spec" } else { "/spec/template/spec" };
        object.pointer_mut(spec).unwrap()["hostNetwork"] = true.into();
        assert!(ground.warnings("open", &object).await.contains("hostNetwork"), "{kind}");
    }
    let mut alone = pod(good.clone());
    assert_eq!(ground.warnings("open", &alone).await, "");
    alone["spec"]["hostNetwork"] = true.into();
    assert!(ground.warnings("open", &alone).await.contains("hostNetwork"));
    let mut set = workload("apps/v1", "DaemonSet", None, good);
    for (surge, warns) in [(json!(0), false), (json!("0%"), false), (json!(1), true), (json!("10%"), true)] {
        let unavailable = if warns { 0 } else { 1 };
        set["spec"]["updateStrategy"] = json!({
            "type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable},
        });
        assert_eq!(!ground.warnings("open", &set).await.is_empty(), warns, "maxSurge {surge}");
    }
}

#[tokio::test]
async fn nobody_scales_beyond_the_addresses_by_hand_and_no_controller_is_refused() {
    let Some(ground) = Ground::prepare().await else { return };
    let three = json!({"kube-ipam.ip": "10.244.1.5, 10.244.1.6,10.244.1.7"});
    // Another workload of the namespace does not count.
    let mut other = workload("apps/v1", "Deployment", Some(1), json!({"kube-ipam.ip": "10.244.1.8"}));
    other["metadata"]["name"] = "other".into();
    ground.create("open", &other, false).await.unwrap();
    let controllers = [
        "system:serviceaccount:kube-system:horizontal-pod-autoscaler",
        "system:serviceaccount:kube-system:deployment-controller",
        "system:kube-controller-manager",
    ];
    for (kind, plural) in
        [("Deployment", "deployments"), ("StatefulSet", "statefulsets"), ("ReplicaSet", "replicasets")]
    {
        ground.create("open", &workload("apps/v1", kind, Some(2), three.clone()), false).await.unwrap();
        let started = Instant::now();
        let said = loop {
            let (status, said) = ground.scale(plural, 4, None).await;
            if status != 200 {
                break said;
            }
            assert!(started.elapsed() < LIMIT, "{kind} is scaled to 4");
            assert_eq!(ground.scale(plural, 2, None).await.0, 200);
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert!(
            said.contains("\"10.244.1.5, 10.244.1.6,10.244.1.7\" has fewer addresses than 4 replicas need"),
            "{said}"
        );
        assert_eq!(ground.scale(plural, 3, None).await.0, 200, "{kind}");
        for user in controllers {
            // Without the right to scale it is refused for that, and not by a policy.
            let (_, said) = ground.scale(plural, 5, Some(user)).await;
            assert!(!said.contains("ValidatingAdmissionPolicy"), "{user}: {said}");
        }
        let hpa = controllers[0];
        if kind != "ReplicaSet" {
            assert_eq!(ground.scale(plural, 5, Some(hpa)).await, (200, String::new()), "{kind}");
            // What an autoscaler did may be taken back, bit by bit.
            assert_eq!(ground.scale(plural, 4, None).await.0, 200, "{kind}");
        }
    }
    // Nor does a controller fail at what it makes of a workload.
    let request = http::Request::post("/apis/apps/v1/namespaces/open/replicasets?dryRun=All");
    let mut set = workload("apps/v1", "ReplicaSet", Some(4), three);
    set["metadata"]["name"] = "w-1".into();
    let request = request.header("content-type", "application/json");
    let (status, body, _) = ground.send(request, Some(controllers[1]), &set).await;
    assert!(status < 300, "{status}: {body}");
    // Ranges and CIDRs count for all of their addresses.
    let ranged = "10.244.1.5 - 10.244.1.6, 10.244.1.9,10.244.1.16/31";
    set = workload("apps/v1", "ReplicaSet", Some(1), json!({"kube-ipam.ip": ranged}));
    set["metadata"]["name"] = "ranged".into();
    let request = http::Request::post("/apis/apps/v1/namespaces/open/replicasets");
    let request = request.header("content-type", "application/json");
    let (status, body, _) = ground.send(request, Some(controllers[1]), &set).await;
    assert!(status < 300, "{status}: {body}");
    assert_eq!(ground.scale("replicasets/ranged", 5, None).await.0, 200);
    let (status, said) = ground.scale("replicasets/ranged", 6, None).await;
    assert!(status == 422 && said.contains("fewer addresses than 6 replicas need"), "{status}: {said}");
}
