//! No room left in the state directory: an ADD and a DEL work, or fail clean; what cannot be noted changes no allocation.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::standin::CniOutcome;
use serde_json::json;

use super::ground::{FIXED, Ground, assert_ok, bare};
use super::process::{Agent, until};

/// A small file system of its own, until the end of the test.
struct Small(PathBuf);

impl Small {
    /// `options` are tmpfs's; `None` if this user may not mount.
    fn mount(path: &Path, options: &str) -> Option<Self> {
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            eprintln!("\nSKIPPED: mounting a small file system needs root\n");
            return None;
        }
        fs::create_dir_all(path).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path).status().unwrap();
        assert!(mounted.success());
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
        Some(Self(path.to_owned()))
    }

    /// Leaves no byte and no file.
    fn fill(&self) {
        let mut filler = fs::File::create(self.0.join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
        let mut inodes = 0;
        while fs::File::create(self.0.join(format!("filler-{inodes}"))).is_ok() {
            inodes += 1;
        }
        assert!(fs::write(self.0.join("more"), "x").is_err(), "there is room left");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The pod reports its address, and no other stays on record for it. What was taken ahead and could not be noted goes
/// with this report.
async fn has_only(ground: &Ground, pod: &str, outcome: &CniOutcome) {
    let given = bare(outcome);
    assert!(!given.is_empty() && given.iter().all(|address| ground.recorded(pod).contains(address)), "{outcome:?}");
    ground.runs(pod, outcome);
    until("no other address is on record", async || (ground.recorded(pod) == given).then_some(())).await;
}

/// The life of a pod: it has an address on record, keeps it through a new sandbox, and leaves nothing.
async fn lives(ground: &Ground, pod: &str, address: Option<&str>) {
    let outcome = ground.add_pod(pod, &format!("{pod}-1")).await;
    assert_ok(&outcome);
    has_only(ground, pod, &outcome).await;
    assert!(address.is_none_or(|address| bare(&outcome) == [address]), "{outcome:?}");
    ground.assert_sound("an ADD without room").await;
    assert_ok(&ground.del_pod(pod, &format!("{pod}-1")).await);
    let again = ground.add_pod(pod, &format!("{pod}-2")).await;
    assert_ok(&again);
    has_only(ground, pod, &again).await;
    // A DEL that comes late takes nothing from the sandbox that has the address now.
    assert_ok(&ground.del_pod(pod, &format!("{pod}-1")).await);
    assert_eq!(ground.recorded(pod), bare(&again));
    assert_ok(&ground.del_pod(pod, &format!("{pod}-2")).await);
    ground.remove(pod).await;
    until("nothing is left", async || ground.recorded(pod).is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_plugin_without_room_for_its_notes_changes_nothing_else() {
    let ground = Ground::prepare().await;
    let Some(small) = Small::mount(&ground.path("state"), "size=16k,nr_inodes=16") else { return };
    small.fill();
    ground.random("r-0");
    ground.fixed("f-0");
    lives(&ground, "r-0", None).await;
    lives(&ground, "f-0", Some(FIXED)).await;
    ground.assert_sound("a full state directory").await;
}

#[tokio::test]
async fn an_agent_whose_directory_fills_up_serves_on() {
    for ahead in [false, true] {
        let ground = Ground::prepare().await;
        let Some(small) = Small::mount(&ground.path("state"), "size=64k,nr_inodes=32") else { return };
        let agent = Agent::start(&ground, ahead).await;
        small.fill();
        ground.random("r-0");
        ground.fixed("f-0");
        if ahead {
            until("it is taken ahead", async || (!ground.recorded("r-0").is_empty()).then_some(())).await;
        }
        lives(&ground, "r-0", None).await;
        lives(&ground, "f-0", Some(FIXED)).await;
        assert!(agent.answered("ADD") >= 4, "the agent did not answer: {}", agent.log());
        until("the handles are gone", async || ground.handle_ids().is_empty().then_some(())).await;
        ground.assert_sound("an agent without room").await;
        agent.stop().await;
    }
}

#[tokio::test]
async fn an_agent_that_finds_no_room_for_its_socket_says_so() {
    let ground = Ground::prepare().await;
    let Some(small) = Small::mount(&ground.path("state"), "size=16k,nr_inodes=16") else { return };
    small.fill();
    let said = Agent::refused(&ground, &ground.path("state")).await;
    assert!(said.contains("agent.sock") && said.contains("No space"), "{said}");
    // The node's pods are served all the same.
    ground.random("r-0");
    assert_ok(&ground.call("STATUS", "", "").with("/log_level", json!("debug")).run().await);
    lives(&ground, "r-0", None).await;
}
