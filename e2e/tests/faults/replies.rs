//! Replies that are lost after the work was done (fault 7): the result is right, and there is one allocation.

use e2e::embedded::apiserver::{Fault, Match};
use serde_json::json;

use super::ground::{FIXED, Ground, assert_ok, assert_refused, bare};
use super::relay::Relay;

/// Every write of ADD and DEL to the API server, by verb and kind.
const WRITES: [(&str, &str); 7] = [
    ("create", "ipreservations"),
    ("create", "blockaffinities"),
    ("create", "ipamblocks"),
    ("update", "blockaffinities"),
    ("create", "ipamhandles"),
    ("update", "ipamblocks"),
    ("delete", "ipamhandles"),
];

fn losses() -> [Fault; 3] {
    [Fault::LoseReplyAfterCommit, Fault::StatusAfterCommit(504), Fault::StatusAfterCommit(500)]
}

#[tokio::test]
async fn a_lost_reply_of_the_api_server_changes_no_answer() {
    for fault in losses() {
        let ground = Ground::prepare().await;
        ground.fixed("f");
        ground.random("r");
        let planned = WRITES.map(|(verb, kind)| {
            let wanted = Match::on(verb, &format!("{kind}.crd.projectcalico.org"));
            (verb, kind, ground.server().faults().on(wanted, fault.clone(), 1))
        });
        let (fixed, random) = (ground.add("f", "f").await, ground.add("r", "r").await);
        assert_eq!(bare(&fixed), [FIXED], "{fault:?}: {fixed:?}");
        let random = bare(&random);
        let mut expected = vec![(FIXED.to_owned(), "f".to_owned()), (random[0].clone(), "r".to_owned())];
        expected.sort();
        assert_eq!(ground.allocated(), expected);
        ground.assert_sound(&format!("{fault:?} in ADD")).await;
        for name in ["f", "r"] {
            // DEL writes the block, too: again with its reply lost.
            let wanted = Match::on("update", "ipamblocks.crd.projectcalico.org");
            let lost = ground.server().faults().on(wanted, fault.clone(), 1);
            assert_ok(&ground.del(name, name).await);
            assert_eq!(lost.hits(), 1);
            assert_eq!(ground.leftovers(name).await, [""; 0]);
        }
        for (verb, kind, planned) in planned {
            assert_eq!(planned.hits(), 1, "{fault:?} never struck {verb} {kind}");
        }
        assert!(ground.claims().await[0].holder.is_none());
        ground.assert_sound(&format!("{fault:?} in DEL")).await;
    }
}

/// etcd's answers are cut off after each piece in turn, whatever it was about.
#[tokio::test]
async fn a_connection_to_etcd_that_is_cut_anywhere_leaves_one_allocation_or_none() {
    let mut ground = Ground::prepare().await;
    let relay =
        Relay::before(ground.cluster.etcd().unwrap().url().strip_prefix("http://").unwrap().parse().unwrap()).await;
    ground.conf["ipam"]["etcdConfig"]["etcdURL"] = json!(format!("http://{}", relay.address));
    let mut cuts = 0;
    for pieces in 0.. {
        let (pod, container) = (format!("f{pieces}-1"), format!("c{pieces}"));
        ground.pod(&pod, "n1", json!({"kube-ipam.ip": FIXED}));
        relay.cut_after(pieces);
        let outcome = ground.add(&pod, &container).await;
        let unstruck = relay.is_waiting();
        relay.cut_nothing();
        if outcome.is_ok() {
            assert_eq!(bare(&outcome), [FIXED]);
            assert_eq!(ground.allocated(), [(FIXED.to_owned(), container.clone())]);
        } else {
            assert_refused(&outcome, 11, &["claim"]);
        }
        assert_ok(&ground.del(&pod, &container).await);
        assert_eq!(ground.leftovers(&container).await, [""; 0], "cut after {pieces} pieces: {outcome:?}");
        ground.assert_sound(&format!("etcd cut after {pieces} pieces")).await;
        if unstruck {
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 3, "only {cuts} cuts");
}
