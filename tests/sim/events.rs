//! The actions of a plan, done at their time to whatever is there then.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kube_ipam::claim::Claim;
use kube_ipam::collector::{Always, Collector, Options};
use kube_ipam::driver::Driver;
use tokio::time::sleep;

use super::controllers;
use super::kubelet;
use super::linear::Did;
use super::oracle::{Container, Life};
use super::plan::{Kind, What};
use super::pods::{self, PodCell, Stage};
use super::sim::Sim;
use super::time;
use super::wire::{Caller, Wire};

/// Graces short enough for a run, and longer than a kubelet takes.
pub const OPTIONS: Options = Options {
    owner_grace: Duration::from_secs(40),
    allocation_grace: Duration::from_secs(30),
    half_done_grace: Duration::from_secs(30),
    settle: Duration::from_secs(10),
};
/// Time between two rounds of the collector.
const ROUND: Duration = Duration::from_secs(13);

pub async fn play(sim: Arc<Sim>) {
    for (index, action) in sim.plan.actions.iter().enumerate() {
        let wait = action.at.saturating_sub(time::now());
        sleep(Duration::from_millis(wait)).await;
        if !sim.skip.actions.contains(&index) {
            act(&sim, action.what);
        }
    }
}

fn pick<T>(which: u64, from: &[T]) -> Option<&T> {
    let len = u64::try_from(from.len()).ok().filter(|len| *len > 0)?;
    from.get(usize::try_from(which % len).unwrap_or_default())
}

fn act(sim: &Arc<Sim>, what: What) {
    let alive: Vec<Arc<PodCell>> = sim.pods().values().filter(|pod| pod.stage() != Stage::Gone).cloned().collect();
    let node = |which| pick(which, &(0..sim.hosts.len()).collect::<Vec<_>>()).copied().unwrap_or_default();
    let container = |which, life| {
        let truth = sim.truth();
        let of: Vec<&Container> = truth.oracle.containers.values().filter(|c| c.life == life).collect();
        let found = pick(which, &of).map(|c| (c.id.clone(), c.pod_uid.clone(), c.node))?;
        drop(truth);
        let pod = sim.pods().get(&found.1).cloned()?;
        (sim.hosts[found.2].is_up() && pod.node() == Some(found.2)).then_some((found.0, pod, found.2))
    };
    match what {
        What::DeletePod(which) => pick(which, &alive).into_iter().for_each(|pod| pods::delete(sim, pod)),
        What::DeletePodByForce(which) => {
            pick(which, &alive).into_iter().for_each(|pod| pods::remove(sim, pod, "by force"));
        }
        What::NewSandbox(which) => pick(which, &alive).into_iter().for_each(|pod| pod.new_sandbox.notify_one()),
        What::DelAgain(which) => {
            if let Some((id, pod, node)) = container(which, Life::Stopped) {
                let of = sim.clone();
                tokio::spawn(async move {
                    let answer = kubelet::del(&of, node, &pod, &id).await;
                    of.tell("runtime", "del", &id, || format!("stale: {answer:?}"));
                });
            }
        }
        What::AddAgain(which) => {
            if let Some((id, pod, node)) = container(which, Life::Running).filter(|(_, pod, _)| !pod.foreign) {
                let of = sim.clone();
                tokio::spawn(async move { kubelet::add_again(&of, node, &pod, &id).await });
            }
        }
        What::RestartKubelet(which) => {
            let host = &sim.hosts[node(which)];
            if host.is_up() && !sim.is_cut(host.index) {
                sim.tell("nodes", "restart", &host.name, || "the kubelet restarts".to_owned());
                host.kill_kubelet();
                kubelet::start(sim, host.index);
            }
        }
        What::KillAgent(which) => {
            let host = &sim.hosts[node(which)];
            if host.is_up() {
                sim.tell("nodes", "kill", &host.name, || "every call under way dies".to_owned());
                host.kill_agent(sim, (which >> 32) % 2 == 0);
            }
        }
        What::StopNode(which, down) => drop(tokio::spawn(controllers::stop_node(sim.clone(), node(which), down))),
        What::CutNode(which, long) => drop(tokio::spawn(controllers::cut_node(sim.clone(), node(which), long))),
        What::RemoveNode(which, long) => drop(tokio::spawn(controllers::remove_node(sim.clone(), node(which), long))),
        What::RemoveWorkload(which) => {
            let all: Vec<usize> = (0..sim.plan.workloads.len()).collect();
            pick(which, &all).into_iter().for_each(|workload| controllers::remove_workload(sim, *workload));
        }
        What::Surge(which) => {
            let surges = |w: &usize| sim.plan.workloads[*w].kind != Kind::StatefulSet && controllers::exists(sim, *w);
            let all: Vec<usize> = (0..sim.plan.workloads.len()).filter(surges).collect();
            if let Some(workload) = pick(which, &all) {
                tokio::spawn(controllers::surge(sim.clone(), *workload));
            }
        }
        What::KillCollector => sim.collector_dies.notify_one(),
        What::RestoreClaim(which) => {
            sim.seen("claims that were restored");
            let backups = sim.truth().backups.clone().unwrap_or_default();
            let all: Vec<_> = backups.iter().flat_map(|(of, values)| values.iter().map(|value| (*of, value))).collect();
            if let Some((address, claim)) = pick(which, &all) {
                harm_claim(sim, *address, Some(claim));
            }
        }
        What::LoseClaim(which) => {
            sim.seen("claims that were lost");
            let all: Vec<IpAddr> = sim.truth().backups.iter().flat_map(|all| all.keys().copied()).collect();
            pick(which, &all).into_iter().for_each(|address| harm_claim(sim, *address, None));
        }
        What::Lock(long) => drop(tokio::spawn(controllers::lock(sim.clone(), long))),
        What::ChangeController(which) => {
            // A StatefulSet's pod would ask for another address under a controller that counts no ordinals.
            let by_name = |pod: &PodCell| sim.plan.workloads[pod.workload].kind == Kind::StatefulSet;
            let own: Vec<_> = alive.into_iter().filter(|pod| !pod.wanted.is_empty() && !by_name(pod)).collect();
            if let Some(pod) = pick(which, &own) {
                let at_once = (which >> 32) % 2 == 0;
                tokio::spawn(controllers::change_controller(sim.clone(), pod.clone(), at_once));
            }
        }
    }
}

/// A claim is written by hand. The ledger's history knows of it, as of any other write.
fn harm_claim(sim: &Sim, address: IpAddr, claim: Option<&Claim>) {
    let (before, after) = sim.truth().harm_claim(address, claim);
    if before.is_some() || claim.is_some() {
        let mut history = sim.history();
        let write = history.begin_swap(address, before, claim.is_some());
        history.end_swap(write, Did::Write(after));
    }
    let holder = claim.and_then(|claim| Some(format!("{} held by {}", claim.generation, claim.holder.as_ref()?)));
    sim.tell("somebody", "claim", &address.to_string(), || {
        claim.map_or("is lost".into(), |_| {
            format!("is of generation {}", holder.unwrap_or_else(|| "held by nobody".into()))
        })
    });
}

/// Our collector, on a node of its own clock; one that dies is followed by another, which remembers nothing.
pub async fn collect(sim: Arc<Sim>) {
    for life in 0.. {
        let clock = life % sim.plan.nodes;
        let caller = Caller::mortal(format!("collector #{life}"), None);
        let wire = Wire::new(&sim, &caller);
        let driver = Driver::new(wire.clone(), Some(wire), time::clock(clock));
        let mut collector = Collector::new(driver, &sim.net, OPTIONS);
        let rounds = caller.run(async {
            loop {
                sleep(ROUND).await;
                match collector.round(&Always).await {
                    Ok(report) => {
                        sim.collector_found(
                            report.repairs.len() + report.waiting.values().sum::<usize>() + report.failed.len(),
                        );
                        for repair in &report.repairs {
                            sim.tell("collector", "repair", &repair.object, || {
                                format!("{} {}", repair.kind, repair.detail)
                            });
                        }
                    }
                    Err(unread) => sim.tell("collector", "round", "", || unread.to_string()),
                }
            }
        });
        tokio::select! {
            biased;
            _ = rounds => {}
            () = sim.collector_dies.notified() => {}
        }
        sim.tell("collector", "dies", "", String::new);
    }
}
