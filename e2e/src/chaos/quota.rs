//! More in etcd than its quota allows: it raises an alarm, and every member refuses to write until an administrator has
//! deleted, compacted, defragmented, and disarmed the alarm. It reads and deletes all the while.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use etcd_client::{AlarmAction, AlarmOptions, AlarmType, CompactionOptions, DeleteOptions, Error};
use tokio::time::{Instant, sleep};

use super::members::{MEMBERS, Members};
use super::runtime::NO_ROOM;

/// How large a member's database may get: several times what a run writes, so that only ballast exceeds it.
pub(super) const QUOTA: usize = 48 << 20;
/// Keys of nobody, which take room.
const BALLAST: &str = "/ballast/";
const LARGE: usize = 1 << 20;
const SMALL: usize = 64 << 10;
const ALL: [usize; MEMBERS] = [0, 1, 2];
/// For one request; a defragmentation among them.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Until etcd refuses to write, and until it writes again.
const LIMIT: Duration = Duration::from_secs(90);

// === impl Members ===

impl Members {
    /// Writes something, if anybody takes it.
    pub(super) async fn add_ballast(&self) {
        let write = async {
            let limit = Duration::from_millis(500);
            self.client(&ALL, limit).await?.put(format!("{BALLAST}small"), vec![0; SMALL], None).await?;
            anyhow::Ok(())
        };
        // Whether it was taken is found out by what becomes of the member.
        let _ = tokio::time::timeout(Duration::from_secs(1), write).await;
    }

    /// Writes until etcd has no room left by its quota.
    pub(super) async fn exceed_quota(&self) -> Result<()> {
        let until = Instant::now() + LIMIT;
        let mut client = self.client(&ALL, ANSWER_LIMIT).await?;
        for piece in 0.. {
            let Err(error) = client.put(format!("{BALLAST}{piece}"), vec![0; LARGE], None).await else { continue };
            if says(&error, NO_ROOM) {
                break;
            }
            ensure!(Instant::now() < until, "etcd's quota is not exceeded: {error}");
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// What an administrator does, until etcd writes again.
    pub(super) async fn meet_quota(&self) -> Result<()> {
        let until = Instant::now() + LIMIT;
        while let Err(error) = self.make_room().await {
            ensure!(Instant::now() < until, "etcd still refuses to write: {error:#}");
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    async fn make_room(&self) -> Result<()> {
        let mut client = self.client(&ALL, ANSWER_LIMIT).await?;
        let deleted = client.delete(BALLAST, Some(DeleteOptions::new().with_prefix())).await?;
        let revision = deleted.header().context("an answer has a header")?.revision();
        let compacted = client.compact(revision, Some(CompactionOptions::new().with_physical())).await;
        // It may have been done by an earlier attempt.
        if let Err(error) = compacted
            && !says(&error, "has been compacted")
        {
            return Err(error.into());
        }
        for member in ALL {
            self.client(&[member], ANSWER_LIMIT).await?.defragment().await?;
        }
        for alarm in client.alarm(AlarmAction::Get, AlarmType::None, None).await?.alarms() {
            let mut options = AlarmOptions::new();
            options.with_member(alarm.member_id());
            client.alarm(AlarmAction::Deactivate, alarm.alarm(), Some(options)).await?;
        }
        client.put(format!("{BALLAST}small"), "", None).await?;
        Ok(())
    }
}

fn says(error: &Error, words: &str) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().contains(words))
}
