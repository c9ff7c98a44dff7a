//! Files of the plugin's own (fault 30): never followed through a symlink, 0600, and no answer depends on them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use serde_json::json;

use super::ground::{Ground, assert_ok};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

async fn add_and_del(ground: &Ground, pod: &str) {
    ground.random(pod);
    assert_ok(&ground.add(pod, pod).await);
    assert_ok(&ground.del(pod, pod).await);
    assert_eq!(ground.leftovers(pod).await, [""; 0]);
}

#[tokio::test]
async fn the_log_and_the_state_are_for_the_owner_alone() {
    let ground = Ground::prepare().await;
    // A log that somebody made readable for all is closed again.
    fs::write(ground.path("log/kube-ipam.log"), "").unwrap();
    fs::set_permissions(ground.path("log/kube-ipam.log"), fs::Permissions::from_mode(0o644)).unwrap();
    ground.fixed("f");
    assert_ok(&ground.add("f", "f").await);
    assert_eq!(mode(&ground.path("log/kube-ipam.log")), 0o600);
    assert!(ground.log().contains("\"verb\":\"ADD\""), "{}", ground.log());
    assert_eq!(mode(&ground.path("state")), 0o700);
    let files: Vec<_> = fs::read_dir(ground.path("state")).unwrap().map(|f| f.unwrap().path()).collect();
    assert!(files.len() >= 3, "{files:?}");
    files.iter().for_each(|file| assert_eq!(mode(file), 0o600, "{file:?}"));
}

#[tokio::test]
async fn a_symlink_in_place_of_the_log_or_a_lock_is_not_followed() {
    let ground = Ground::prepare().await;
    let target = ground.path("precious");
    fs::write(&target, "precious").unwrap();
    symlink(&target, ground.path("log/kube-ipam.log")).unwrap();
    fs::create_dir(ground.path("state")).unwrap();
    fs::set_permissions(ground.path("state"), fs::Permissions::from_mode(0o700)).unwrap();
    let files = ["blocks.lock", "k8s-pod-network.r.lock", "k8s-pod-network.r.block", "k8s-pod-network.r.claims"];
    for file in files {
        symlink(&target, ground.path("state").join(file)).unwrap();
    }
    // To nowhere: following it would make a file.
    symlink(ground.path("made"), ground.path("state/k8s-pod-network.r.deleted")).unwrap();
    let before = fs::metadata(&target).unwrap();
    add_and_del(&ground, "r").await;
    let after = fs::metadata(&target).unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    assert_eq!((before.mtime(), before.mode()), (after.mtime(), after.mode()));
    assert!(!ground.path("made").exists());
    ground.assert_sound("symlinks").await;
}

#[tokio::test]
async fn a_symlink_in_place_of_the_state_directory_is_not_followed() {
    let ground = Ground::prepare().await;
    fs::create_dir(ground.path("elsewhere")).unwrap();
    symlink(ground.path("elsewhere"), ground.path("state")).unwrap();
    add_and_del(&ground, "r").await;
    assert_eq!(fs::read_dir(ground.path("elsewhere")).unwrap().count(), 0);
    ground.assert_sound("a symlinked state directory").await;
}

#[tokio::test]
async fn a_log_or_lock_that_is_no_file_stops_nothing() {
    let ground = Ground::prepare().await;
    fs::create_dir(ground.path("state")).unwrap();
    fs::set_permissions(ground.path("state"), fs::Permissions::from_mode(0o700)).unwrap();
    for path in ["log/kube-ipam.log", "state/blocks.lock", "state/k8s-pod-network.r.lock"] {
        // Opened for writing, a FIFO waits for its reader.
        let made = std::process::Command::new("mkfifo").arg(ground.path(path)).status().unwrap();
        assert!(made.success());
    }
    add_and_del(&ground, "r").await;
    ground.assert_sound("FIFOs").await;
}

#[tokio::test]
async fn without_any_directory_of_its_own_the_plugin_answers_the_same() {
    let mut ground = Ground::prepare().await;
    fs::write(ground.path("file"), "").unwrap();
    ground.conf["log_file_path"] = json!(ground.path("file/cni.log"));
    ground.conf["ipam"]["stateDir"] = json!(ground.path("file/state"));
    add_and_del(&ground, "r").await;
    ground.assert_sound("no directories").await;
}

#[tokio::test]
async fn a_log_on_a_full_or_read_only_file_system_changes_no_answer() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("\nSKIPPED: mounting a small file system needs root\n");
        return;
    }
    let ground = Ground::prepare().await;
    let log = ground.path("log").display().to_string();
    for (pod, then) in
        [("full", "dd if=/dev/zero of=$LOG/filler bs=4k 2>/dev/null"), ("read-only", "mount -o remount,ro $LOG")]
    {
        // In a mount namespace of its own, which ends with the plugin.
        let script = format!(
            "LOG='{log}'; mount -t tmpfs -o size=16k tmpfs $LOG && touch $LOG/kube-ipam.log && {{ {then}; \
             if echo x >>$LOG/kube-ipam.log; then exit 9; fi; exec \"$0\"; }}"
        );
        ground.random(pod);
        for verb in ["ADD", "DEL"] {
            let under = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script];
            let outcome = ground.call(verb, pod, pod).under(&under).run().await;
            assert_ok(&outcome);
            assert!(!outcome.stderr.contains("tracing"), "{outcome:?}");
            assert_eq!(outcome.addresses().len(), usize::from(verb == "ADD"), "{outcome:?}");
        }
        assert_eq!(ground.leftovers(pod).await, [""; 0]);
    }
    ground.assert_sound("full and read-only logs").await;
}
