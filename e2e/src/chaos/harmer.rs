//! Does what the plan says, and sets it right again some time later.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::harms::{Harm, Plan};
use super::lives;
use super::members::{Cut, MEMBERS};
use super::node::freeze;
use super::runtime::Runtime;
use super::tally::Line;

/// Longest wait for a leader that can be harmed.
const LEADER_LIMIT: Duration = Duration::from_secs(60);

/// A member of etcd found no room on its disk.
pub(super) const DIED_OF_A_FULL_DISK: Line = Line::Harm("etcd member dead of a full disk");
/// etcd refused to write.
pub(super) const OVER_QUOTA: Line = Line::Harm("etcd over its quota");

/// Harms one thing at a time in one way at a time: what was harmed is locked until it is well again.
pub(super) struct Harmer {
    runtime: Arc<Runtime>,
    agents: Vec<Arc<Mutex<()>>>,
    disks: Vec<Arc<Mutex<()>>>,
    clocks: Vec<Arc<Mutex<()>>>,
    members: [Arc<Mutex<()>>; MEMBERS],
    api_server: Arc<Mutex<()>>,
    recoveries: JoinSet<Result<()>>,
}

/// A member that is well, for as long as it is kept.
type Well = (usize, OwnedMutexGuard<()>);

// === impl Harmer ===

impl Harmer {
    pub(super) fn new(runtime: Arc<Runtime>) -> Harmer {
        let locks = || runtime.ground.nodes.iter().map(|_| Arc::default()).collect();
        Harmer {
            agents: locks(),
            disks: locks(),
            clocks: locks(),
            members: Default::default(),
            api_server: Arc::default(),
            recoveries: JoinSet::new(),
            runtime,
        }
    }

    /// Follows the plan until there were so many kills, or something was found wrong.
    pub(super) async fn follow(&mut self, plan: Plan, kills: u64) -> Result<()> {
        for (pause, harm) in plan {
            sleep(pause).await;
            while self.runtime.tally.kills() < kills
                && self.runtime.tally.kills() + self.runtime.doomed() as u64 >= kills
                && self.runtime.observer.is_content()
            {
                // Calls that are to be killed will come.
                sleep(Duration::from_millis(50)).await;
            }
            if self.runtime.tally.kills() >= kills || !self.runtime.observer.is_content() {
                break;
            }
            self.runtime.note(&format!("{harm:?}"));
            self.harm(harm).await.with_context(|| format!("{harm:?}"))?;
            while let Some(recovered) = self.recoveries.try_join_next() {
                recovered??;
            }
        }
        Ok(())
    }

    /// Returns when everything is well again.
    pub(super) async fn heal(&mut self) -> Result<()> {
        self.runtime.spare();
        while let Some(recovered) = self.recoveries.join_next().await {
            recovered??;
        }
        Ok(())
    }

    async fn harm(&mut self, harm: Harm) -> Result<()> {
        match harm {
            Harm::KillPlugin { after } => self.runtime.doom(after),
            Harm::KillAgent { node, down } => self.kill_agent(node, down).await,
            Harm::KillApiServer { down } => self.kill_api_server(down).await,
            Harm::KillLeader { down } => {
                let (leader, guard) = self.member(0).await?;
                self.kill_member("etcd leader", leader, guard, down);
            }
            Harm::KillFollower { next, down } => {
                let (follower, guard) = self.member(next).await?;
                self.kill_member("etcd follower", follower, guard, down);
            }
            Harm::KillMajority { down } => {
                let [(leader, first), (follower, second)] = self.majority().await?;
                self.kill_member("etcd leader", leader, first, down);
                self.kill_member("etcd follower", follower, second, down);
                self.runtime.tally.count(Line::Harm("etcd without a majority"));
            }
            Harm::Partition { leader, cut, lasts } => self.partition(leader, cut, lasts).await?,
            Harm::FillDisk { node, lasts } => self.fill_disk(node, lasts).await?,
            Harm::FillMemberDisk { next, lasts } => {
                let member = self.member(next).await?;
                self.runtime.tally.count(Line::Harm("disk of an etcd member full"));
                self.starve(member, lasts);
            }
            Harm::FillAllDisks { lasts } => {
                let members = self.all_members().await?;
                self.runtime.tally.count(Line::Harm("disks of all etcd members full"));
                members.into_iter().for_each(|member| self.starve(member, lasts));
            }
            Harm::ExceedQuota { lasts } => self.exceed_quota(lasts).await?,
            Harm::Freeze { node, lasts } => self.freeze(node, lasts).await?,
            Harm::SetClockBack { node, seconds, lasts } => self.set_clock_back(node, seconds, lasts).await?,
        }
        Ok(())
    }

    fn recover(&mut self, guard: OwnedMutexGuard<()>, recovery: impl Future<Output = Result<()>> + Send + 'static) {
        self.recoveries.spawn(async move {
            let recovered = recovery.await;
            drop(guard);
            recovered
        });
    }

    async fn kill_agent(&mut self, node: usize, down: Duration) {
        let guard = self.agents[node].clone().lock_owned().await;
        let (runtime, node) = (self.runtime.clone(), self.runtime.ground.nodes[node].clone());
        runtime.ground.agents.kill(&node.name);
        runtime.tally.count(Line::Kill("agent"));
        self.recover(guard, async move {
            sleep(down).await;
            runtime.ground.start_agent(&node).await;
            Ok(())
        });
    }

    async fn kill_api_server(&mut self, down: Duration) {
        let guard = self.api_server.clone().lock_owned().await;
        let runtime = self.runtime.clone();
        runtime.ground.control_plane.kill_api_server();
        runtime.tally.count(Line::Kill("API server"));
        self.recover(guard, async move {
            sleep(down).await;
            runtime.ground.start_api_server().await;
            Ok(())
        });
    }

    /// A member that is well, counted from the one that leads.
    async fn member(&self, next: usize) -> Result<Well> {
        self.once_led(|leader| self.if_well((leader + next) % MEMBERS)).await
    }

    /// The one that leads, and another one that is well.
    async fn majority(&self) -> Result<[Well; 2]> {
        self.once_led(|leader| {
            let first = self.if_well(leader)?;
            let second = (1..MEMBERS).find_map(|next| self.if_well((leader + next) % MEMBERS))?;
            Some([first, second])
        })
        .await
    }

    async fn all_members(&self) -> Result<Vec<Well>> {
        self.once_led(|_| (0..MEMBERS).map(|member| self.if_well(member)).collect()).await
    }

    fn if_well(&self, member: usize) -> Option<Well> {
        Some((member, self.members[member].clone().try_lock_owned().ok()?))
    }

    /// Chooses by the leader, again and again until it can.
    async fn once_led<T>(&self, choose: impl Fn(usize) -> Option<T>) -> Result<T> {
        let until = Instant::now() + LEADER_LIMIT;
        loop {
            let leader = self.runtime.ground.members.leader().await;
            if let Some(chosen) = leader.and_then(&choose) {
                return Ok(chosen);
            }
            anyhow::ensure!(Instant::now() < until, "etcd has no leader that can be harmed for {LEADER_LIMIT:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn kill_member(&mut self, what: &'static str, member: usize, guard: OwnedMutexGuard<()>, down: Duration) {
        let runtime = self.runtime.clone();
        if runtime.ground.members.kill(member) {
            runtime.tally.count(Line::Kill(what));
        }
        self.recover(guard, async move {
            sleep(down).await;
            runtime.ground.members.start_one(member)?;
            runtime.ground.members.serves(member).await
        });
    }

    async fn partition(&mut self, leader: bool, cut: Cut, lasts: Duration) -> Result<()> {
        let (member, guard) = self.member(usize::from(!leader)).await?;
        let runtime = self.runtime.clone();
        runtime.ground.members.cut(member, cut)?;
        runtime.tally.count(Line::Harm(match (leader, cut) {
            (true, Cut::Wholly) => "etcd leader cut off",
            (true, Cut::FromPeers) => "etcd leader cut off from its peers",
            (false, Cut::Wholly) => "etcd follower cut off",
            (false, Cut::FromPeers) => "etcd follower cut off from its peers",
        }));
        self.recover(guard, async move {
            sleep(lasts).await;
            runtime.ground.members.join(member, cut)?;
            runtime.ground.members.serves(member).await
        });
        Ok(())
    }

    async fn fill_disk(&mut self, node: usize, lasts: Duration) -> Result<()> {
        let guard = self.disks[node].clone().lock_owned().await;
        let node = self.runtime.ground.nodes[node].clone();
        node.state.fill()?;
        self.runtime.tally.count(Line::Harm("state directory full"));
        self.recover(guard, async move {
            sleep(lasts).await;
            node.state.free()
        });
        Ok(())
    }

    fn starve(&mut self, (member, guard): Well, lasts: Duration) {
        let runtime = self.runtime.clone();
        self.recover(guard, async move {
            let members = &runtime.ground.members;
            runtime.tally.add(DIED_OF_A_FULL_DISK, members.starve(member, lasts).await?);
            members.feed(member).await
        });
    }

    async fn exceed_quota(&mut self, lasts: Duration) -> Result<()> {
        let guards = self.all_members().await?;
        let runtime = self.runtime.clone();
        self.recoveries.spawn(async move {
            let members = &runtime.ground.members;
            let pods = lives::make(&runtime).await?;
            members.exceed_quota().await?;
            runtime.tally.count(OVER_QUOTA);
            let outage = async {
                sleep(lasts).await;
                let met = members.meet_quota().await;
                drop(guards);
                met
            };
            let lives = try_join_all(pods.into_iter().map(|pod| lives::live(&runtime, pod)));
            tokio::try_join!(outage, lives).map(drop)
        });
        Ok(())
    }

    async fn freeze(&mut self, node: usize, lasts: Duration) -> Result<()> {
        let guard = self.agents[node].clone().lock_owned().await;
        let (runtime, node) = (self.runtime.clone(), self.runtime.ground.nodes[node].clone());
        freeze(&runtime.ground.agents, &node.name, true)?;
        runtime.tally.count(Line::Harm("agent stands still"));
        self.recover(guard, async move {
            sleep(lasts).await;
            freeze(&runtime.ground.agents, &node.name, false)
        });
        Ok(())
    }

    async fn set_clock_back(&mut self, node: usize, seconds: u64, lasts: Duration) -> Result<()> {
        let guard = self.clocks[node].clone().lock_owned().await;
        let node = self.runtime.ground.nodes[node].clone();
        node.set_clock(&format!("-{seconds}s"))?;
        self.runtime.tally.count(Line::Harm("clock set back"));
        self.recover(guard, async move {
            sleep(lasts).await;
            node.set_clock("+0")
        });
        Ok(())
    }
}
