//! ADDs that the runtime kills (faults 5 and 11): whatever comes next, nothing is left.

use std::time::{Duration, Instant};

use e2e::embedded::apiserver::{Fault, Gate, Match};

use super::ground::{FIXED, Ground, assert_ok, bare, end};

/// What follows a kill.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    /// The runtime calls DEL for the container.
    Del,
    /// It has forgotten the container, and calls GC.
    Gc,
    /// It makes a new sandbox for the pod, and calls GC later.
    AddAndGc,
}

const ALL: [Then; 3] = [Then::Del, Then::Gc, Then::AddAndGc];

struct Round<'a> {
    ground: &'a Ground,
    pod: String,
    container: String,
    told: String,
}

impl Round<'_> {
    async fn then(&self, then: Then, fixed: bool) {
        let (ground, pod, container) = (self.ground, &self.pod, &self.container);
        let told = format!("{} then {then:?}", self.told);
        let again = format!("{container}-again");
        match then {
            Then::Del => assert_ok(&ground.del(pod, container).await),
            Then::Gc => assert_ok(&ground.gc(&[]).await),
            Then::AddAndGc => {
                let outcome = ground.add(pod, &again).await;
                assert!(outcome.is_ok(), "{told}: {outcome:?}");
                assert!(!fixed || bare(&outcome) == [FIXED], "{told}: {outcome:?}");
                assert_ok(&ground.gc(&[&again]).await);
                assert_eq!(ground.allocated().len(), 1, "{told}");
            }
        }
        assert_eq!(ground.leftovers(container).await, [""; 0], "{told}");
        ground.assert_sound(&told).await;
        if then == Then::AddAndGc {
            assert_ok(&ground.del(pod, &again).await);
        }
        assert!(ground.allocated().is_empty(), "{told}");
    }
}

/// Kills an ADD when its `nth` request to the API server has arrived, or has been carried out; false if there
/// are not so many.
async fn kill_at(ground: &Ground, pod: &str, container: &str, nth: usize, done: bool) -> bool {
    let gate = Gate::new();
    let fault = if done { Fault::HoldAfterCommit(gate.clone()) } else { Fault::Hold(gate.clone()) };
    ground.server().faults().on(Match::any(), fault, usize::MAX);
    let mut child = ground.call("ADD", pod, container).start().await;
    let reach = async {
        for _ in 0..nth {
            gate.arrival().await;
            gate.let_one_pass();
        }
        gate.arrival().await;
    };
    let reached = tokio::select! {
        () = reach => true,
        _ = child.wait() => false,
    };
    if reached {
        child.kill().await.unwrap();
    }
    ground.server().faults().clear();
    gate.open();
    if !reached {
        let outcome = end(child, Instant::now()).await;
        assert_ok(&outcome);
    }
    reached
}

async fn at_every_request(fixed: bool, done: bool) {
    let mut kills = 0;
    for then in ALL {
        for nth in 0.. {
            // The first ADD of a node does most: it claims a block, too.
            let ground = Ground::prepare().await;
            let (pod, container) = ("f-1".to_owned(), "c".to_owned());
            if fixed {
                ground.fixed(&pod)
            } else {
                ground.random(&pod)
            }
            if !kill_at(&ground, &pod, &container, nth, done).await {
                break;
            }
            let when = if done { "after" } else { "before" };
            let told = format!("killed {when} request {nth} (fixed: {fixed})");
            Round { ground: &ground, pod, container, told }.then(then, fixed).await;
            kills += 1;
        }
    }
    println!("{kills} kills");
    assert!(kills >= 3 * 9, "only {kills} kills");
}

#[tokio::test]
async fn a_fixed_add_killed_before_any_request_leaves_nothing() {
    at_every_request(true, false).await;
}

#[tokio::test]
async fn a_fixed_add_killed_after_any_request_leaves_nothing() {
    at_every_request(true, true).await;
}

#[tokio::test]
async fn a_random_add_killed_before_any_request_leaves_nothing() {
    at_every_request(false, false).await;
}

#[tokio::test]
async fn a_random_add_killed_after_any_request_leaves_nothing() {
    at_every_request(false, true).await;
}

#[tokio::test]
async fn an_add_killed_at_a_random_moment_leaves_nothing() {
    let ground = Ground::prepare().await;
    ground.fixed("warm-1");
    let took = ground.add("warm-1", "warm").await.took;
    assert_ok(&ground.del("warm-1", "warm").await);
    for n in 0..30 {
        let (pod, container, fixed) = (format!("p{n}-1"), format!("c{n}"), n % 2 == 0);
        // An owner each, so that every claim is a new one's: the last owner's object does not exist.
        if fixed {
            ground.fixed(&pod)
        } else {
            ground.random(&pod)
        }
        let moment = Duration::from_micros(rand::random_range(0..=u64::try_from(took.as_micros()).unwrap()));
        let mut child = ground.call("ADD", &pod, &container).start().await;
        tokio::time::sleep(moment).await;
        let _ = child.kill().await;
        let told = format!("killed after {moment:?} (fixed: {fixed})");
        Round { ground: &ground, pod, container, told }.then(ALL[n / 2 % 3], fixed).await;
    }
}
