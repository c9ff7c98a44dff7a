//! What a Kubernetes API server does, as far as we rely on it: one function per behaviour, run against the embedded server
//! and the real one alike, so that the embedded one stays honest.
//!
//! Every function makes a namespace of its own, so they may run side by side.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _, future::join_all, pin_mut};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
    Preconditions, WatchEvent, WatchParams,
};
use kube::core::Status;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

const GROUP: &str = "conformance.kube-ipam.io";

/// A namespace and a custom resource to try things on.
struct Ground {
    client: Client,
    namespace: String,
    things: Api<DynamicObject>,
}

/// The definition of the custom resource the functions use.
pub fn definition() -> Result<CustomResourceDefinition> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("things.{GROUP}")},
        "spec": {
            "group": GROUP, "scope": "Namespaced",
            "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": {
                "type": "object",
                "properties": {
                    "spec": {"type": "object", "required": ["cidr"], "properties": {
                        "cidr": {"type": "string"},
                        "state": {"type": "string", "enum": ["pending", "confirmed"]},
                        "size": {"type": "integer", "default": 26},
                        "sequence": {"type": "integer", "format": "int64"},
                        "allocations": {"type": "array", "items": {"type": "integer", "nullable": true}},
                        "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
                        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
                    }},
                    "status": {"type": "object", "properties": {"note": {"type": "string"}}}
                }
            }}}]
        }
    }))?)
}

impl Ground {
    async fn prepare(client: &Client) -> Result<Self> {
        let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
        match crds.create(&PostParams::default(), &definition()?).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(error).context("the definition cannot be created"),
        }
        let name = format!("things.{GROUP}");
        let established = await_condition(crds, &name, conditions::is_crd_established());
        tokio::time::timeout(Duration::from_secs(10), established)
            .await
            .context("the definition is not established")??;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace = serde_json::from_value(json!({"metadata": {"generateName": "conformance-"}}))?;
        let namespace = namespaces.create(&PostParams::default(), &namespace).await?.name_any();
        ensure!(namespace.len() == "conformance-".len() + 5, "a generated name: {namespace}");
        let kind = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, "v1", "Thing"), "things");
        let things = Api::namespaced_with(client.clone(), &namespace, &kind);
        Ok(Self { client: client.clone(), namespace, things })
    }

    async fn create(&self, name: &str, spec: Value) -> Result<DynamicObject, kube::Error> {
        self.things.create(&PostParams::default(), &thing(name, spec)).await
    }

    async fn replace(&self, object: &DynamicObject) -> Result<DynamicObject, kube::Error> {
        self.things.replace(&object.name_any(), &PostParams::default(), object).await
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn pod(&self, name: &str, node: Option<&str>) -> Result<Pod> {
        let pod = json!({
            "metadata": {"name": name},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "example.invalid/none"}]},
        });
        Ok(self.pods().create(&PostParams::default(), &serde_json::from_value(pod)?).await?)
    }
}

fn thing(name: &str, spec: Value) -> DynamicObject {
    let kind = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, "v1", "Thing"), "things");
    DynamicObject::new(name, &kind).data(json!({"spec": spec}))
}

fn labelled(name: &str, labels: &[(&str, &str)]) -> DynamicObject {
    let mut object = thing(name, json!({"cidr": name}));
    object.metadata.labels = Some(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
    object
}

/// The status of a refusal; an error if the request was not refused by the server.
fn refused<T>(outcome: Result<T, kube::Error>) -> Result<Status> {
    match outcome {
        Ok(_) => bail!("it was not refused"),
        Err(kube::Error::Api(status)) => Ok(*status),
        Err(other) => Err(other).context("no answer of the server"),
    }
}

fn expect(status: &Status, code: u16, reason: &str) -> Result<()> {
    ensure!(status.code == code && status.reason == reason, "expected {code} {reason}, got {status:?}");
    Ok(())
}

fn revision(object: &DynamicObject) -> String {
    object.resource_version().unwrap_or_default()
}

/// An update from an old resourceVersion is a conflict; without any it is invalid for custom resources.
pub async fn a_stale_update_is_refused(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    let first = ground.create("a", json!({"cidr": "x"})).await?;
    let mut second = first.clone();
    second.data["spec"]["cidr"] = "y".into();
    let second = ground.replace(&second).await?;
    ensure!(revision(&first) != revision(&second), "a change takes a new resourceVersion");
    let stale = refused(ground.replace(&first).await)?;
    expect(&stale, 409, "Conflict")?;
    ensure!(stale.message.contains("the object has been modified"), "{}", stale.message);
    let mut blind = second.clone();
    blind.metadata.resource_version = None;
    expect(&refused(ground.replace(&blind).await)?, 422, "Invalid")
}

/// Of many updates from the same resourceVersion exactly one wins.
pub async fn of_racing_updates_one_wins(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    let first = ground.create("a", json!({"cidr": "x", "size": 0})).await?;
    let racers = (1..=16).map(|n| {
        let mut mine = first.clone();
        mine.data["spec"]["size"] = n.into();
        let ground = &ground;
        async move { ground.replace(&mine).await }
    });
    let (won, lost): (Vec<_>, Vec<_>) = join_all(racers).await.into_iter().partition(Result::is_ok);
    ensure!(won.len() == 1, "{} updates won", won.len());
    for outcome in lost {
        expect(&refused(outcome)?, 409, "Conflict")?;
    }
    let end = ground.things.get("a").await?;
    let winner = won.into_iter().next().context("no winner")??;
    ensure!(end.data == winner.data, "the winner's object is what is stored");
    Ok(())
}

/// An update that changes nothing keeps the resourceVersion.
pub async fn an_update_without_change_writes_nothing(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    let first = ground.create("a", json!({"cidr": "x"})).await?;
    let same = ground.replace(&first).await?;
    ensure!(revision(&first) == revision(&same), "{} became {}", revision(&first), revision(&same));
    let patched =
        ground.things.patch("a", &PatchParams::default(), &Patch::Merge(json!({"spec": {"cidr": "x"}}))).await?;
    ensure!(revision(&first) == revision(&patched), "a patch without change took a new resourceVersion");
    Ok(())
}

/// Names: taken, generated, malformed, of another namespace; and objects that do not exist.
pub async fn names_are_checked(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    ground.create("a", json!({"cidr": "x"})).await?;
    expect(&refused(ground.create("a", json!({"cidr": "y"})).await)?, 409, "AlreadyExists")?;
    expect(&refused(ground.create("Upper", json!({"cidr": "x"})).await)?, 422, "Invalid")?;
    let mut nameless = thing("", json!({"cidr": "x"}));
    nameless.metadata.name = None;
    expect(&refused(ground.things.create(&PostParams::default(), &nameless).await)?, 422, "Invalid")?;
    nameless.metadata.generate_name = Some("made-".into());
    let made = ground.things.create(&PostParams::default(), &nameless).await?;
    ensure!(made.name_any().starts_with("made-") && made.name_any().len() == 10, "{}", made.name_any());
    expect(&refused(ground.things.get("none").await)?, 404, "NotFound")?;
    let none = thing("none", json!({"cidr": "x"}));
    let mut none_at = none.clone();
    none_at.metadata.resource_version = Some("1".into());
    expect(&refused(ground.replace(&none_at).await)?, 404, "NotFound")?;
    let elsewhere: Api<ConfigMap> = Api::namespaced(client, "no-such-namespace");
    let map = serde_json::from_value(json!({"metadata": {"name": "m"}}))?;
    expect(&refused(elsewhere.create(&PostParams::default(), &map).await)?, 404, "NotFound")
}

/// Server-side metadata: uid, creationTimestamp and generation are given by the server and stay.
pub async fn metadata_belongs_to_the_server(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    let mut object = thing("a", json!({"cidr": "x"}));
    object.metadata.uid = Some("mine".into());
    object.metadata.generation = Some(7);
    let first = ground.things.create(&PostParams::default(), &object).await?;
    ensure!(first.uid().is_some_and(|uid| uid != "mine"), "the server gives the uid");
    ensure!(
        first.metadata.creation_timestamp.is_some() && first.metadata.generation == Some(1),
        "{:?}",
        first.metadata
    );
    let mut second = first.clone();
    second.metadata.creation_timestamp = None;
    second.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    let second = ground.replace(&second).await?;
    ensure!(second.metadata.creation_timestamp == first.metadata.creation_timestamp, "the creation time stays");
    ensure!(second.metadata.generation == Some(1), "labels do not raise the generation");
    let mut third = second.clone();
    third.data["spec"]["size"] = 3.into();
    ensure!(ground.replace(&third).await?.metadata.generation == Some(2), "the spec raises the generation");
    let mut alien = ground.things.get("a").await?;
    alien.metadata.uid = Some("another".into());
    expect(&refused(ground.replace(&alien).await)?, 409, "Conflict")
}

/// Unknown fields vanish without an error, except where the schema preserves them.
pub async fn unknown_fields_are_pruned(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    let spec =
        json!({"cidr": "x", "CIDR": "y", "counts": {"10.0.0.0/26": 1}, "free": {"any": {"thing": 1}}, "state": null});
    let stored = ground.create("a", spec).await?;
    let expected = json!({"cidr": "x", "counts": {"10.0.0.0/26": 1}, "free": {"any": {"thing": 1}}, "size": 26});
    ensure!(stored.data["spec"] == expected, "{}", stored.data);
    let strict =
        PatchParams { field_validation: Some(kube::api::ValidationDirective::Strict), ..PatchParams::default() };
    let wrong = Patch::Merge(json!({"spec": {"CIDR": "y"}}));
    expect(&refused(ground.things.patch("a", &strict, &wrong).await)?, 400, "BadRequest")
}

/// What the schema forbids is refused with the field's name, and nothing is stored.
pub async fn the_schema_is_enforced(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    for (spec, field) in [
        (json!({}), "spec.cidr"),
        (json!({"cidr": 1}), "spec.cidr"),
        (json!({"cidr": "x", "state": "other"}), "spec.state"),
        (json!({"cidr": "x", "sequence": "1"}), "spec.sequence"),
        (json!({"cidr": "x", "counts": {"a": "b"}}), "spec.counts.a"),
    ] {
        let status = refused(ground.create("a", spec).await).context(field)?;
        expect(&status, 422, "Invalid")?;
        ensure!(status.message.contains(field), "{field} is not in {}", status.message);
        let causes = status.details.map(|d| d.causes).unwrap_or_default();
        ensure!(causes.iter().any(|c| c.field == field), "{field} is not in {causes:?}");
    }
    ensure!(ground.things.list(&ListParams::default()).await?.items.is_empty(), "nothing is stored");
    Ok(())
}

/// Integers of 64 bits and nulls in lists come back as they were written.
pub async fn integers_and_nulls_are_exact(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    for (name, number) in [("a", i64::MAX), ("b", i64::MIN), ("c", 1_763_942_693_123_456_789)] {
        let stored = ground.create(name, json!({"cidr": "x", "sequence": number})).await?;
        ensure!(stored.data["spec"]["sequence"].as_i64() == Some(number), "{}", stored.data);
        let read = ground.things.get(name).await?;
        ensure!(read.data["spec"]["sequence"].as_i64() == Some(number), "{}", read.data);
    }
    let stored = ground.create("d", json!({"cidr": "x", "allocations": [null, 0, null, 2]})).await?;
    ensure!(stored.data["spec"]["allocations"] == json!([null, 0, null, 2]), "{}", stored.data);
    Ok(())
}

/// The status is written by its own path only, and that path writes nothing else.
pub async fn the_status_is_a_world_of_its_own(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    let mut object = thing("a", json!({"cidr": "x"}));
    object.data["status"] = json!({"note": "mine"});
    let first = ground.things.create(&PostParams::default(), &object).await?;
    ensure!(first.data.get("status").is_none(), "a new object has no status: {}", first.data);
    let mut second = first.clone();
    second.data = json!({"spec": {"cidr": "changed"}, "status": {"note": "set"}});
    let second = ground.things.replace_status("a", &PostParams::default(), &second).await?;
    ensure!(second.data["spec"]["cidr"] == "x" && second.data["status"]["note"] == "set", "{}", second.data);
    ensure!(second.metadata.generation == Some(1), "the status does not raise the generation");
    let mut third = second.clone();
    third.data = json!({"spec": {"cidr": "changed"}});
    let third = ground.replace(&third).await?;
    ensure!(third.data["spec"]["cidr"] == "changed" && third.data["status"]["note"] == "set", "{}", third.data);
    Ok(())
}

/// Merge, JSON and apply patches work on custom resources; strategic ones are refused.
pub async fn patches_do_what_their_kind_says(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    let first = ground.create("a", json!({"cidr": "x", "state": "pending"})).await?;
    let plain = PatchParams::default();
    let merged = ground.things.patch("a", &plain, &Patch::Merge(json!({"spec": {"state": null, "size": 27}}))).await?;
    ensure!(merged.data["spec"] == json!({"cidr": "x", "size": 27}), "{}", merged.data);
    let stale = json!({"metadata": {"resourceVersion": revision(&first)}, "spec": {"size": 28}});
    expect(&refused(ground.things.patch("a", &plain, &Patch::Merge(stale)).await)?, 409, "Conflict")?;
    let strategic = Patch::Strategic(json!({"spec": {"size": 28}}));
    expect(&refused(ground.things.patch("a", &plain, &strategic).await)?, 415, "UnsupportedMediaType")?;
    let ours = PatchParams::apply("conformance");
    let body = json!({"apiVersion": format!("{GROUP}/v1"), "kind": "Thing", "spec": {"cidr": "made"}});
    let made = ground.things.patch("b", &ours, &Patch::Apply(&body)).await?;
    ensure!(made.name_any() == "b" && made.data["spec"]["cidr"] == "made", "{}", made.data);
    let again = ground.things.patch("b", &ours, &Patch::Apply(&body)).await?;
    ensure!(revision(&again) == revision(&made), "an apply without change writes nothing");
    let wrong = Patch::Merge(json!({"spec": {"cidr": 5}}));
    expect(&refused(ground.things.patch("a", &plain, &wrong).await)?, 422, "Invalid")
}

/// A deletion with preconditions strikes only the very object that was meant.
pub async fn deletions_obey_preconditions(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    let object = ground.create("a", json!({"cidr": "x"})).await?;
    let with = |uid: Option<&str>, version: Option<&str>| DeleteParams {
        preconditions: Some(Preconditions { uid: uid.map(Into::into), resource_version: version.map(Into::into) }),
        ..DeleteParams::default()
    };
    let status = refused(ground.things.delete("a", &with(Some("another"), None)).await)?;
    expect(&status, 409, "Conflict")?;
    expect(&refused(ground.things.delete("a", &with(None, Some("1"))).await)?, 409, "Conflict")?;
    let (uid, version) = (object.uid().unwrap_or_default(), revision(&object));
    ground.things.delete("a", &with(Some(&uid), Some(&version))).await?;
    expect(&refused(ground.things.get("a").await)?, 404, "NotFound")?;
    expect(&refused(ground.things.delete("a", &with(Some(&uid), None)).await)?, 404, "NotFound")
}

/// An object with a finalizer stays, marked, until the finalizer is gone.
pub async fn finalizers_hold_an_object(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    let mut object = thing("a", json!({"cidr": "x"}));
    object.metadata.finalizers = Some(vec!["kube-ipam.io/hold".into()]);
    ground.things.create(&PostParams::default(), &object).await?;
    ground.things.delete("a", &DeleteParams::default()).await?;
    let held = ground.things.get("a").await?;
    ensure!(held.metadata.deletion_timestamp.is_some(), "the deletion has begun");
    let mut more = held.clone();
    more.metadata.finalizers = Some(vec!["kube-ipam.io/hold".into(), "kube-ipam.io/late".into()]);
    ensure!(matches!(refused(ground.replace(&more).await)?.code, 403 | 422), "no new finalizers while it is deleted");
    let mut free = held;
    free.metadata.finalizers = None;
    ground.replace(&free).await?;
    expect(&refused(ground.things.get("a").await)?, 404, "NotFound")
}

/// A pod on a node is marked and waits for a deletion with grace 0; one without a node goes at once.
pub async fn pods_leave_gracefully(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    ground.pod("bound", Some("no-such-node")).await?;
    ground.pod("unbound", None).await?;
    ground.pods().delete("unbound", &DeleteParams::default()).await?;
    expect(&refused(ground.pods().get("unbound").await)?, 404, "NotFound")?;
    ground.pods().delete("bound", &DeleteParams::default()).await?;
    let marked = ground.pods().get("bound").await?;
    ensure!(marked.metadata.deletion_timestamp.is_some(), "the pod is marked");
    ensure!(marked.metadata.deletion_grace_period_seconds == Some(30), "{:?}", marked.metadata);
    ground.pods().delete("bound", &DeleteParams::default().grace_period(0)).await?;
    expect(&refused(ground.pods().get("bound").await)?, 404, "NotFound")
}

/// A pod is bound once, and its spec stays as it is.
pub async fn a_pod_is_bound_once(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    let pod = ground.pod("a", None).await?;
    ensure!(pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Pending"), "{:?}", pod.status);
    let bind = |node: &str| {
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"}, "target": {"kind": "Node", "name": node}});
        let pods = ground.pods();
        async move { pods.create_subresource::<Value, Value>("binding", "a", &PostParams::default(), &binding).await }
    };
    bind("one").await?;
    expect(&refused(bind("two").await)?, 409, "Conflict")?;
    let mut moved = ground.pods().get("a").await?;
    ensure!(moved.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some("one"), "bound to the first");
    if let Some(spec) = &mut moved.spec {
        spec.node_name = Some("two".into());
    }
    expect(&refused(ground.pods().replace("a", &PostParams::default(), &moved).await)?, 422, "Invalid")
}

/// Label and field selectors of every form choose what they should.
pub async fn selectors_choose(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    for (name, labels) in
        [("a", &[("app", "web"), ("tier", "front")][..]), ("b", &[("app", "web")]), ("c", &[("app", "db")]), ("d", &[])]
    {
        ground.things.create(&PostParams::default(), &labelled(name, labels)).await?;
    }
    for (labels, expected) in [
        ("app=web", "a b"),
        ("app=web,tier", "a"),
        ("app!=web", "c d"),
        ("app in (web, db),!tier", "b c"),
        ("app notin (db)", "a b d"),
        ("!app", "d"),
    ] {
        let found = ground.things.list(&ListParams::default().labels(labels)).await?;
        let names = found.iter().map(|o| o.name_any()).collect::<Vec<_>>().join(" ");
        ensure!(names == expected, "{labels}: {names}");
    }
    let found = ground.things.list(&ListParams::default().fields("metadata.name=b")).await?;
    ensure!(found.items.len() == 1 && found.items[0].name_any() == "b", "by name: {}", found.items.len());
    ensure!(
        refused(ground.things.list(&ListParams::default().fields("spec.cidr=a")).await)?.code == 400,
        "an unknown field"
    );
    ground.pod("here", Some("one")).await?;
    ground.pod("there", Some("two")).await?;
    let found = ground.pods().list(&ListParams::default().fields("spec.nodeName=one,status.phase=Pending")).await?;
    ensure!(found.items.len() == 1 && found.items[0].name_any() == "here", "by node: {}", found.items.len());
    Ok(())
}

/// Pages of a list show one moment, whatever happens between them.
pub async fn pages_are_of_one_moment(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    for name in ["a", "b", "c", "d", "e"] {
        ground.create(name, json!({"cidr": "x"})).await?;
    }
    let first = ground.things.list(&ListParams::default().limit(2)).await?;
    ensure!(first.metadata.remaining_item_count == Some(3), "{:?}", first.metadata);
    ground.things.delete("d", &DeleteParams::default()).await?;
    ground.create("cc", json!({"cidr": "x"})).await?;
    let mut names = first.iter().map(|o| o.name_any()).collect::<Vec<_>>();
    let mut next = first.metadata.continue_.clone();
    while let Some(token) = next.filter(|t| !t.is_empty()) {
        let page = ground.things.list(&ListParams::default().limit(2).continue_token(&token)).await?;
        ensure!(page.metadata.resource_version == first.metadata.resource_version, "the pages' resourceVersion");
        names.extend(page.iter().map(|o| o.name_any()));
        next = page.metadata.continue_.clone();
    }
    ensure!(names.join(" ") == "a b c d e", "{names:?}");
    Ok(())
}

/// Collects what a watch tells, until `enough` events have come.
async fn observed(ground: &Ground, params: &WatchParams, from: &str, enough: usize) -> Result<Vec<String>> {
    let stream = ground.things.watch(params, from).await?;
    pin_mut!(stream);
    let mut seen = Vec::new();
    while seen.len() < enough {
        let next = tokio::time::timeout(Duration::from_secs(10), stream.try_next()).await;
        let event = next
            .with_context(|| format!("only {seen:?}"))??
            .with_context(|| format!("the watch ended after {seen:?}"))?;
        seen.push(match event {
            WatchEvent::Added(o) => format!("+{}", o.name_any()),
            WatchEvent::Modified(o) => format!("~{}", o.name_any()),
            WatchEvent::Deleted(o) => format!("-{}", o.name_any()),
            WatchEvent::Bookmark(b) if b.metadata.annotations.is_empty() => "bookmark".to_owned(),
            WatchEvent::Bookmark(_) => "synced".to_owned(),
            WatchEvent::Error(status) => format!("error {}", status.code),
        });
    }
    Ok(seen)
}

/// A watch tells everything after its resourceVersion, in order.
pub async fn a_watch_replays_from_its_version(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    ground.create("before", json!({"cidr": "x"})).await?;
    let from = ground.things.list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
    let mut object = ground.create("a", json!({"cidr": "x"})).await?;
    object.data["spec"]["cidr"] = "y".into();
    ground.replace(&object).await?;
    let params = WatchParams::default();
    let watching = observed(&ground, &params, &from, 5);
    let acting = async {
        ground.create("b", json!({"cidr": "x"})).await?;
        ground.things.delete("a", &DeleteParams::default()).await?;
        ground.things.delete("b", &DeleteParams::default()).await
    };
    let (seen, acted) = tokio::join!(watching, acting);
    acted?;
    let seen = seen?;
    ensure!(seen == ["+a", "~a", "+b", "-a", "-b"], "{seen:?}");
    Ok(())
}

/// For a watch with a selector, an object that begins or ceases to match is added or deleted.
pub async fn a_watch_sees_through_its_selector(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    let from = ground.things.list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
    ground.things.create(&PostParams::default(), &labelled("a", &[])).await?;
    for value in [json!("yes"), json!("yes"), json!("no"), json!("yes")] {
        let patch = json!({"metadata": {"labels": {"on": value, "tick": rand::random::<u32>().to_string()}}});
        ground.things.patch("a", &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    ground.things.delete("a", &DeleteParams::default()).await?;
    let seen = observed(&ground, &WatchParams::default().labels("on=yes"), &from, 5).await?;
    ensure!(seen == ["+a", "~a", "-a", "+a", "-a"], "{seen:?}");
    Ok(())
}

/// A watch from nowhere begins with what is there; bookmarks come before its end.
pub async fn a_watch_sends_bookmarks(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    ground.create("a", json!({"cidr": "x"})).await?;
    let seen = observed(&ground, &WatchParams::default().timeout(4), "0", 2).await?;
    ensure!(seen == ["+a", "bookmark"], "{seen:?}");
    Ok(())
}

/// A streamed list: what is there, then a mark, then what changes.
pub async fn a_list_can_be_streamed(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    ground.create("a", json!({"cidr": "x"})).await?;
    ground.create("b", json!({"cidr": "x"})).await?;
    let seen = observed(&ground, &WatchParams::default().initial_events(), "", 3).await?;
    ensure!(seen == ["+a", "+b", "synced"], "{seen:?}");
    Ok(())
}

/// Metadata alone can be read and listed.
pub async fn metadata_alone_can_be_read(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    let whole = ground.create("a", json!({"cidr": "x"})).await?;
    let part = ground.things.get_metadata("a").await?;
    ensure!(part.metadata == whole.metadata, "{:?}", part.metadata);
    ensure!(part.types.as_ref().is_some_and(|t| t.kind == "PartialObjectMetadata"), "{:?}", part.types);
    let list = ground.things.list_metadata(&ListParams::default()).await?;
    ensure!(list.items.len() == 1 && list.types.kind == "PartialObjectMetadataList", "{:?}", list.types);
    let from = list.metadata.resource_version.unwrap_or_default();
    let stream = ground.things.watch_metadata(&WatchParams::default(), &from).await?;
    pin_mut!(stream);
    ground.create("b", json!({"cidr": "x"})).await?;
    match stream.next().await.context("the watch ended")?? {
        WatchEvent::Added(object) => ensure!(object.name_any() == "b", "{}", object.name_any()),
        other => bail!("{other:?}"),
    }
    Ok(())
}

/// A dry run judges and stores nothing.
pub async fn a_dry_run_stores_nothing(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let judged = ground.things.create(&dry, &thing("a", json!({"cidr": "x"}))).await?;
    ensure!(judged.data["spec"]["size"] == 26, "{}", judged.data);
    expect(&refused(ground.things.get("a").await)?, 404, "NotFound")?;
    let stored = ground.create("b", json!({"cidr": "x"})).await?;
    ground.things.delete("b", &DeleteParams { dry_run: true, ..DeleteParams::default() }).await?;
    ensure!(revision(&ground.things.get("b").await?) == revision(&stored), "still as it was");
    Ok(())
}

/// A collection is deleted by selector.
pub async fn a_collection_is_deleted(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    for (name, value) in [("a", "x"), ("b", "x"), ("c", "y")] {
        ground.things.create(&PostParams::default(), &labelled(name, &[("set", value)])).await?;
    }
    ground.things.delete_collection(&DeleteParams::default(), &ListParams::default().labels("set=x")).await?;
    let left = ground.things.list(&ListParams::default()).await?;
    ensure!(left.iter().map(|o| o.name_any()).collect::<Vec<_>>() == ["c"], "{}", left.items.len());
    Ok(())
}

/// A workload is scaled by its subresource.
pub async fn a_workload_is_scaled(client: Client) -> Result<()> {
    let ground = Ground::prepare(&client).await?;
    let deployments: Api<Deployment> = Api::namespaced(client, &ground.namespace);
    let wanted = json!({
        "metadata": {"name": "web"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "main", "image": "example.invalid/none"}]}}},
    });
    let made = deployments.create(&PostParams::default(), &serde_json::from_value(wanted)?).await?;
    ensure!(
        made.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.type_.as_deref()) == Some("RollingUpdate"),
        "{:?}",
        made.spec
    );
    deployments.patch_scale("web", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 3}}))).await?;
    let scale = deployments.get_scale("web").await?;
    ensure!(scale.spec.and_then(|s| s.replicas) == Some(3), "the scale");
    let read = deployments.get("web").await?;
    ensure!(read.spec.and_then(|s| s.replicas) == Some(3), "the deployment");
    Ok(())
}

/// A kind that is not served is told from an object that is not there: the answer to it is no `Status`.
pub async fn what_is_not_served_is_told_in_plain_text(client: Client) -> Result<()> {
    Ground::prepare(&client).await?;
    for path in [format!("/apis/{GROUP}/v1/others/a"), "/apis/none.example/v1/things/a".to_owned()] {
        let request = http::Request::get(&path).body(Vec::new())?;
        let status = refused(client.request_text(request).await)?;
        ensure!(status.code == 404 && status.reason != "NotFound", "{path}: {status:?}");
        ensure!(status.message.trim() == "404 page not found", "{path}: {status:?}");
    }
    Ok(())
}
