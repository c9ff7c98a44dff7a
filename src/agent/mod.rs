//! The node's sidecar: answers the plugin over a unix socket from what it has heard of the cluster, and puts
//! addresses on record before a container asks for them.
//!
//! It decides nothing by itself: every call runs on the same driver as direct mode, over a store that spares
//! the reads. Whatever the agent forgets, refuses or dies of, the plugin does without it.

mod ahead;
mod behind;
mod collect;
mod datastore;
mod events;
mod files;
mod gone;
mod group;
mod health;
mod http;
mod ledgers;
mod metrics;
mod network;
mod room;
mod serve;
mod socket;
pub mod status;
mod trouble;
mod watches;
mod witness;

use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use calico::IPAMHandle;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::ahead::Ahead;
use self::behind::Behind;
use self::datastore::AgentGate;
use self::events::Events;
use self::health::Health;
use self::ledgers::Ledgers;
use self::metrics::Metrics;
use self::trouble::Troubles;
use self::watches::Seen;
use self::witness::Witness;
use crate::driver::{Driver, DropLater, Error, GatedDriver};
use crate::install::{AddOn, Judge, NodeFiles, PluginToken};
use crate::protocol::{SOCKET, STATUS_SOCKET};
use crate::service::state::State;
use crate::store::LazyLedger;
use crate::store::cached::{Cached, Shelves};
use crate::store::kube::KubeStore;

pub use self::events::Level;
pub use self::socket::BindError;
pub use self::trouble::Trouble;

/// What the manifests tell an agent's allocator (mimalloc) by the environment, which it reads before `main`: to give
/// back at once what a burst of calls took, in pages that are not huge, as an agent rests most of its life.
pub const ALLOCATOR: [(&str, &str); 2] = [("MIMALLOC_ALLOW_THP", "0"), ("MIMALLOC_PURGE_DELAY", "0")];

/// What the agent is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// This node's name.
    pub node: String,
    /// Where it meets the plugin; the configuration's `stateDir`.
    pub state_dir: PathBuf,
    /// Where the runtime finds its network configurations.
    pub cni_conf_dir: PathBuf,
    /// Whether addresses are put on record as soon as a pod is bound to the node.
    pub take_ahead: bool,
    /// Whether a DEL is answered as soon as it is noted on this node.
    pub release_behind: bool,
    /// Where metrics and probes are served over TCP; nowhere if not given.
    pub metrics_address: Option<SocketAddr>,
    /// Which Events are sent.
    pub events: Level,
    /// Whether this agent takes part in the election of a collector.
    pub collect: bool,
    /// The node's files that it keeps as they should be.
    pub files: Option<NodeFiles>,
}

/// Longest wait at the end for Events that are queued.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// The stores as the agent uses them.
type AgentDriver = GatedDriver<Cached<KubeStore>, Arc<LazyLedger>>;

/// A running agent.
pub struct Agent {
    options: Options,
    driver: AgentDriver,
    /// Asked before every write, by the calls' drivers and the collector's.
    datastore: Arc<AgentGate>,
    ledgers: Ledgers,
    state: Arc<State>,
    ahead: Ahead,
    behind: Behind,
    /// For what is neither a call nor a watch.
    client: kube::Client,
    witness: Arc<Witness>,
    health: Arc<Health>,
    started: Instant,
    /// Where metrics are served over TCP.
    metrics_address: Option<SocketAddr>,
    /// The plugin's, while the node's files are written.
    token: tokio::sync::Mutex<Option<PluginToken>>,
    /// Of the section that is put into the lists.
    judge: tokio::sync::Mutex<Judge>,
    /// What is wrong with the node's files.
    bad_files: Mutex<Vec<String>>,
    /// Whose pod this agent is in, if its conflist is to be given back with that.
    add_on: Option<Arc<AddOn>>,
    /// Why the node was given back to calico-ipam, if it was.
    given_back: watch::Sender<Option<String>>,
    /// That the claims lie in another ledger than the configuration names.
    stray_claims: Mutex<Option<String>>,
    /// Ends when new work is refused.
    stopping: CancellationToken,
    /// What is under way and is to be finished before the process ends.
    tasks: TaskTracker,
}

/// Noted before the answer, so that an agent that is killed in between leaves it to the next one.
fn drop_later(state: Arc<State>, later: UnboundedSender<IPAMHandle>) -> Arc<DropLater> {
    Arc::new(move |handle| state.put_pending(handle) && later.send(handle.clone()).is_ok())
}

/// Time for what an earlier agent left.
const CLEAN_UP_TIME: Duration = Duration::from_secs(30);

impl Agent {
    /// Runs an agent until `stop` is cancelled; returns when everything it had begun is finished.
    /// `store` serves the calls, `watching` the watches: their connections stay open for long.
    ///
    /// # Errors
    /// A socket cannot be had: another agent has it, or the directory is not private.
    pub async fn run(
        options: Options,
        store: KubeStore,
        watching: kube::Client,
        stop: CancellationToken,
    ) -> Result<(), BindError> {
        let state = Arc::new(State::open(&options.state_dir));
        let listener = socket::bind(&options.state_dir.join(SOCKET))?;
        let own = socket::bind(&options.state_dir.join(STATUS_SOCKET))?;
        let all = match options.metrics_address {
            Some(address) => Some(http::listen(address).await?),
            None => None,
        };
        let metrics = Arc::new(Metrics::default());
        let (events, letters) = Events::new(options.events, metrics.clone());
        let node = options.node.clone();
        let witness = Arc::new(Witness { node: node.clone(), metrics, events, troubles: Troubles::default() });
        let shelves = Arc::new(Shelves::new(&node));
        let (later, handles) = tokio::sync::mpsc::unbounded_channel();
        let ledgers = Ledgers::new(store.clone());
        let writing = store.client().clone();
        let cached = Cached::new(store, shelves.clone());
        let datastore = Arc::new(AgentGate::new(cached.clone()));
        let driver = Driver::behind(datastore.clone(), cached, None, Timestamp::now)
            .gated(state.clone())
            .observed(witness.clone())
            .dropping_later(drop_later(state.clone(), later));
        let agent = Arc::new(Self {
            judge: tokio::sync::Mutex::default(),
            token: tokio::sync::Mutex::new(options.files.as_ref().and_then(NodeFiles::token)),
            add_on: options.files.as_ref().and_then(NodeFiles::add_on).map(Arc::new),
            given_back: watch::Sender::new(None),
            options,
            driver,
            datastore: datastore.clone(),
            ledgers,
            state,
            ahead: Ahead::default(),
            behind: Behind::default(),
            client: watching.clone(),
            witness: witness.clone(),
            health: Arc::default(),
            started: Instant::now(),
            metrics_address: all.as_ref().and_then(|listener| listener.local_addr().ok()),
            bad_files: Mutex::default(),
            stray_claims: Mutex::default(),
            stopping: stop.clone(),
            tasks: TaskTracker::new(),
        });
        let (bound, pods) = tokio::sync::mpsc::unbounded_channel();
        let listed = Arc::new(Notify::new());
        let seen = Seen { metrics: witness.metrics.clone(), health: agent.health.clone() };
        let clients = watches::Clients { watching: watching.clone(), writing };
        let watches = watches::start(clients, datastore, shelves, bound, listed.clone(), &seen);
        let mut background = JoinSet::new();
        background.spawn(agent.clone().follow_pods(pods));
        background.spawn(agent.clone().drop_handles(handles));
        background.spawn(agent.clone().clean_up(listed));
        background.spawn(agent.clone().note_cluster());
        background.spawn(agent.clone().look_for_stray_claims());
        agent.resume_releases();
        if let Some(files) = agent.options.files.clone() {
            background.spawn(agent.clone().keep_files(files));
        }
        background.spawn(agent.clone().follow_group());
        if let Some(add_on) = agent.add_on.clone() {
            background.spawn(agent.clone().follow_account(add_on));
        }
        let own_path = own.path().to_owned();
        background.spawn(http::serve_own(agent.clone(), own));
        if let Some(all) = all {
            background.spawn(http::serve_all(agent.clone(), all));
        }
        let closing = CancellationToken::new();
        let posting = tokio::spawn(events::post(watching, node, letters, witness.metrics.clone(), closing.clone()));
        let collecting = agent.options.collect.then(|| tokio::spawn(agent.clone().collect()));
        let metrics = agent.metrics_address.map(|address| address.to_string());
        tracing::info!(node = agent.options.node, socket = %listener.path().display(), metrics, "serving");
        listener.serve(agent.clone()).await;
        agent.tasks.close();
        tokio::join!(agent.tasks.wait(), agent.part());
        if let Some(collecting) = collecting {
            // It ends by itself, having resigned.
            let _ = collecting.await;
        }
        closing.cancel();
        let _ = tokio::time::timeout(LAST_EVENTS, posting).await;
        drop((watches, background));
        let _ = std::fs::remove_file(own_path);
        tracing::info!("stopped: everything that was begun is finished");
        Ok(())
    }

    /// Deletes handles whose addresses were released, after the answer.
    async fn drop_handles(self: Arc<Self>, mut handles: UnboundedReceiver<IPAMHandle>) {
        self.state.pending().into_iter().for_each(|handle| self.drop_handle(handle));
        let pulse = self.health.pulse("handles");
        while let Some(handle) = pulse.while_waiting(handles.recv()).await {
            self.drop_handle(handle);
        }
    }

    fn drop_handle(self: &Arc<Self>, handle: IPAMHandle) {
        let agent = self.clone();
        self.tasks.spawn(async move {
            let id = handle.spec.handle_id.clone();
            loop {
                match agent.driver.finish_handle(handle.clone()).await {
                    Ok(()) => return agent.state.drop_pending(&id),
                    Err(Error::Locked) if agent.unlocked().await => {}
                    Err(error) => {
                        tracing::warn!(handle = id, %error, "a handle without addresses could not be deleted yet");
                        return;
                    }
                }
            }
        });
    }

    /// Once, when the node's blocks are known.
    async fn clean_up(self: Arc<Self>, listed: Arc<Notify>) {
        listed.notified().await;
        if self.is_locked().await && !self.unlocked().await {
            return;
        }
        // What an agent that was killed had begun; an ADD that is under way beside us makes it again.
        let deadline = tokio::time::Instant::now() + CLEAN_UP_TIME;
        if let Err(error) = self.driver.settle_affinities(&self.options.node, deadline).await {
            tracing::warn!(%error, "a block that was half claimed stays so until the next one is needed");
        }
        if self.options.take_ahead {
            self.sweep().await;
        }
    }

    /// Once, for the plugin.
    async fn note_cluster(self: Arc<Self>) {
        if let Some(net) = network::default_network(&self.options.cni_conf_dir) {
            self.ledgers.note_cluster(&net, &self.state).await;
        }
    }

    /// What keeps this agent from being the one to ask.
    fn not_ready(&self) -> Vec<String> {
        if self.stopping.is_cancelled() {
            return vec!["it stops".to_owned()];
        }
        let given_back = self.given_back.borrow().as_ref().map(|why| {
            format!("the node was given back to calico-ipam: {why}; apply kube-ipam again, and restart its DaemonSet")
        });
        let mut reasons: Vec<String> = given_back.into_iter().collect();
        reasons.extend(self.shelves().unsynced().into_iter().map(|kind| format!("{kind} are not listed yet")));
        reasons.extend(self.bad_files.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        reasons.extend(self.stray_claims.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let socket = self.options.state_dir.join(SOCKET);
        if !std::fs::symlink_metadata(&socket).is_ok_and(|found| found.file_type().is_socket()) {
            reasons.push(format!("{} is not there", socket.display()));
        }
        reasons
    }

    /// What is remembered.
    fn shelves(&self) -> &Arc<Shelves> {
        self.driver.objects().inner().shelves()
    }
}
