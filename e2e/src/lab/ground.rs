//! What stand-in nodes stand on: a control plane, etcd, and the credentials of everybody who uses them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use kube::Client;
use kube_ipam::store::Group;

use super::restricted::{Restricted, User};
use crate::calls::Counts;
use crate::embedded;

/// A user whom no node and no controller uses.
pub(super) const COUNTED: &str = "counted";

/// A control plane with etcd.
pub(super) enum Ground {
    /// Ours, where everybody may do everything.
    Embedded(embedded::Cluster),
    /// Kubernetes' own, where everybody has the rights of the manifest.
    Restricted(Restricted),
}

impl Ground {
    /// A client with every right, in whatever group the cluster has Calico's objects.
    pub(super) fn client(&self, agent: &str) -> Result<Client> {
        match self {
            Self::Embedded(cluster) => Ok(Group::default().client(&cluster.client(agent)?)),
            Self::Restricted(restricted) => Ok(restricted.control_plane().client()),
        }
    }

    /// A kubeconfig with every right.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        match self {
            Self::Embedded(cluster) => cluster.kubeconfig().to_path_buf(),
            Self::Restricted(restricted) => restricted.control_plane().kubeconfig(),
        }
    }

    /// The kubeconfig of plugins and agents.
    pub(super) fn node_kubeconfig(&self) -> PathBuf {
        match self {
            Self::Embedded(cluster) => cluster.kubeconfig().to_path_buf(),
            Self::Restricted(restricted) => restricted.kubeconfig(User::Node),
        }
    }

    /// The kubeconfig of whoever uses the command line.
    pub(super) fn admin_kubeconfig(&self) -> PathBuf {
        match self {
            Self::Embedded(cluster) => cluster.kubeconfig().to_path_buf(),
            Self::Restricted(restricted) => restricted.kubeconfig(User::Admin),
        }
    }

    pub(super) fn write_counted_kubeconfig(&self, path: &Path) -> Result<()> {
        match self {
            Self::Embedded(cluster) => cluster.server().write_kubeconfig(path, Some(COUNTED)),
            Self::Restricted(restricted) => {
                std::fs::copy(restricted.kubeconfig(User::Counted), path).map(drop).map_err(Into::into)
            }
        }
    }

    pub(super) async fn counted<T>(&self, work: impl Future<Output = Result<T>>) -> Result<(T, Counts)> {
        match self {
            Self::Embedded(cluster) => {
                let calls = cluster.server().calls();
                let mark = calls.mark();
                let done = work.await?;
                let new = calls.after(mark).into_iter().filter(|call| call.user == COUNTED);
                Ok((done, new.map(|call| (call.verb, call.resource)).collect()))
            }
            Self::Restricted(restricted) => restricted.audit()?.counted(&User::Counted.name(), work).await,
        }
    }

    pub(super) fn etcd_url(&self) -> Result<String> {
        match self {
            Self::Embedded(cluster) => Ok(cluster.etcd()?.url()),
            Self::Restricted(restricted) => Ok(restricted.control_plane().site().etcd_url()),
        }
    }

    /// Whether Kubernetes' own controllers run here.
    pub(super) fn is_real(&self) -> bool {
        matches!(self, Self::Restricted(_))
    }

    pub(super) fn embedded_server(&self) -> Option<&embedded::apiserver::Server> {
        match self {
            Self::Embedded(cluster) => Some(cluster.server()),
            Self::Restricted(_) => None,
        }
    }

    pub(super) fn restricted(&self) -> Option<&Restricted> {
        match self {
            Self::Embedded(_) => None,
            Self::Restricted(restricted) => Some(restricted),
        }
    }
}
