//! Every rule of a handover, each by what is changed in a case where all others are met.

use serde_json::{Map, json};

use super::*;
use crate::claim::Successor;

const NOW: i64 = 1_800_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW - seconds).unwrap()
}

fn lineage(revision: &str) -> Lineage {
    Lineage {
        uid: "deployment".into(),
        api_version: "apps/v1".into(),
        kind: "Deployment".into(),
        name: "web".into(),
        set: format!("set-{revision}"),
        set_was_ready: false,
        revision: Some(revision.into()),
        current: Some("2".into()),
        paused: false,
        observed: true,
        selects: true,
        min_ready: SignedDuration::from_secs(10),
    }
}

fn asking() -> Asking {
    Asking {
        uid: "new".into(),
        node: "n1".into(),
        waits: true,
        node_ready: true,
        images_known: true,
        lineage: Some(lineage("2")),
    }
}

/// A pod that has been Ready for a minute.
fn holder(uid: &str, revision: &str) -> Holder {
    Holder {
        name: format!("pod-{uid}"),
        uid: uid.into(),
        node: "n1".into(),
        state: PodState::Alive,
        ready_since: Some(ago(60)),
        lineage: Some(lineage(revision)),
        grace: SignedDuration::from_secs(30),
    }
}

fn candidate(address: &str, holder: Option<Holder>) -> Candidate {
    let held = holder.as_ref().map(|holder| {
        json!({
            "podUid": holder.uid, "pod": holder.name, "containerId": "c", "interface": "eth0", "node": "n1",
            "since": "2026-11-24T02:01:28Z",
        })
    });
    let owner = json!({"namespace": "default", "group": "apps", "kind": "Deployment", "name": "web"});
    let claim = json!({
        "address": address, "created": "2026-11-24T02:01:28Z", "generation": 1, "owner": owner, "holder": held,
    });
    Candidate {
        address: address.parse().unwrap(),
        claim: Some(serde_json::from_value(claim).unwrap()),
        of_owner: true,
        lapsed: false,
        holder,
    }
}

fn kept_for(candidate: Candidate, uid: &str, seconds: i64) -> Candidate {
    let until = Timestamp::from_second(NOW + seconds).unwrap();
    let successor = Successor { pod_uid: uid.into(), pod: format!("pod-{uid}"), until, unknown: Map::new() };
    let claim = candidate.claim.map(|claim| Claim { successor: Some(successor), ..claim });
    Candidate { claim, ..candidate }
}

/// One address, held by a live pod of revision 1.
fn list() -> Vec<Candidate> {
    vec![candidate("10.244.0.216", Some(holder("old", "1")))]
}

fn says(asking: &Asking, list: Vec<Candidate>) -> String {
    match decide(asking, &[list, Vec::new()], now()) {
        Decision::Evict { holder, images_known: true, .. } => format!("evict {}", holder.uid),
        Decision::Evict { holder, images_known: false, .. } => format!("evict {} blindly", holder.uid),
        Decision::Keep { holder, .. } => format!("keep from {}", holder.uid),
        Decision::Wait(waiting) => format!("{waiting:?}"),
        Decision::Refuse(refusal) => format!("{refusal:?}"),
    }
}

#[test]
fn an_old_revisions_pod_is_evicted_for_a_pod_of_the_current_one() {
    assert_eq!(says(&asking(), list()), "evict old");
}

#[test]
fn the_asking_pod_and_its_owner_must_be_such_that_it_helps() {
    type Change = fn(&mut Asking, &mut Lineage);
    let cases: [(&str, Change); 14] = [
        ("NotWaiting", |asking, _| asking.waits = false),
        ("NodeNotReady", |asking, _| asking.node_ready = false),
        ("NotObserved", |_, of| of.observed = false),
        ("OldRevision", |_, of| of.revision = Some("1".into())),
        ("OldRevision", |_, of| of.current = Some("3".into())),
        // Rolled back: the old template has a new number.
        ("evict old", |_, of| (of.revision, of.current) = (Some("3".into()), Some("3".into()))),
        ("Kind(\"StatefulSet\")", |_, of| (of.kind, of.revision, of.current) = ("StatefulSet".into(), None, None)),
        ("Kind(\"Deployment\")", |_, of| of.current = None),
        ("Paused(\"Deployment web\")", |_, of| of.paused = true),
        ("NotSelected", |_, of| of.selects = false),
        // Another object of the same name is another owner.
        ("NobodyToEvict", |_, of| of.uid = "made again".into()),
        ("evict old blindly", |asking, _| asking.images_known = false),
        ("evict old", |asking, of| (asking.images_known, of.set_was_ready) = (false, true)),
        ("evict old", |_, of| of.kind = "Rollout".into()),
    ];
    for (expected, change) in cases {
        let (mut asking, mut of) = (asking(), lineage("2"));
        change(&mut asking, &mut of);
        asking.lineage = Some(of);
        assert_eq!(says(&asking, list()), expected);
    }
    assert_eq!(says(&Asking { lineage: None, ..asking() }, list()), "Bare");
}

#[test]
fn only_a_live_pod_of_another_revision_of_the_same_owner_is_evicted() {
    type Change = fn(&mut Candidate, &mut Holder);
    let cases: [(&str, Change); 9] = [
        ("evict old", |_, _| {}),
        ("NobodyToEvict", |_, of| of.lineage = None),
        ("NobodyToEvict", |_, of| of.lineage.as_mut().unwrap().uid = "another".into()),
        ("NobodyToEvict", |_, of| of.lineage.as_mut().unwrap().revision = Some("2".into())),
        ("NobodyToEvict", |_, of| of.lineage.as_mut().unwrap().revision = None),
        ("NobodyToEvict", |_, of| of.lineage.as_mut().unwrap().selects = false),
        ("NobodyToEvict", |candidate, _| candidate.of_owner = false),
        ("Coming", |_, of| of.state = PodState::Gone),
        ("keep from old", |_, of| of.state = PodState::Terminating),
    ];
    for (expected, change) in cases {
        let (mut candidate, mut of) = (list().remove(0), holder("old", "1"));
        change(&mut candidate, &mut of);
        candidate.holder = Some(of);
        assert_eq!(says(&asking(), vec![candidate]), expected);
    }
}

#[test]
fn nobody_is_evicted_while_an_address_is_free_or_about_to_be() {
    let held = || list().remove(0);
    let free = Candidate { claim: None, holder: None, ..candidate("10.244.0.217", None) };
    assert_eq!(says(&asking(), vec![held(), free]), "Coming");
    assert_eq!(says(&asking(), vec![held(), candidate("10.244.0.217", None)]), "Coming");
    let ending = Holder { state: PodState::Terminating, ..holder("ending", "2") };
    assert_eq!(says(&asking(), vec![held(), candidate("10.244.0.217", Some(ending))]), "Coming");
    // What another owner has, or another ledger, is not free for this pod.
    let foreign = Candidate { of_owner: false, ..candidate("10.244.0.217", None) };
    assert_eq!(says(&asking(), vec![held(), foreign]), "evict old");
    let mut moved = candidate("10.244.0.217", None);
    moved.claim.as_mut().unwrap().moved = Some("etcd".into());
    assert_eq!(says(&asking(), vec![held(), moved]), "evict old");
}

#[test]
fn it_is_one_at_a_time_and_the_next_when_the_successor_is_available() {
    let old = || candidate("10.244.0.216", Some(holder("old", "1")));
    let other = |holder: Holder| vec![old(), candidate("10.244.0.217", Some(holder))];
    let successor = |ready: Option<i64>| Holder { ready_since: ready.map(ago), ..holder("first", "2") };
    assert_eq!(says(&asking(), other(successor(None))), "Unavailable(\"pod-first\")");
    assert_eq!(says(&asking(), other(successor(Some(9)))), "Unavailable(\"pod-first\")");
    assert_eq!(says(&asking(), other(successor(Some(10)))), "evict old");
    // The first has not come for its address yet.
    let kept = |holder: Option<Holder>| kept_for(candidate("10.244.0.217", holder), "first", 60);
    assert_eq!(says(&asking(), vec![old(), kept(Some(holder("older", "1")))]), "Another(\"pod-first\")");
    assert_eq!(says(&asking(), vec![old(), kept(None)]), "Another(\"pod-first\")");
    let lapsed = Candidate { lapsed: true, ..kept(Some(holder("older", "1"))) };
    assert_eq!(says(&asking(), vec![old(), lapsed]), "evict older");
    let over = kept_for(candidate("10.244.0.217", Some(holder("older", "1"))), "first", -1);
    assert_eq!(says(&asking(), vec![old(), over]), "evict older");
    // A reservation for the asking pod itself is one that was not carried out: a budget was in the way.
    assert_eq!(says(&asking(), vec![kept_for(old(), "new", 60)]), "evict old");
    // One that holds the address that was kept for it is past its handover.
    let has = kept_for(candidate("10.244.0.217", Some(successor(Some(60)))), "first", 60);
    assert_eq!(says(&asking(), vec![old(), has]), "evict old");
}

#[test]
fn a_pod_that_does_not_serve_goes_first_and_then_the_one_that_serves_since_the_shortest_time() {
    let of = |n: u8, ready: Option<i64>| {
        let holder = Holder { ready_since: ready.map(ago), ..holder(&format!("old-{n}"), "1") };
        candidate(&format!("10.244.0.{n}"), Some(holder))
    };
    assert_eq!(says(&asking(), vec![of(1, Some(60)), of(2, None), of(3, Some(5))]), "evict old-2");
    assert_eq!(says(&asking(), vec![of(1, Some(60)), of(3, Some(5)), of(2, Some(20))]), "evict old-3");
    // A DaemonSet's pod follows that of its node.
    let daemon = Lineage { kind: "DaemonSet".into(), ..lineage("2") };
    let daemon = Asking { lineage: Some(daemon), ..asking() };
    let elsewhere = |mut candidate: Candidate| {
        candidate.holder.as_mut().unwrap().node = "n2".into();
        candidate
    };
    assert_eq!(says(&daemon, vec![elsewhere(of(1, None)), of(2, Some(60)), elsewhere(of(3, Some(5)))]), "evict old-2");
}

#[test]
fn an_address_whose_holder_ends_by_itself_is_kept_once() {
    let ending = || Holder { state: PodState::Terminating, ..holder("old", "1") };
    let one = || candidate("10.244.0.216", Some(ending()));
    assert_eq!(says(&asking(), vec![one()]), "keep from old");
    assert_eq!(says(&asking(), vec![kept_for(one(), "new", 60)]), "Coming");
    // For another pod of the current revision it is kept already.
    assert_eq!(says(&asking(), vec![kept_for(one(), "first", 60)]), "Another(\"pod-first\")");
    let replacement = Asking { uid: "again".into(), lineage: Some(lineage("1")), ..asking() };
    assert_eq!(says(&replacement, vec![one()]), "Coming");
    let same = Holder { lineage: Some(lineage("2")), ..ending() };
    assert_eq!(says(&asking(), vec![candidate("10.244.0.216", Some(same))]), "Coming");
}

#[test]
fn a_dual_stack_pod_gets_both_addresses_of_the_pod_that_it_follows() {
    let four = || candidate("10.244.0.216", Some(holder("old", "1")));
    let six = |holder: Option<Holder>| candidate("fd00:10:244::216", holder);
    let decided = |six: Candidate| decide(&asking(), &[vec![four()], vec![six]], now());
    let both: Vec<IpAddr> = vec!["10.244.0.216".parse().unwrap(), "fd00:10:244::216".parse().unwrap()];
    let Decision::Evict { addresses, .. } = decided(six(Some(holder("old", "1")))) else { panic!() };
    assert_eq!(addresses, both);
    let Decision::Evict { addresses, .. } = decided(six(None)) else { panic!() };
    assert_eq!(addresses, both[..1]);
    // The family that is left is dealt with after the first.
    let leaving = kept_for(
        candidate("10.244.0.216", Some(Holder { state: PodState::Terminating, ..holder("old", "1") })),
        "new",
        60,
    );
    let second = decide(&asking(), &[vec![leaving], vec![six(Some(holder("older", "1")))]], now());
    let Decision::Evict { holder, addresses, .. } = second else { panic!("{second:?}") };
    assert_eq!((holder.uid.as_str(), addresses.as_slice()), ("older", &both[1..]));
}
