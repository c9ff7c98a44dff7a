//! The kubelet: a worker per pod, from its sandbox to its removal.
//!
//! Invariant: a pod that leaves is removed from the API only after a DEL has succeeded for each of its sandboxes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::node::Backoff;
use super::plugin::Attachment;
use super::runtime::Runtime;
use super::status::{self, Stage};

/// What a kubelet works with.
#[derive(Clone)]
pub(super) struct Kubelet {
    pub client: Client,
    pub node: String,
    pub address: IpAddr,
    pub runtime: Arc<Runtime>,
    pub backoff: Backoff,
}

/// The newest that is known of a pod.
#[derive(Clone)]
struct Wish {
    pod: Arc<Pod>,
    /// The pod is gone from the API, by force or because it is finished.
    gone: bool,
}

impl Wish {
    fn leaves(&self) -> bool {
        self.gone || self.pod.metadata.deletion_timestamp.is_some()
    }
}

/// Workers by pod UID.
struct Workers {
    kubelet: Kubelet,
    wishes: BTreeMap<String, watch::Sender<Wish>>,
    running: JoinSet<()>,
}

impl Kubelet {
    /// Follows the node's pods until `stop`; then everything is dropped where it stands, and running plugins are killed.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let mut workers = Workers { kubelet: self, wishes: BTreeMap::new(), running: JoinSet::new() };
        tokio::select! {
            () = workers.follow() => {}
            () = stop => {}
        }
        workers.running.shutdown().await;
    }
}

impl Workers {
    async fn follow(&mut self) {
        let pods: Api<Pod> = Api::all(self.kubelet.client.clone());
        let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", self.kubelet.node));
        let events = watcher(pods, mine);
        pin_mut!(events);
        let mut listed = BTreeSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(pod)) => {
                    listed.insert(pod.uid().unwrap_or_default());
                    self.wish(pod, false);
                }
                Ok(Event::InitDone) => self.drop_unlisted(&listed),
                Ok(Event::Apply(pod)) => self.wish(pod, false),
                Ok(Event::Delete(pod)) => self.wish(pod, true),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
            while self.running.try_join_next().is_some() {}
        }
    }

    fn wish(&mut self, pod: Pod, gone: bool) {
        let uid = pod.uid().unwrap_or_default();
        let wish = Wish { pod: Arc::new(pod), gone };
        if let Some(sender) = self.wishes.get(&uid)
            && sender.send(wish.clone()).is_ok()
        {
            return;
        }
        if gone {
            self.wishes.remove(&uid);
            return;
        }
        let (sender, wishes) = watch::channel(wish);
        self.wishes.insert(uid, sender);
        self.running.spawn(Worker { kubelet: self.kubelet.clone(), wishes, ended: false }.run());
    }

    /// After a list: pods that are not in it are gone, and sandboxes without a pod are taken down.
    fn drop_unlisted(&mut self, listed: &BTreeSet<String>) {
        for (_, sender) in self.wishes.iter().filter(|(uid, _)| !listed.contains(*uid)) {
            sender.send_modify(|wish| wish.gone = true);
        }
        for sandbox in self.kubelet.runtime.all() {
            if !listed.contains(&sandbox.pod) && !self.wishes.contains_key(&sandbox.pod) {
                let kubelet = self.kubelet.clone();
                self.running.spawn(async move {
                    let mut pause = kubelet.backoff.start();
                    while kubelet.runtime.tear_down(&sandbox).await.is_err() {
                        tokio::time::sleep(pause.next()).await;
                    }
                });
            }
        }
    }
}

/// One pod's worker.
struct Worker {
    kubelet: Kubelet,
    wishes: watch::Receiver<Wish>,
    /// Its containers have ended, even if the API does not say so yet.
    ended: bool,
}

impl Worker {
    async fn run(mut self) {
        let mut pause = self.kubelet.backoff.start();
        loop {
            let wish = self.wishes.borrow_and_update().clone();
            if wish.leaves() {
                return self.leave(wish).await;
            }
            if self.ended || is_finished(&wish.pod) {
                self.end(&wish.pod).await;
                self.changed().await;
                continue;
            }
            if let Ok(until) = self.bring_up(&wish.pod).await {
                self.keep(until).await;
                pause = self.kubelet.backoff.start();
            } else {
                let retry = Instant::now() + pause.next();
                self.leaving_or(sleep_until(retry)).await;
            }
        }
    }

    async fn changed(&mut self) {
        if self.wishes.changed().await.is_err() {
            // The kubelet stops; so does the worker, when it is dropped.
            std::future::pending::<()>().await;
        }
    }

    /// Runs `work` to its end unless the pod begins to leave: then the work is dropped, and with it a running plugin killed.
    async fn leaving_or<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        pin_mut!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                () = self.changed() => if self.wishes.borrow_and_update().leaves() { return None },
            }
        }
    }

    /// Makes the pod run; returns when its containers end and whether well, if ever.
    async fn bring_up(&mut self, pod: &Arc<Pod>) -> Result<Option<(Instant, bool)>, ()> {
        let (kubelet, pod) = (self.kubelet.clone(), pod.clone());
        let work = async move {
            let addresses = kubelet.addresses(&pod).await?;
            let told = status::tell(&kubelet.client, &pod, kubelet.address, &Stage::Running(addresses)).await;
            told.map_err(|error| tracing::debug!(%error, "status"))?;
            Ok(lifetime(&pod).map(|(time, well)| (Instant::now() + time, well)))
        };
        self.leaving_or(work).await.unwrap_or(Err(()))
    }

    /// Waits until the pod leaves or its containers end.
    async fn keep(&mut self, until: Option<(Instant, bool)>) {
        match until {
            None => {
                self.leaving_or(std::future::pending::<()>()).await;
            }
            Some((end, well)) => {
                if self.leaving_or(sleep_until(end)).await.is_some() {
                    self.ended = true;
                    let pod = self.wishes.borrow().pod.clone();
                    if let Err(error) =
                        status::tell(&self.kubelet.client, &pod, self.kubelet.address, &Stage::Ended { well }).await
                    {
                        tracing::debug!(%error, "status");
                    }
                    self.end(&pod).await;
                }
            }
        }
    }

    /// Takes down what runs of a pod, however often that must be tried.
    async fn end(&self, pod: &Pod) {
        let mut pause = self.kubelet.backoff.start();
        while !self.kubelet.take_down(pod).await {
            tokio::time::sleep(pause.next()).await;
        }
    }

    async fn leave(&self, wish: Wish) {
        self.end(&wish.pod).await;
        let mut pause = self.kubelet.backoff.start();
        while !wish.gone && status::forget(&self.kubelet.client, &wish.pod).await.is_err() {
            tokio::time::sleep(pause.next()).await;
        }
    }
}

impl Kubelet {
    /// The addresses of a pod, from the sandbox it has or a new one.
    async fn addresses(&self, pod: &Pod) -> Result<Vec<String>, ()> {
        if pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true) {
            return Ok(vec![self.address.to_string()]);
        }
        let uid = pod.uid().unwrap_or_default();
        if let Some(ready) = self.runtime.of_pod(&uid).iter().find(|sandbox| sandbox.is_ready()) {
            return Ok(bare(&ready.addresses()));
        }
        if !self.take_down(pod).await {
            return Err(());
        }
        let attachment = Attachment::of_pod(&pod.namespace().unwrap_or_default(), &pod.name_any(), &uid);
        match self.runtime.set_up(attachment, &uid).await {
            Ok(sandbox) => Ok(bare(&sandbox.addresses())),
            Err(why) => {
                let message = format!("Failed to create pod sandbox: rpc error: code = Unknown desc = {why}");
                status::warn(&self.client, &self.node, pod, "FailedCreatePodSandBox", &message).await;
                Err(())
            }
        }
    }

    /// Takes down every sandbox of a pod; false if one stays.
    async fn take_down(&self, pod: &Pod) -> bool {
        let uid = pod.uid().unwrap_or_default();
        let mut all = true;
        for sandbox in self.runtime.of_pod(&uid) {
            if let Err(why) = self.runtime.tear_down(&sandbox).await {
                let message = format!(
                    "error killing pod: failed to \"KillPodSandbox\" for \"{uid}\" with KillPodSandboxError: \"rpc error: code = Unknown desc = {why}\""
                );
                status::warn(&self.client, &self.node, pod, "FailedKillPod", &message).await;
                all = false;
            }
        }
        all
    }
}

fn bare(addresses: &[String]) -> Vec<String> {
    addresses.iter().map(|address| address.split('/').next().unwrap_or_default().to_owned()).collect()
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    matches!(phase, "Succeeded" | "Failed")
}

/// How long a pod's first container runs, and whether it ends well, for the commands `sleep <seconds>`, `true` and `false`.
/// Everything else, and whatever is restarted always, runs until the pod leaves.
fn lifetime(pod: &Pod) -> Option<(Duration, bool)> {
    let spec = pod.spec.as_ref()?;
    if spec.restart_policy.as_deref().unwrap_or("Always") == "Always" {
        return None;
    }
    let container = spec.containers.first()?;
    let words = container
        .command
        .iter()
        .flatten()
        .chain(container.args.iter().flatten())
        .map(String::as_str)
        .collect::<Vec<_>>();
    match words.as_slice() {
        ["true"] => Some((Duration::ZERO, true)),
        ["false"] => Some((Duration::ZERO, false)),
        ["sleep", seconds] => Duration::try_from_secs_f64(seconds.parse().ok()?).ok().map(|time| (time, true)),
        _ => None,
    }
}
