//! A request to its reply.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::metrics::{self, Decline};
use super::{Agent, AgentDriver};
use crate::cni::{CniError, CniVersion, Invocation, Verb, invocation};
use crate::netconf::NetConf;
use crate::protocol::{Reply, Request};
use crate::service::{Call, Held, Served, node_name_for};

/// A request, read.
pub(super) struct Parsed {
    pub(super) invocation: Invocation,
    net: NetConf,
    /// Whether the whole configuration can be understood; a DEL does with less.
    pub(super) is_whole: bool,
}

impl Parsed {
    pub(super) fn of(request: &Request) -> Result<Self, CniError> {
        let invocation = invocation(|name| request.environment.get(name).map(OsString::from))?;
        CniVersion::of(&request.config)?.knows(invocation.verb)?;
        let (net, broken) = NetConf::parse_for(invocation.verb, &request.config, &request.called_as)?;
        if let Some(CniError { msg: error, details: remedy, .. }) = &broken {
            tracing::warn!(error, remedy, "the network configuration is broken; DEL does without");
        }
        Ok(Self { invocation, net, is_whole: broken.is_none() })
    }
}

impl Agent {
    /// Serves a request to its end. `gone` tells whether the plugin is still there.
    pub(super) async fn answer(self: &Arc<Self>, request: &Request, gone: &AtomicBool) -> Reply {
        let started = std::time::Instant::now();
        let parsed = match Parsed::of(request) {
            Ok(parsed) => Arc::new(parsed),
            Err(error) => {
                self.witness.unread(metrics::INVALID, &error, started.elapsed());
                return refusal(error);
            }
        };
        match node_name_for(parsed.invocation.verb, &parsed.net) {
            Ok(node) if node == self.options.node || parsed.invocation.verb == Verb::Del => {}
            Ok(node) => {
                self.witness.metrics.declined(Decline::Node);
                let reason = format!("the agent is of node {}, the configuration says {node}", self.options.node);
                return Reply::Declined { reason };
            }
            Err(error) => {
                self.witness.unread(parsed.invocation.verb.name(), &error, started.elapsed());
                return refusal(error);
            }
        }
        if let Some(reason) = self.other_group(&parsed.net) {
            self.witness.metrics.declined(Decline::Group);
            return Reply::Declined { reason };
        }
        let result = match parsed.invocation.verb {
            Verb::Del => self.del(request, &parsed).await,
            _ => self.call(&parsed, gone).await,
        };
        let gave_up = gone.load(Ordering::Relaxed);
        self.witness.answered(&parsed.invocation, result.as_ref(), started.elapsed(), gave_up);
        match result {
            Ok(served) => Reply::Answer(served.output),
            Err(error) => refusal(error),
        }
    }

    /// That a configuration names another API group than this agent has heard of: its records would not be seen.
    fn other_group(&self, net: &NetConf) -> Option<String> {
        let (asked, own) = (net.api_group?, self.driver.objects().inner().inner().group().known()?);
        (asked != own).then(|| format!("the agent is of API group {own}, the configuration says {asked}"))
    }

    async fn call(&self, parsed: &Parsed, gone: &AtomicBool) -> Result<Served, CniError> {
        let driver = self.driver_for(&parsed.net);
        let gone = || gone.load(Ordering::Relaxed);
        let call = self.call_of(parsed, &gone);
        match (parsed.invocation.verb, parsed.invocation.args.pod_uid.as_deref()) {
            (Verb::Add, Some(uid)) => self.add(call, uid, &driver).await,
            (Verb::Del, _) => {
                let held = call.hold().await;
                self.carry_out(parsed, &held).await.map(|()| Served::default())
            }
            _ => call.run(&driver).await,
        }
    }

    pub(super) fn call_of<'a>(&'a self, parsed: &'a Parsed, gone: &'a (dyn Fn() -> bool + Sync)) -> Call<'a> {
        let Parsed { invocation, net, .. } = parsed;
        Call { invocation, net, node: &self.options.node, state: &self.state, gone, taken: None }
    }

    /// Gives back what the container of a DEL has.
    pub(super) async fn carry_out(&self, parsed: &Parsed, held: &Held) -> Result<(), CniError> {
        let released = self.call_of(parsed, &|| false).release(&self.driver_for(&parsed.net), held).await;
        if let (Some(uid), Ok(())) = (&parsed.invocation.args.pod_uid, &released) {
            self.ahead.forget_if_released(uid, &self.state);
        }
        released
    }

    /// An ADD whose plugin is gone has nobody to keep the address for.
    pub(super) async fn take_back(&self, request: &Request) {
        let Ok(mut parsed) = Parsed::of(request) else { return };
        if parsed.invocation.verb != Verb::Add {
            return;
        }
        tracing::info!(container = parsed.invocation.container_id, "the plugin is gone: its address is given back");
        parsed.invocation.verb = Verb::Del;
        if let Err(error) = self.call(&parsed, &AtomicBool::new(false)).await {
            tracing::warn!(container = parsed.invocation.container_id, %error, "it could not be given back; DEL will");
        }
    }

    pub(super) fn driver_for(&self, net: &NetConf) -> AgentDriver {
        self.driver.on_ledger(Some(self.ledgers.of(net)))
    }
}

fn refusal(error: CniError) -> Reply {
    let CniError { code, msg, details } = error;
    Reply::Error { code, msg, details }
}
