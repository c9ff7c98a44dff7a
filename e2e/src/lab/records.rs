//! Who writes the records: Calico's objects and IPClaims, by the API server's log.

use anyhow::{Context as _, Result};

use super::Lab;
use super::ground::Ground;
use super::machine::Machine;
use crate::embedded::apiserver::Server;
use crate::real::audit::{self, AuditLog};

/// A place in the API server's log: what comes later happened later.
#[derive(Debug, Clone, Copy)]
pub struct Mark(Place);

#[derive(Debug, Clone, Copy)]
enum Place {
    Embedded(usize),
    Audit(audit::Mark),
}

/// The groups of the records.
const GROUPS: [&str; 3] = ["crd.projectcalico.org", "projectcalico.org", "kube-ipam.io"];
/// What the test itself writes.
const LOCK: &str = "clusterinformations";

impl Lab {
    /// The log's present end.
    ///
    /// # Errors
    /// The lab's API server keeps no log.
    pub fn mark(&self) -> Result<Mark> {
        Ok(Mark(match self.log()? {
            Log::Embedded(server) => Place::Embedded(server.calls().mark()),
            Log::Audit(log) => Place::Audit(log.mark()),
        }))
    }

    /// Every attempt to write a record since `mark`, whoever made it and whatever came of it.
    ///
    /// # Errors
    /// The log cannot be read, or is not the one of the mark.
    pub fn record_writes(&self, mark: Mark) -> Result<Vec<String>> {
        let writes: Vec<(String, String, String, String)> = match (self.log()?, mark.0) {
            (Log::Embedded(server), Place::Embedded(mark)) => {
                let calls = server.calls().after(mark).into_iter();
                let with_group = calls.filter_map(|call| {
                    let (resource, group) = call.resource.split_once('.')?;
                    Some((call.verb.clone(), group.to_owned(), resource.to_owned(), call.agent.clone()))
                });
                with_group.collect()
            }
            (Log::Audit(log), Place::Audit(mark)) => {
                let calls = log.since(mark)?.into_iter();
                calls.map(|call| (call.verb, call.group, call.resource, call.user)).collect()
            }
            _ => anyhow::bail!("the mark is of another lab"),
        };
        let of_records = writes.into_iter().filter(|(verb, group, resource, _)| {
            !matches!(verb.as_str(), "get" | "list" | "watch") && GROUPS.contains(&group.as_str()) && resource != LOCK
        });
        Ok(of_records.map(|(verb, group, resource, who)| format!("{verb} {resource}.{group} by {who}")).collect())
    }

    fn log(&self) -> Result<Log<'_>> {
        let audit = match &self.machine {
            Machine::StandIns(nodes) => match &nodes.ground {
                Ground::Embedded(cluster) => return Ok(Log::Embedded(cluster.server())),
                Ground::Restricted(restricted) => restricted.audit()?,
            },
            Machine::Real(real) => real.cluster.audit().context("the cluster was started without an audit log")?,
        };
        Ok(Log::Audit(audit))
    }
}

enum Log<'a> {
    Embedded(&'a Server),
    Audit(&'a AuditLog),
}
