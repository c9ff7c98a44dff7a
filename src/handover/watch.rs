//! The pods that wait for an address, in turn: each is examined when it comes, and again as long as it waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};

use super::{Case, Decision, Evict, Handover, Outcome, Waiting};
use crate::collector::Mandate;
use crate::store::{Ledger, Objects, StoreError};

/// Pause before a pod is examined again whose turn is a matter of seconds.
const SOON: Duration = Duration::from_secs(2);
/// The same where a budget or a person has to change something first.
const LATER: Duration = Duration::from_secs(10);

/// What is told of a pod that waits. What has been told of it is not told again.
#[derive(Debug)]
pub enum Told<'a> {
    /// What was decided, and is not carried out, as there is nothing to do.
    Decided(&'a Case),
    /// What came of it.
    Done(&'a Case, &'a Outcome),
    /// Something could not be read or written; it is tried again.
    Failed(&'a StoreError),
}

/// A pod that waits.
struct Turn {
    namespace: String,
    name: String,
    due: Instant,
    /// What was told of it.
    told: String,
}

/// Follows the cluster's pending pods, and hands addresses over to them, whenever there is a `mandate`. Never ends by
/// itself.
pub async fn watch<O: Objects, L: Ledger, E: Evict>(
    client: Client,
    handover: &Handover<O, L, E>,
    mut mandate: Receiver<Option<Arc<dyn Mandate>>>,
    mut hear: impl FnMut(Told<'_>) + Send,
) {
    loop {
        let Some(leave) = mandate.borrow_and_update().clone() else {
            if mandate.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            continue;
        };
        tokio::select! {
            () = follow(client.clone(), handover, leave.as_ref(), &mut hear) => {}
            changed = mandate.changed() => {
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

/// For one term of leadership.
async fn follow<O: Objects, L: Ledger, E: Evict>(
    client: Client,
    handover: &Handover<O, L, E>,
    mandate: &dyn Mandate,
    hear: &mut (impl FnMut(Told<'_>) + Send),
) {
    // A pod is pending until its containers run, so it is seen from before its ADD until after that.
    let pending = watcher::Config::default().fields("status.phase=Pending");
    let mut events = watcher(Api::<Pod>::all(client), pending).default_backoff().boxed();
    let mut turns: BTreeMap<String, Turn> = BTreeMap::new();
    let mut listed = BTreeSet::new();
    loop {
        let next = turns.iter().min_by_key(|(_, turn)| turn.due).map(|(uid, turn)| (uid.clone(), turn.due));
        let due = next.as_ref().map_or_else(|| Instant::now() + LATER, |(_, due)| *due);
        tokio::select! {
            biased;
            event = events.next() => match event {
                Some(Ok(Event::Init)) => listed.clear(),
                Some(Ok(Event::InitApply(pod))) => {
                    listed.extend(pod.uid());
                    seen(handover, &mut turns, &pod);
                }
                Some(Ok(Event::InitDone)) => turns.retain(|uid, _| listed.contains(uid)),
                Some(Ok(Event::Apply(pod))) => seen(handover, &mut turns, &pod),
                Some(Ok(Event::Delete(pod))) => drop(pod.uid().and_then(|uid| turns.remove(&uid))),
                Some(Err(error)) => tracing::warn!(%error, "the watch of pending pods broke off and begins again"),
                None => return,
            },
            () = sleep_until(due) => {
                let Some((uid, _)) = next else { continue };
                let Some(turn) = turns.get_mut(&uid) else { continue };
                match look(handover, mandate, turn, hear).await {
                    Some(pause) => turn.due = Instant::now() + pause,
                    None => drop(turns.remove(&uid)),
                }
            }
        }
    }
}

fn seen<O: Objects, L: Ledger, E: Evict>(handover: &Handover<O, L, E>, turns: &mut BTreeMap<String, Turn>, pod: &Pod) {
    let Some(uid) = pod.uid() else { return };
    if !handover.concerns(pod) {
        turns.remove(&uid);
        return;
    }
    turns.entry(uid).or_insert_with(|| Turn {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        due: Instant::now(),
        told: String::new(),
    });
}

/// Examines a pod and does what is to be done; gives the pause until it is looked at again, `None` if it is not.
async fn look<O: Objects, L: Ledger, E: Evict>(
    handover: &Handover<O, L, E>,
    mandate: &dyn Mandate,
    turn: &mut Turn,
    hear: &mut (impl FnMut(Told<'_>) + Send),
) -> Option<Duration> {
    let mut tell = |what: String, told: Told<'_>| {
        if turn.told != what {
            turn.told = what;
            hear(told);
        }
    };
    let case = match handover.examine(&turn.namespace, &turn.name).await {
        Ok(case) => case?,
        Err(error) => {
            tell(error.to_string(), Told::Failed(&error));
            return Some(LATER);
        }
    };
    match &case.decision {
        Decision::Wait(Waiting::NotWaiting) => return None,
        Decision::Wait(waiting) => {
            tell(waiting.to_string(), Told::Decided(&case));
            return Some(SOON);
        }
        Decision::Refuse(refusal) => {
            tell(refusal.to_string(), Told::Decided(&case));
            return Some(LATER);
        }
        Decision::Evict { .. } | Decision::Keep { .. } => {}
    }
    if !mandate.holds().await {
        return Some(SOON);
    }
    match handover.carry_out(&case).await {
        Ok(None | Some(Outcome::Changed)) => Some(SOON),
        Ok(Some(outcome)) => {
            let pause = if matches!(outcome, Outcome::Blocked(_)) { LATER } else { SOON };
            tell(format!("{outcome:?}"), Told::Done(&case, &outcome));
            Some(pause)
        }
        Err(error) => {
            tell(error.to_string(), Told::Failed(&error));
            Some(LATER)
        }
    }
}
