//! What a runtime may say that is not CNI (fault 28): a code, a remedy, no write, and no more memory than needed.

use serde_json::json;

use super::ground::{Ground, assert_ok, assert_refused};

/// Data segment that is enough for any stdin, in KiB. A call without stdin needs some 10 MiB.
const MEMORY: &str = "98304";

#[tokio::test]
async fn versions_and_variables_that_are_none_are_refused_by_name() {
    let ground = Ground::prepare().await;
    ground.random("r");
    let add = || ground.call("ADD", "r", "r");
    let before = ground.state().await;
    let cases = [
        (add().with("/cniVersion", json!("0.2.0")), 1, "0.2.0"),
        (add().with("/cniVersion", json!("9.9.9")), 1, "9.9.9"),
        (add().with("/cniVersion", json!(1)), 1, "cniVersion"),
        (add().with("/cniVersion", json!(null)), 1, "cniVersion is missing"),
        (ground.call("GC", "", "").with("/cniVersion", json!("1.0.0")), 1, "GC does not exist"),
        (ground.call("STATUS", "", "").with("/cniVersion", json!("0.3.1")), 1, "STATUS does not exist"),
        (add().set("CNI_COMMAND", ""), 4, "CNI_COMMAND"),
        (add().set("CNI_COMMAND", "add"), 4, "in capitals"),
        (add().set("CNI_COMMAND", "../ADD"), 4, "CNI_COMMAND"),
        (add().unset("CNI_CONTAINERID"), 4, "CNI_CONTAINERID"),
        (add().set("CNI_CONTAINERID", "../../etc/passwd"), 4, "CNI_CONTAINERID"),
        (add().set("CNI_CONTAINERID", "a/b"), 4, "CNI_CONTAINERID"),
        (add().set("CNI_CONTAINERID", "c".repeat(129)), 4, "CNI_CONTAINERID"),
        (add().unset("CNI_IFNAME"), 4, "CNI_IFNAME"),
        (add().set("CNI_IFNAME", "../eth0"), 4, "CNI_IFNAME"),
        (add().set("CNI_IFNAME", ".."), 4, "CNI_IFNAME"),
        (add().unset("CNI_NETNS"), 4, "CNI_NETNS"),
        (add().set("CNI_ARGS", "K8S_POD_NAMESPACE=../kube-system;K8S_POD_NAME=r"), 4, "K8S_POD_NAMESPACE"),
        (add().set("CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=../r"), 4, "K8S_POD_NAME"),
        (add().set("CNI_ARGS", "K8S_POD_NAME=r"), 4, "K8S_POD_NAMESPACE"),
        (add().set("CNI_ARGS", "K8S_POD_UID=a/b"), 4, "K8S_POD_UID"),
        (add().set("CNI_ARGS", "nonsense"), 4, "nonsense"),
        (add().set("CNI_ARGS", "IP=10.244.0.20"), 4, "IP="),
    ];
    for (call, code, says) in cases {
        assert_refused(&call.run().await, code, &[says]);
    }
    assert_eq!(ground.state().await, before);
    // What an IPAM plugin has no use for is not judged, and it is the same container.
    assert_ok(&add().run().await);
    for call in [add().set("CNI_NETNS", "{2f3c7a5e}"), add().unset("CNI_PATH"), add().set("CNI_PATH", "bin")] {
        assert_ok(&call.run().await);
    }
}

/// 1 MiB and one byte of one thing.
fn too_long(part: &str) -> Vec<u8> {
    part.repeat((1 << 20) / part.len() + 1).into_bytes()
}

/// Just below 1 MiB: what costs most memory once it is parsed.
fn costly(open: &str, part: &str, close: &str) -> Vec<u8> {
    let count = ((1 << 20) - open.len() - close.len()) / part.len();
    format!("{open}{}{close}", part.repeat(count)).into_bytes()
}

#[tokio::test]
async fn stdin_that_is_no_configuration_is_refused_within_bounded_memory() {
    let ground = Ground::prepare().await;
    ground.random("r");
    let limited = format!("ulimit -d {MEMORY} && exec \"$0\"");
    let add = || ground.call("ADD", "r", "r").under(&["sh", "-c", &limited]);
    let conf = ground.conf.to_string();
    let before = ground.state().await;
    let cases: Vec<(Vec<u8>, u32, &str)> = vec![
        (b"".to_vec(), 6, "empty"),
        (b" \n\t ".to_vec(), 6, "empty"),
        (conf.as_bytes()[..conf.len() / 2].to_vec(), 6, "not JSON"),
        (conf.as_bytes()[..conf.len() - 1].to_vec(), 6, "not JSON"),
        (format!("{conf}{conf}").into_bytes(), 6, "not JSON"),
        (vec![0xff, 0xfe, 0x00], 6, "not JSON"),
        (b"[]".to_vec(), 6, "array"),
        (b"null".to_vec(), 6, "bare"),
        ("[".repeat(10_000).into_bytes(), 6, "not JSON"),
        ("{\"a\":".repeat(10_000).into_bytes(), 6, "not JSON"),
        ("[".repeat(100_000).into_bytes(), 5, "JSON values"),
        (format!("{{\"a\":[0{}]}}", ",{\"\":0}".repeat(16_000)).into_bytes(), 1, "cniVersion"),
        (costly("{\"a\":[0", ",0", "]}"), 5, "JSON values"),
        (costly("{\"a\":[{}", ",{}", "]}"), 5, "JSON values"),
        (costly("{\"a\":[\"\"", ",\"\"", "]}"), 5, "JSON values"),
        (too_long("{\"a\":"), 5, "longer than 1048576 bytes"),
        (too_long(" "), 5, "longer than 1048576 bytes"),
        (vec![b'x'; 64 << 20], 5, "longer than 1048576 bytes"),
    ];
    for (stdin, code, says) in cases {
        assert_refused(&add().stdin(stdin).run().await, code, &[says]);
    }
    assert_eq!(ground.state().await, before);
    // The limit is one: with too little memory the plugin does not even start to answer.
    let starved = ground.call("ADD", "r", "r").under(&["sh", "-c", "ulimit -d 128 && exec \"$0\""]).run().await;
    assert!(!starved.is_ok() && starved.error().is_none(), "{starved:?}");
    assert_ok(&add().run().await);
}
