//! What comes over the agent's socket, either way.

use std::ffi::OsString;

use kube_ipam::cni::{CniVersion, invocation};
use kube_ipam::netconf::NetConf;
use kube_ipam::protocol::{Reply, Request, VERSION, line};

use super::is_proper;

pub fn run(data: &[u8]) {
    match Request::read(data) {
        Ok(request) => served(&request),
        Err(Reply::Declined { reason }) => {
            assert!(!reason.is_empty() && reason.len() < 200, "it repeats what it was given: {reason}");
        }
        Err(other) => panic!("not declined: {other:?}"),
    }
    if let Ok(reply) = serde_json::from_slice::<Reply>(data) {
        let written = one_line(line(&reply));
        assert_eq!(serde_json::from_slice::<Reply>(&written).unwrap(), reply);
    }
}

/// What the agent reads of a request before it does anything.
fn served(request: &Request) {
    assert!(request.protocol <= VERSION);
    let written = one_line(line(request));
    assert_eq!(&Request::read(&written).unwrap(), request);
    let call = invocation(|name| request.environment.get(name).map(OsString::from));
    match call {
        Err(error) => is_proper(&error),
        Ok(call) => {
            let known = CniVersion::of(&request.config).and_then(|version| version.knows(call.verb));
            let parsed = NetConf::parse_for(call.verb, &request.config, &request.called_as).map(drop);
            known.and(parsed).unwrap_or_else(|error| is_proper(&error));
        }
    }
}

fn one_line(text: Vec<u8>) -> Vec<u8> {
    assert_eq!(text.iter().position(|byte| *byte == b'\n'), Some(text.len() - 1), "more than one line");
    text
}
