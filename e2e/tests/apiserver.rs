//! The embedded API server behaves as the real one: every function of `conformance`, and what only an embedded server offers.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::{Duration, Instant};

use e2e::conformance;
use e2e::embedded::apiserver::{Fault, Gate, Match, Options, Server};
use futures::{StreamExt, TryStreamExt, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams, WatchEvent, WatchParams};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};

fn server() -> Server {
    Server::start(&Options::default()).unwrap()
}

macro_rules! conform {
    ($($name:ident),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $name() -> anyhow::Result<()> {
                let server = server();
                conformance::$name(server.client("conformance")?).await
            }
        )*
    };
}

conform!(
    a_stale_update_is_refused,
    of_racing_updates_one_wins,
    an_update_without_change_writes_nothing,
    names_are_checked,
    metadata_belongs_to_the_server,
    unknown_fields_are_pruned,
    the_schema_is_enforced,
    integers_and_nulls_are_exact,
    the_status_is_a_world_of_its_own,
    patches_do_what_their_kind_says,
    deletions_obey_preconditions,
    finalizers_hold_an_object,
    pods_leave_gracefully,
    a_pod_is_bound_once,
    selectors_choose,
    pages_are_of_one_moment,
    a_watch_replays_from_its_version,
    a_watch_sees_through_its_selector,
    a_watch_sends_bookmarks,
    a_list_can_be_streamed,
    metadata_alone_can_be_read,
    a_dry_run_stores_nothing,
    a_collection_is_deleted,
    a_workload_is_scaled,
    what_is_not_served_is_told_in_plain_text,
);

fn maps(client: Client) -> Api<ConfigMap> {
    Api::namespaced(client, "default")
}

fn map(name: &str) -> ConfigMap {
    ConfigMap { metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }, ..ConfigMap::default() }
}

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

#[tokio::test]
async fn a_watch_from_a_forgotten_version_is_gone() {
    let server = server();
    let maps = maps(server.client("test").unwrap());
    maps.create(&PostParams::default(), &map("a")).await.unwrap();
    server.compact();
    let stream = maps.watch(&WatchParams::default(), "1").await.unwrap();
    pin_mut!(stream);
    match stream.try_next().await.unwrap() {
        Some(WatchEvent::Error(status)) => {
            assert_eq!((status.code, status.reason.as_str()), (410, "Expired"))
        }
        other => panic!("{other:?}"),
    }
    assert!(stream.next().await.is_none(), "the watch ends after 410");
}

#[tokio::test]
async fn a_watcher_survives_cut_watches_compaction_and_a_restart() {
    let server = server();
    let writer = maps(server.client("writer").unwrap());
    let stream = watcher(maps(server.client("watcher").unwrap()), watcher::Config::default());
    pin_mut!(stream);
    let mut known = std::collections::BTreeSet::new();
    for (round, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        writer.create(&PostParams::default(), &map(name)).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !known.contains(name) {
            assert!(Instant::now() < deadline, "{name} was never seen");
            match stream.next().await.unwrap() {
                Ok(watcher::Event::Apply(o) | watcher::Event::InitApply(o)) => {
                    known.insert(o.name_any());
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        match round {
            0 => server.cut_watches(),
            1 => {
                server.compact();
                server.cut_watches();
            }
            2 => {
                server.down();
                assert!(writer.get("a").await.is_err(), "a server that is down does not answer");
                server.up().unwrap();
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_fault_answers_with_its_code_as_often_as_asked() {
    let server = server();
    let maps = maps(server.client("test").unwrap());
    let fault =
        server.faults().on(Match::on("create", "configmaps"), Fault::Status { code: 403, retry_after: None }, 2);
    for _ in 0..2 {
        assert_eq!(code(&maps.create(&PostParams::default(), &map("a")).await.unwrap_err()), 403);
    }
    assert_eq!(fault.hits(), 2);
    maps.create(&PostParams::default(), &map("a")).await.unwrap();
}

#[tokio::test]
async fn a_lost_reply_leaves_the_object_behind() {
    let server = server();
    let maps = maps(server.client("test").unwrap());
    server.faults().on(Match::on("create", "configmaps"), Fault::LoseReplyAfterCommit, 1);
    let error = maps.create(&PostParams::default(), &map("a")).await.unwrap_err();
    assert_eq!(code(&error), 0, "no answer came: {error}");
    maps.get("a").await.unwrap();
    server.faults().on(Match::on("delete", "configmaps").name("a"), Fault::StatusAfterCommit(504), 1);
    assert_eq!(code(&maps.delete("a", &DeleteParams::default()).await.unwrap_err()), 504);
    assert_eq!(code(&maps.get("a").await.unwrap_err()), 404);
}

#[tokio::test]
async fn a_cut_connection_leaves_nothing_behind() {
    let server = server();
    let maps = maps(server.client("test").unwrap());
    let before = server.snapshot();
    server.faults().on(Match::on("create", "configmaps"), Fault::CloseBefore, usize::MAX);
    assert!(maps.create(&PostParams::default(), &map("a")).await.is_err());
    assert_eq!(server.snapshot(), before);
    server.faults().clear();
    maps.create(&PostParams::default(), &map("a")).await.unwrap();
    assert_ne!(server.snapshot(), before);
}

#[tokio::test]
async fn a_gate_decides_who_comes_first() {
    let server = server();
    let (slow, fast) = (maps(server.client("slow").unwrap()), maps(server.client("fast").unwrap()));
    let gate = Gate::new();
    server.faults().on(Match::on("create", "configmaps").agent("slow"), Fault::Hold(gate.clone()), 1);
    let waiting = tokio::spawn(async move { slow.create(&PostParams::default(), &map("a")).await });
    gate.arrival().await;
    fast.create(&PostParams::default(), &map("a")).await.unwrap();
    gate.open();
    assert_eq!(code(&waiting.await.unwrap().unwrap_err()), 409);
}

#[tokio::test]
async fn calls_are_counted_by_verb_resource_and_client() {
    let server = server();
    let (mine, other) = (maps(server.client("mine").unwrap()), maps(server.client("other").unwrap()));
    let mark = server.calls().mark();
    mine.create(&PostParams::default(), &map("a")).await.unwrap();
    mine.get("a").await.unwrap();
    mine.list(&ListParams::default()).await.unwrap();
    other.get("a").await.unwrap();
    let counts = server.calls().by_verb(mark, |call| call.agent == "mine");
    let expected = [("create", 1), ("get", 1), ("list", 1)];
    assert_eq!(
        counts.into_iter().collect::<Vec<_>>(),
        expected.map(|(verb, n)| ((verb.to_owned(), "configmaps".to_owned()), n))
    );
    assert_eq!(server.calls().count(|call| call.agent == "other" && call.is_write()), 0);
}

#[tokio::test]
async fn reads_do_not_move_the_revision() {
    let server = server();
    let maps = maps(server.client("test").unwrap());
    let (revision, before) = (server.revision(), server.snapshot());
    maps.list(&ListParams::default()).await.unwrap();
    maps.get("none").await.unwrap_err();
    assert_eq!((server.revision(), server.snapshot()), (revision, before));
}

#[tokio::test]
async fn a_revoked_token_is_refused() {
    let server =
        Server::start(&Options { tokens: [("secret".to_owned(), "alice".to_owned())].into(), ..Options::default() })
            .unwrap();
    let alice = maps(server.client_with_token("test", Some("secret")).unwrap());
    alice.list(&ListParams::default()).await.unwrap();
    assert_eq!(server.calls().all().last().unwrap().user, "alice");
    let nobody = maps(server.client("test").unwrap());
    assert_eq!(code(&nobody.list(&ListParams::default()).await.unwrap_err()), 401);
    server.revoke_token("secret");
    server.add_token("other", "alice");
    assert_eq!(code(&alice.list(&ListParams::default()).await.unwrap_err()), 401);
}

#[tokio::test]
async fn a_kubeconfig_leads_to_the_server() {
    let server = server();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kubeconfig");
    server.write_kubeconfig(&file, Some("bob")).unwrap();
    let config = kube::config::Kubeconfig::read_from(&file).unwrap();
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.unwrap();
    maps(Client::try_from(config).unwrap()).list(&ListParams::default()).await.unwrap();
    assert_eq!(server.calls().all().last().unwrap().user, "bob");
}

#[tokio::test]
async fn discovery_lists_built_in_and_defined_resources() {
    let server =
        Server::start(&Options { crds: vec![conformance::definition().unwrap()], ..Options::default() }).unwrap();
    let client = server.client("test").unwrap();
    let discovery = kube::Discovery::new(client.clone()).run().await.unwrap();
    let found = discovery
        .groups()
        .flat_map(|g| g.recommended_resources())
        .map(|(r, _)| format!("{}.{}", r.plural, r.group))
        .collect::<Vec<_>>();
    for wanted in ["pods.", "deployments.apps", "leases.coordination.k8s.io", "things.conformance.kube-ipam.io"] {
        assert!(found.iter().any(|f| f == wanted), "{wanted} is not in {found:?}");
    }
    assert_eq!(client.apiserver_version().await.unwrap().major, "1");
}

#[test]
fn a_server_starts_in_less_than_fifty_milliseconds() {
    let started = Instant::now();
    let _server = server();
    assert!(started.elapsed() < Duration::from_millis(50), "{:?}", started.elapsed());
}
