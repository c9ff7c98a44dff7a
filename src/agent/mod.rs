//! The node's sidecar: answers the plugin over a unix socket from what it has heard of the cluster, and puts
//! addresses on record before a container asks for them.
//!
//! It decides nothing by itself: every call runs on the same driver as direct mode, over a store that spares
//! the reads. Whatever the agent forgets, refuses or dies of, the plugin does without it.

mod ahead;
mod ledgers;
mod network;
mod serve;
mod socket;
mod watches;

use std::path::PathBuf;
use std::sync::Arc;

use calico::IPAMHandle;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::ahead::Ahead;
use self::ledgers::Ledgers;
use crate::driver::{Driver, DropLater};
use crate::protocol::SOCKET;
use crate::service::LazyLedger;
use crate::service::state::State;
use crate::store::cached::{Cached, Shelves};
use crate::store::kube::KubeStore;

pub use self::socket::BindError;

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
}

/// The stores as the agent uses them.
type AgentDriver = Driver<Cached<KubeStore>, Arc<LazyLedger>>;

/// A running agent.
pub struct Agent {
    options: Options,
    driver: AgentDriver,
    ledgers: Ledgers,
    state: Arc<State>,
    ahead: Ahead,
    /// Ends when new work is refused.
    stopping: CancellationToken,
    /// What is under way and is to be finished before the process ends.
    tasks: TaskTracker,
}

/// Noted before the answer, so that an agent that is killed in between leaves it to the next one.
fn drop_later(state: Arc<State>, later: UnboundedSender<IPAMHandle>) -> Arc<DropLater> {
    Arc::new(move |handle| state.put_pending(handle) && later.send(handle.clone()).is_ok())
}

impl Agent {
    /// Runs an agent until `stop` is cancelled; returns when everything it had begun is finished.
    /// `store` serves the calls, `watching` the watches: their connections stay open for long.
    ///
    /// # Errors
    /// The socket cannot be had: another agent has it, or the directory is not private.
    pub async fn run(
        options: Options,
        store: KubeStore,
        watching: kube::Client,
        stop: CancellationToken,
    ) -> Result<(), BindError> {
        let state = Arc::new(State::open(&options.state_dir));
        let listener = socket::bind(&options.state_dir.join(SOCKET))?;
        let shelves = Arc::new(Shelves::new(&options.node));
        let (later, handles) = tokio::sync::mpsc::unbounded_channel();
        let driver = Driver::new(Cached::new(store, shelves.clone()), None, Timestamp::now)
            .gated(state.clone())
            .dropping_later(drop_later(state.clone(), later));
        let agent = Arc::new(Self {
            options,
            driver,
            ledgers: Ledgers::default(),
            state,
            ahead: Ahead::default(),
            stopping: stop.clone(),
            tasks: TaskTracker::new(),
        });
        let (bound, pods) = tokio::sync::mpsc::unbounded_channel();
        let listed = Arc::new(Notify::new());
        let watches = watches::start(watching, shelves, bound, listed.clone());
        let mut background = JoinSet::new();
        background.spawn(agent.clone().follow_pods(pods));
        background.spawn(agent.clone().drop_handles(handles));
        background.spawn(agent.clone().clean_up(listed));
        tracing::info!(node = agent.options.node, socket = %listener.path().display(), "serving");
        listener.serve(agent.clone()).await;
        agent.tasks.close();
        agent.tasks.wait().await;
        drop((watches, background));
        tracing::info!("stopped: everything that was begun is finished");
        Ok(())
    }

    /// Deletes handles whose addresses were released, after the answer.
    async fn drop_handles(self: Arc<Self>, mut handles: UnboundedReceiver<IPAMHandle>) {
        self.state.pending().into_iter().for_each(|handle| self.drop_handle(handle));
        while let Some(handle) = handles.recv().await {
            self.drop_handle(handle);
        }
    }

    fn drop_handle(self: &Arc<Self>, handle: IPAMHandle) {
        let agent = self.clone();
        self.tasks.spawn(async move {
            let id = handle.spec.handle_id.clone();
            match agent.driver.finish_handle(handle).await {
                Ok(()) => agent.state.drop_pending(&id),
                Err(error) => {
                    tracing::warn!(handle = id, %error, "a handle without addresses could not be deleted yet")
                }
            }
        });
    }

    /// Once, when the node's blocks are known.
    async fn clean_up(self: Arc<Self>, listed: Arc<Notify>) {
        listed.notified().await;
        if self.options.take_ahead {
            self.sweep().await;
        }
    }

    /// What is remembered.
    fn shelves(&self) -> &Arc<Shelves> {
        self.driver.objects().shelves()
    }
}
