//! `claims move`: there and back, under way while pods come and go, broken off, and contradicted.

use e2e::embedded::apiserver::{Fault, Match};
use e2e::lab::{Lab, Ledger, Network};
use serde_json::{Value, json};

use super::{address, claims, deployment, fixed, next, only, run};

const CLAIMS: &str = "ipclaims.kube-ipam.io";

/// Claims without what says where they have been.
fn bare(claims: Vec<Value>) -> Vec<Value> {
    let without = |mut claim: Value| {
        claim.as_object_mut().unwrap().remove("moved");
        claim
    };
    claims.into_iter().map(without).collect()
}

async fn use_ledger(lab: &Lab, ledger: Ledger) {
    lab.configure(&Network { ledger, ..lab.network() }).await.unwrap();
}

#[tokio::test]
async fn all_claims_go_to_the_other_ledger_and_back_while_pods_come_and_go() {
    let lab = Lab::embedded(false).await.unwrap();
    for (app, ip) in [("one", "10.244.0.216"), ("two", "10.244.0.217"), ("three", "fd00:10:244::30")] {
        if ip.contains(':') {
            lab.configure(&Network { dual_stack: true, ..lab.network() }).await.unwrap();
        }
        lab.create(deployment(app, fixed(ip))).await.unwrap();
        only(&lab, app).await;
    }
    lab.configure(&lab.network()).await.unwrap();

    // Nothing is written unasked.
    let said = run(&lab, false, &["claims", "move", "--to", "objects"]);
    assert!(said.contains("stdin is no terminal") && said.contains("--yes"), "{said}");
    let said = run(&lab, true, &["claims", "move", "--to", "objects", "--dry-run"]);
    assert!(said.contains("copy to IPClaims") && said.contains("--close"), "{said}");
    assert_eq!(claims(&lab, "objects"), [] as [Value; 0]);

    run(&lab, true, &["claims", "move", "--to", "objects", "--yes"]);
    assert_eq!(claims(&lab, "objects"), claims(&lab, "etcd"));
    // The nodes go on with etcd, and what changes there is carried after it.
    let one = only(&lab, "one").await;
    let one = next(&lab, "one", &one).await;
    let said = run(&lab, true, &["claims", "move", "--to", "objects", "--dry-run"]);
    assert!(said.contains("renew in IPClaims") && !said.contains("10.244.0.217"), "{said}");
    let said = run(&lab, false, &["claims", "move", "--to", "objects", "--drop-source", "--yes"]);
    assert!(said.contains("is not closed in the source"), "{said}");
    run(&lab, true, &["claims", "move", "--to", "objects", "--close", "--yes"]);
    assert_eq!(claims(&lab, "objects"), bare(claims(&lab, "etcd")));

    // A node that has not been changed over refuses a fixed address rather than give it by the ledger that was left.
    lab.delete_pod(&one).await.unwrap();
    lab.event("default", "one", &["was carried to IPClaims", "kube-ipam claims move"]).await.unwrap();
    lab.create(deployment("random", json!({}))).await.unwrap();
    only(&lab, "random").await;
    use_ledger(&lab, Ledger::Objects).await;
    assert_eq!(address(&only(&lab, "one").await), "10.244.0.216");

    let said = run(&lab, true, &["claims", "move", "--to", "objects", "--drop-source", "--yes"]);
    assert!(said.contains("remove from etcd"), "{said}");
    assert_eq!(claims(&lab, "etcd"), [] as [Value; 0]);
    assert_eq!(claims(&lab, "objects").len(), 3);
    run(&lab, true, &["check", "--ledger", "objects"]);
    run(&lab, true, &["claims", "move", "--to", "objects", "--drop-source", "--yes"]);

    // And back again.
    run(&lab, true, &["claims", "move", "--to", "etcd", "--close", "--yes"]);
    use_ledger(&lab, Ledger::Etcd).await;
    let two = only(&lab, "two").await;
    assert_eq!(address(&next(&lab, "two", &two).await), "10.244.0.217");
    run(&lab, true, &["claims", "move", "--to", "etcd", "--drop-source", "--yes"]);
    assert_eq!(claims(&lab, "objects"), [] as [Value; 0]);
    run(&lab, true, &["check"]);
}

#[tokio::test]
async fn a_move_that_breaks_off_is_completed_and_can_be_taken_back() {
    let lab = Lab::embedded(false).await.unwrap();
    for (app, ip) in [("one", "10.244.0.216"), ("two", "10.244.0.217")] {
        lab.create(deployment(app, fixed(ip))).await.unwrap();
        only(&lab, app).await;
    }
    let faults = lab.embedded_server().unwrap().faults();
    // All but the first copy are refused, and the reply to the first is lost.
    faults.on(Match::on("create", CLAIMS), Fault::LoseReplyAfterCommit, 1);
    let refusing = faults.on(Match::on("create", CLAIMS), Fault::Status { code: 403, retry_after: None }, usize::MAX);
    let said = run(&lab, false, &["claims", "move", "--to", "objects", "--close", "--yes"]);
    assert!(said.contains("repeat it to complete it") && said.contains("forbidden"), "{said}");
    assert_eq!(claims(&lab, "objects").len(), 1);
    refusing.stop();
    run(&lab, true, &["claims", "move", "--to", "objects", "--close", "--yes"]);
    assert_eq!(claims(&lab, "objects"), bare(claims(&lab, "etcd")));

    // Before the nodes are changed over everything can be taken back: the source is opened again.
    run(&lab, true, &["claims", "move", "--to", "etcd", "--yes"]);
    assert_eq!(claims(&lab, "etcd"), bare(claims(&lab, "etcd")));
    let one = only(&lab, "one").await;
    assert_eq!(address(&next(&lab, "one", &one).await), "10.244.0.216");
    run(&lab, true, &["check"]);
}

#[tokio::test]
async fn ledgers_that_contradict_each_other_are_left_as_they_are() {
    let lab = Lab::embedded(false).await.unwrap();
    lab.create(deployment("one", fixed("10.244.0.216"))).await.unwrap();
    lab.create(deployment("two", fixed("10.244.0.217"))).await.unwrap();
    only(&lab, "one").await;
    only(&lab, "two").await;
    lab.create(json!({
        "apiVersion": "kube-ipam.io/v1alpha1", "kind": "IPClaim", "metadata": {
            "name": "kube-subnet.10-244-0-216", "labels": {"kube-ipam.io/network": "kube-subnet"},
        },
        "spec": {
            "network": "kube-subnet", "address": "10.244.0.216", "generation": 1, "created": "2026-01-01T00:00:00Z",
            "owner": {"namespace": "default", "group": "apps", "kind": "Deployment", "name": "shop"},
        },
    }))
    .await
    .unwrap();
    for close in [&[][..], &["--close"]] {
        let arguments = [&["claims", "move", "--to", "objects", "--yes"], close].concat();
        let said = run(&lab, false, &arguments);
        assert!(said.contains("Deployment default/shop") && said.contains("nothing was written"), "{said}");
    }
    assert_eq!(claims(&lab, "objects").len(), 1);
    assert_eq!(claims(&lab, "etcd"), bare(claims(&lab, "etcd")));
}

/// Waits until a node's agent gives `reason` for not being ready, or none.
async fn until_not_ready(lab: &Lab, reason: Option<&str>) {
    let directory = lab.state_dir("node1").unwrap();
    lab.until("the agent says where the claims are", || async {
        let status = lab.kube_ipam_json(&["status", "--state-dir", directory.to_str().unwrap()])?;
        let reasons = status["notReady"].to_string();
        Ok(reason.map_or(reasons == "[]", |reason| reasons.contains(reason)).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn claims_that_a_changed_configuration_does_not_see_are_nobodys_to_take_until_they_are_carried_over() {
    let lab = Lab::embedded(true).await.unwrap();
    lab.create(deployment("one", fixed("10.244.0.216"))).await.unwrap();
    let one = only(&lab, "one").await;
    lab.create(deployment("two", fixed("10.244.0.217"))).await.unwrap();
    let two = only(&lab, "two").await;
    let before = claims(&lab, "etcd").len();
    let renamed = || {
        let listed = lab.kube_ipam_json(&["claims", "--ledger", "objects", "--network", "pods"]).unwrap();
        listed.as_array().unwrap().len()
    };

    // Another name, and another ledger.
    lab.configure(&Network { ledger: Ledger::Objects, name: "pods".into(), ..lab.network() }).await.unwrap();
    lab.delete_pod(&one).await.unwrap();
    let said = ["etcd under /kube-ipam/v1/kube-subnet/", "claims move --to objects --from-network kube-subnet"];
    lab.event("default", "one", &said).await.unwrap();
    lab.create(deployment("thief", fixed("10.244.0.217"))).await.unwrap();
    lab.event("default", "thief", &said[..1]).await.unwrap();
    lab.create(deployment("random", json!({}))).await.unwrap();
    only(&lab, "random").await;
    until_not_ready(&lab, Some(said[1])).await;
    assert_eq!((address(&only(&lab, "two").await), renamed()), ("10.244.0.217".into(), 0));

    let carry = ["claims", "move", "--network", "pods", "--to", "objects", "--from-network", "kube-subnet", "--yes"];
    run(&lab, true, &[&carry[..], &["--close"]].concat());
    assert_eq!(renamed(), before);
    assert_eq!(address(&only(&lab, "one").await), "10.244.0.216");
    run(&lab, true, &[&carry[..], &["--drop-source"]].concat());
    assert_eq!((claims(&lab, "etcd").len(), renamed()), (0, before));
    assert_eq!(address(&next(&lab, "two", &two).await), "10.244.0.217");
    until_not_ready(&lab, None).await;
    run(&lab, true, &["check", "--ledger", "objects", "--network", "pods"]);

    // And to another name in the same ledger.
    lab.configure(&Network { ledger: Ledger::Objects, name: "net".into(), ..lab.network() }).await.unwrap();
    let said =
        run(&lab, false, &["claims", "move", "--network", "net", "--to", "objects", "--from", "objects", "--yes"]);
    assert!(said.contains("--from-network"), "{said}");
    until_not_ready(&lab, Some("claims move --to objects --from objects --from-network pods")).await;
    let carry =
        ["claims", "move", "--network", "net", "--to", "objects", "--from", "objects", "--from-network", "pods"];
    run(&lab, true, &[&carry[..], &["--yes", "--close"]].concat());
    let one = only(&lab, "one").await;
    assert_eq!(address(&next(&lab, "one", &one).await), "10.244.0.216");
}
