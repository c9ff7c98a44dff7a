//! The real control plane with the rights of `yaml/kube-ipam.yaml`, and nothing besides: nodes log in as its
//! service account, people as somebody whom its role for people is bound to.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use calico::ApiGroup;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::PostParams;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use kube_ipam::store::ipclaim::IPClaimLedger;
use kube_ipam::store::kube::KubeStore;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::manifests::{self, ADMIN_ROLE, NAMESPACE, NODE_ACCOUNT, NODE_ROLE, Right};
use crate::real::audit::{AuditLog, Call};
use crate::real::{ControlPlane, ControlPlaneOptions, Crds};
use crate::tools::Tools;

/// Longest wait until the API server goes by a role that was written, or serves a kind that was defined.
const EFFECT: Duration = Duration::from_secs(10);
/// No run of the tests lasts longer.
const TOKEN_LIFE: i64 = 2 * 3600;

/// Who logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Plugin and agent of every node: the manifest's service account.
    Node,
    /// The rights of a node's plugin under another name, so that its requests can be counted.
    Counted,
    /// Somebody who uses the command line.
    Admin,
}

/// The control plane and a kubeconfig for everybody.
pub struct Restricted {
    control_plane: ControlPlane,
    directory: TempDir,
}

// === impl User ===

impl User {
    /// All of them.
    pub const ALL: [User; 3] = [User::Node, User::Counted, User::Admin];

    fn account(self) -> &'static str {
        match self {
            User::Node => NODE_ACCOUNT,
            User::Counted => "counted",
            User::Admin => "somebody",
        }
    }

    /// The name that the API server knows it by.
    pub fn name(self) -> String {
        format!("system:serviceaccount:{NAMESPACE}:{}", self.account())
    }

    /// The role that is bound for this test only; the manifest binds the node's.
    fn role(self) -> Option<&'static str> {
        match self {
            User::Node => None,
            User::Counted => Some(NODE_ROLE),
            User::Admin => Some(ADMIN_ROLE),
        }
    }
}

// === impl Restricted ===

impl Restricted {
    /// Starts etcd, API server and controllers, and applies what the manifest says of rights and kinds.
    pub async fn start(tools: Tools, group: ApiGroup) -> Result<Self> {
        let crds = Crds::Definitions(group.crds());
        let options = ControlPlaneOptions { audit: true, controllers: true, restricted: false, crds };
        let control_plane = ControlPlane::start(tools, options).await?;
        let restricted = Self { control_plane, directory: TempDir::with_prefix("kube-ipam-rights-")? };
        restricted.grant().await?;
        Ok(restricted)
    }

    async fn grant(&self) -> Result<()> {
        let client = self.control_plane.client();
        let namespace =
            await_condition(Api::<Namespace>::all(client.clone()), NAMESPACE, |n: Option<&Namespace>| n.is_some());
        tokio::time::timeout(Duration::from_secs(30), namespace).await.context("there is no kube-system")??;
        for document in manifests::rights()? {
            manifests::apply(&client, &document).await?;
        }
        for user in User::ALL {
            for document in user.role().into_iter().flat_map(|role| bound(user, role)) {
                manifests::apply(&client, &document).await?;
            }
            let token = token(&client, user.account()).await?;
            self.control_plane.write_token_kubeconfig(&self.kubeconfig(user), &token)?;
        }
        self.define_claims().await
    }

    /// As an agent does, where no manifest has.
    async fn define_claims(&self) -> Result<()> {
        let texts = ("apiextensions.k8s.io".to_owned(), "customresourcedefinitions".to_owned(), "patch".to_owned());
        let (group, resource, verb) = texts;
        self.effect_on(&Right { group, resource, verb }, Some("ipclaims.kube-ipam.io"), true).await?;
        let store = KubeStore::from_kubeconfig(&self.kubeconfig(User::Node), None).await?;
        let ledger = IPClaimLedger::new(store, "any");
        ensure!(ledger.define().await?, "IPClaims were defined before");
        let started = Instant::now();
        while !ledger.is_served().await? {
            ensure!(started.elapsed() < EFFECT, "IPClaims are defined, and not served");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!(!ledger.define().await?, "they are defined twice");
        Ok(())
    }

    /// Waits until the API server allows a right to nodes, or does not any more.
    pub async fn effect(&self, right: &Right, allowed: bool) -> Result<()> {
        self.effect_on(right, None, allowed).await
    }

    async fn effect_on(&self, right: &Right, name: Option<&str>, allowed: bool) -> Result<()> {
        let reviews: Api<SubjectAccessReview> = Api::all(self.control_plane.client());
        let asked = ResourceAttributes {
            group: Some(right.group.clone()),
            resource: Some(right.resource.clone()),
            verb: Some(right.verb.clone()),
            name: name.map(str::to_owned),
            ..Default::default()
        };
        let user = Some(User::Node.name());
        let spec = SubjectAccessReviewSpec { resource_attributes: Some(asked), user, ..Default::default() };
        let review = SubjectAccessReview { spec, ..Default::default() };
        let started = Instant::now();
        loop {
            let answer = reviews.create(&PostParams::default(), &review).await?;
            if answer.status.is_some_and(|status| status.allowed == allowed) {
                return Ok(());
            }
            ensure!(started.elapsed() < EFFECT, "the API server still goes by the old role");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A user's kubeconfig.
    pub fn kubeconfig(&self, user: User) -> PathBuf {
        self.directory.path().join(format!("{}.kubeconfig", user.account()))
    }

    /// etcd, API server and controllers.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// What was asked of the API server.
    pub fn audit(&self) -> Result<&AuditLog> {
        self.control_plane.audit().context("the control plane has no audit log")
    }

    /// Everything that these users have asked for until now.
    pub fn calls(&self, users: &[User]) -> Result<Vec<Call>> {
        let names: Vec<String> = users.iter().map(|user| user.name()).collect();
        Ok(self.audit()?.all()?.into_iter().filter(|call| names.contains(&call.user)).collect())
    }
}

/// A service account of this user, with a role.
fn bound(user: User, role: &str) -> [Value; 2] {
    let account = json!({"name": user.account(), "namespace": NAMESPACE});
    let subject = json!({"kind": "ServiceAccount", "name": user.account(), "namespace": NAMESPACE});
    [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": format!("e2e-{}", user.account())},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [subject],
        }),
    ]
}

/// A token of a service account in the add-on's namespace.
pub(crate) async fn token(client: &Client, account: &str) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    let spec = TokenRequestSpec { expiration_seconds: Some(TOKEN_LIFE), ..Default::default() };
    let request = TokenRequest { spec, ..Default::default() };
    let answer = accounts.create_token_request(account, &PostParams::default(), &request).await;
    let status = answer.with_context(|| format!("a token of {account}"))?.status;
    Ok(status.context("a token request without an answer")?.token)
}
