//! What the processes of one node tell each other: a turnstile for block writes, one turn per container, a
//! mark that a container was deleted while its ADD was still running, notes of what an ADD has begun, or a DEL
//! has promised, and a note which cluster the node belongs to.
//!
//! All of it lies on tmpfs and may be lost at any time; without it everything still is correct, only slower,
//! except that an ADD which outlives its own DEL, or was killed before its handle was made, is then found by GC
//! alone. No symlink is followed.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use calico::IPAMHandle;
use futures::future::{BoxFuture, FutureExt as _};
use serde::{Deserialize, Serialize};

use super::owed::Releases;
use crate::cni::Invocation;
use crate::driver::{Gate, Pass, Trace};
use crate::store::cluster::Memory;

/// Longest wait for another writer of this node; then the write's precondition decides alone.
const GATE_WAIT: Duration = Duration::from_secs(3);
/// Longest wait of a DEL for the ADD of the same container, which sees the mark at its next step.
const DEL_WAIT: Duration = Duration::from_secs(5);
/// Longest wait of an ADD for another call on the same container.
const ADD_WAIT: Duration = Duration::from_secs(30);
/// Longest wait of an ADD for addresses that are about to be free.
const RELEASES_WAIT: Duration = Duration::from_secs(2);
/// How often a lock is tried at first, and at most how rarely: a hundred processes that look every other
/// millisecond would keep those from work that hold the lock.
const TRY_EVERY: Duration = Duration::from_millis(2);
const TRY_AT_LEAST: Duration = Duration::from_millis(20);
/// Marks and locks older than this are swept: no ADD lives that long. Notes stay until a DEL or GC is through.
const SWEEP_AGE: Duration = Duration::from_secs(3600);
/// How often a process that serves many calls looks for them.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Longest note that is read, in bytes: a handle with thousands of blocks.
const LONGEST_NOTE: u64 = 1 << 20;
/// Lock for the writers of blocks.
const TURNSTILE: &str = "blocks.lock";
/// Lock for those who look for a block.
const SEARCH: &str = "search.lock";
/// Note of the cluster.
const CLUSTER: &str = "cluster.json";
/// Handles longer than this are hashed: a file's name has 255 bytes at most.
const LONGEST_STEM: usize = 200;

/// The state directory; `None` if it cannot be used.
pub struct State {
    directory: Option<PathBuf>,
    releases: Arc<Releases>,
    swept: Swept,
}

/// When this process has last looked for old files.
type Swept = Arc<Mutex<Option<Instant>>>;

/// The files of one interface of a container.
pub struct Container {
    lock: Option<PathBuf>,
    mark: Option<PathBuf>,
    pub(super) owed: Option<PathBuf>,
    swept: Swept,
}

/// One pod's lock file.
pub struct PodTurn {
    lock: Option<PathBuf>,
}

/// A lock file that is held, or `None` where there was no way to hold it.
pub struct Turn {
    file: Option<File>,
    /// The lock file, if it is to go with the turn.
    last: Option<PathBuf>,
}

/// An ADD that has its container's turn.
pub struct Begun {
    /// The turn.
    pub turn: Turn,
    /// Whether a DEL was there before, which may still be felt.
    pub anew: bool,
    /// Whether another call was there before, and so perhaps an ADD.
    pub again: bool,
}

/// The container of a pod whose address was put on record before it had one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    container_id: String,
    interface: String,
}

/// The UID of the cluster of an API server.
#[derive(Serialize, Deserialize)]
struct Cluster {
    origin: String,
    uid: String,
}

// === impl Note ===

impl Note {
    /// The container of a call.
    pub fn of(call: &Invocation) -> Self {
        Self { container_id: call.container_id.clone(), interface: call.ifname.clone() }
    }

    /// Whether it is this container.
    pub fn is_of(&self, container_id: &str, interface: &str) -> bool {
        self.container_id == container_id && self.interface == interface
    }

    /// Whether a container may have the address in its place: a later sandbox may, a second interface of the
    /// same one may not.
    pub fn serves(&self, container_id: &str, interface: &str) -> bool {
        self.container_id != container_id || self.interface == interface
    }
}

// === impl State ===

impl State {
    /// Opens the directory, making it if need be: 0700, owned by this user, no symlink.
    pub fn open(path: &Path) -> Self {
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(path);
        let usable = is_private(path);
        if !usable {
            tracing::debug!(directory = %path.display(), "no state directory; going on without");
        }
        Self { directory: usable.then(|| path.to_owned()), releases: Arc::default(), swept: Arc::default() }
    }

    async fn gate(&self, name: &str) -> Pass {
        let Some(path) = self.directory.as_ref().map(|d| d.join(name)) else { return Pass::new(false, None) };
        let (waited, file) = lock(&path, GATE_WAIT).await;
        Pass::new(waited, file.map(|f| Box::new(f) as Box<dyn Send>))
    }

    /// The files whose names end like this.
    pub(super) fn ending(&self, suffix: &str) -> Vec<PathBuf> {
        let Some(entries) = self.directory.as_ref().and_then(|d| fs::read_dir(d).ok()) else { return Vec::new() };
        entries.flatten().map(|e| e.path()).filter(|p| p.extension() == Some(suffix.as_ref())).collect()
    }

    /// The files of the container that a handle is of.
    pub fn container(&self, handle: &str, interface: &str) -> Container {
        let (lock, mark) = (self.file(handle, "lock"), self.file(handle, "deleted"));
        Container { lock, mark, owed: self.owed_path(handle, interface), swept: self.swept.clone() }
    }

    pub(super) fn file(&self, handle: &str, suffix: &str) -> Option<PathBuf> {
        let hashed = (handle.len() > LONGEST_STEM).then(|| calico::hostname_hash(handle));
        let stem = hashed.as_deref().unwrap_or(handle);
        self.directory.as_ref().map(|d| d.join(format!("{stem}.{suffix}")))
    }

    fn note_file(&self, handle: &str, trace: Trace) -> Option<PathBuf> {
        self.file(
            handle,
            match trace {
                Trace::Claims => "claims",
                Trace::Block => "block",
            },
        )
    }

    /// Releases that this process is at.
    pub fn releases(&self) -> &Arc<Releases> {
        &self.releases
    }

    /// A pod's turn, for what concerns all of its containers.
    pub fn pod(&self, pod_uid: &str) -> PodTurn {
        PodTurn { lock: self.note_path(pod_uid).map(|path| path.with_extension("lock")) }
    }

    /// Notes that a handle is to be deleted, for whoever serves this node next.
    pub fn put_pending(&self, handle: &IPAMHandle) -> bool {
        let Some(path) = self.pending_path(&handle.spec.handle_id) else { return false };
        serde_json::to_vec(handle).is_ok_and(|text| put(&path, &text))
    }

    /// It is done.
    pub fn drop_pending(&self, handle_id: &str) {
        if let Some(path) = self.pending_path(handle_id) {
            let _ = fs::remove_file(path);
        }
    }

    /// What was noted and not done.
    pub fn pending(&self) -> Vec<IPAMHandle> {
        self.ending("handle").iter().filter_map(|path| serde_json::from_slice(&read(path)?).ok()).collect()
    }

    fn pending_path(&self, handle_id: &str) -> Option<PathBuf> {
        let directory = self.directory.as_ref().filter(|_| !handle_id.contains('/'))?;
        Some(directory.join(format!("{handle_id}.handle")))
    }

    /// The container that has the address which was put on record for a pod, if there is one.
    pub fn note(&self, pod_uid: &str) -> Option<Note> {
        serde_json::from_slice(&read(&self.note_path(pod_uid)?)?).ok()
    }

    /// Notes it; false if that is not possible.
    pub fn put_note(&self, pod_uid: &str, note: &Note) -> bool {
        let Some(path) = self.note_path(pod_uid) else { return false };
        serde_json::to_vec(note).is_ok_and(|text| put(&path, &text))
    }

    /// Forgets it.
    pub fn drop_note(&self, pod_uid: &str) {
        if let Some(path) = self.note_path(pod_uid) {
            let _ = fs::remove_file(path);
        }
    }

    /// Marks that the pod's address is given back: what an agent remembers of it does not count from now on.
    pub fn mark_given_back(&self, pod_uid: &str) {
        if let Some(path) = self.given_back_path(pod_uid) {
            let _ = open(&path);
        }
    }

    /// Whether it was.
    pub fn is_given_back(&self, pod_uid: &str) -> bool {
        self.given_back_path(pod_uid).is_some_and(|path| is_there(&path))
    }

    fn given_back_path(&self, pod_uid: &str) -> Option<PathBuf> {
        Some(self.note_path(pod_uid)?.with_extension("deleted"))
    }

    /// A UID is a name of the API server's: whatever else it may be, it is no path.
    fn note_path(&self, pod_uid: &str) -> Option<PathBuf> {
        let plain = !pod_uid.is_empty() && pod_uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let directory = self.directory.as_ref().filter(|_| plain)?;
        Some(directory.join(format!("{pod_uid}.pod")))
    }

    fn sweep(directory: &Path) {
        let Ok(entries) = fs::read_dir(directory) else { return };
        let old = |m: fs::Metadata| {
            m.modified().is_ok_and(|t| SystemTime::now().duration_since(t).is_ok_and(|a| a > SWEEP_AGE))
        };
        for entry in entries.flatten().filter(|e| e.metadata().is_ok_and(old)) {
            let path = entry.path();
            let ends = path.extension().and_then(|e| e.to_str());
            let of_node = path.file_name().is_some_and(|name| name == TURNSTILE || name == SEARCH);
            // Locked until its name is gone.
            let lock = (ends == Some("lock") && !of_node).then(|| open(&path).ok()).flatten();
            let is_unused = lock.as_ref().is_some_and(|file| file.try_lock().is_ok());
            if is_unused || ends == Some("deleted") {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Whether a path is a directory of this user's, and nobody else may write to it. A symlink is none.
pub fn is_private(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_dir() && is_own(&m))
}

fn is_own(metadata: &fs::Metadata) -> bool {
    metadata.mode() & 0o022 == 0 && metadata.uid() == rustix::process::geteuid().as_raw()
}

impl Gate for State {
    fn pass(&self) -> BoxFuture<'_, Pass> {
        self.gate(TURNSTILE).boxed()
    }

    fn search(&self) -> BoxFuture<'_, Pass> {
        self.gate(SEARCH).boxed()
    }

    fn releases(&self) -> BoxFuture<'_, bool> {
        tokio::time::timeout(RELEASES_WAIT, self.releases.settled()).map(|settled| settled.unwrap_or(true)).boxed()
    }

    fn note(&self, handle: &str, trace: Trace) {
        if let Some(path) = self.note_file(handle, trace) {
            let _ = open(&path);
        }
    }

    fn noted(&self, handle: &str, trace: Trace) -> bool {
        self.note_file(handle, trace).is_some_and(|path| is_there(&path))
    }

    fn forget(&self, handle: &str) {
        for path in [Trace::Claims, Trace::Block].into_iter().filter_map(|trace| self.note_file(handle, trace)) {
            let _ = fs::remove_file(path);
        }
    }

    fn container_of(&self, pod_uid: &str) -> Option<String> {
        State::note(self, pod_uid).map(|note| note.container_id)
    }

    fn is_busy(&self, handle: &str) -> bool {
        let Some(path) = self.file(handle, "lock").filter(|path| is_there(path)) else { return false };
        open(&path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }
}

impl Memory for State {
    fn recall(&self, origin: &str) -> Option<String> {
        let text = read(&self.directory.as_ref()?.join(CLUSTER))?;
        let noted: Cluster = serde_json::from_slice(&text).ok()?;
        // A node that has joined another cluster since does not believe it.
        (noted.origin == origin && !noted.uid.is_empty()).then_some(noted.uid)
    }

    fn remember(&self, origin: &str, uid: &str) {
        let Some(path) = self.directory.as_ref().map(|directory| directory.join(CLUSTER)) else { return };
        let noted = Cluster { origin: origin.to_owned(), uid: uid.to_owned() };
        if let Ok(text) = serde_json::to_vec(&noted) {
            put(&path, &text);
        }
    }
}

// === impl PodTurn ===

impl PodTurn {
    /// Waits until no other call decides about the pod's address.
    pub async fn turn(&self) -> Turn {
        match &self.lock {
            Some(path) => Turn::of(lock(path, ADD_WAIT).await.1),
            None => Turn::of(None),
        }
    }
}

// === impl Turn ===

impl Turn {
    fn of(file: Option<File>) -> Self {
        Self { file, last: None }
    }

    /// Whether nobody else has it.
    pub fn is_held(&self) -> bool {
        self.file.is_some()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // While it is still locked: whoever waits for it sees that the name leads elsewhere.
        if let Some(path) = &self.last {
            let _ = fs::remove_file(path);
        }
    }
}

// === impl Container ===

impl Container {
    /// An ADD begins: a mark of an earlier life of this container id means nothing any more, and what it had is
    /// not to be given back.
    pub async fn begin_add(&self) -> Begun {
        // It stays behind an ADD, until a DEL.
        let found = self.lock.as_deref().is_some_and(is_there);
        let (waited, file) = self.lock_for(ADD_WAIT).await;
        let turn = Turn::of(file);
        let marked = self.mark.as_ref().is_some_and(|mark| fs::remove_file(mark).is_ok());
        let owed = turn.is_held() && self.settle();
        let anew = marked || owed;
        Begun { turn, anew, again: found || waited || anew }
    }

    /// A DEL begins: the mark comes first, so that an ADD still running undoes itself; then its end is awaited.
    pub async fn begin_del(&self) -> Turn {
        if let Some(mark) = &self.mark {
            let _ = open(mark);
            if let Some(directory) = mark.parent().filter(|_| self.is_sweep_due()) {
                State::sweep(directory);
            }
        }
        self.del_turn().await
    }

    /// A directory with the files of a hundred pods takes half a millisecond.
    fn is_sweep_due(&self) -> bool {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        let due = swept.is_none_or(|last| last.elapsed() > SWEEP_EVERY);
        if due {
            *swept = Some(Instant::now());
        }
        due
    }

    /// A DEL's turn, with which the lock file goes.
    pub(super) async fn del_turn(&self) -> Turn {
        let mut turn = self.turn(DEL_WAIT).await;
        turn.last = self.lock.clone().filter(|_| turn.is_held());
        turn
    }

    /// Whether a DEL has come since the ADD began.
    pub fn is_deleted(&self) -> bool {
        self.mark.as_deref().is_some_and(is_there)
    }

    async fn turn(&self, wait: Duration) -> Turn {
        Turn::of(self.lock_for(wait).await.1)
    }

    async fn lock_for(&self, wait: Duration) -> (bool, Option<File>) {
        match &self.lock {
            Some(path) => lock(path, wait).await,
            None => (false, None),
        }
    }
}

/// Writes a file as a whole: who reads it sees this text or what was there before.
pub(super) fn put(path: &Path, text: &[u8]) -> bool {
    let part = path.with_extension("part");
    // What a process that died left there.
    let _ = fs::remove_file(&part);
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&part);
    file.and_then(|mut file| file.write_all(text)).and_then(|()| fs::rename(&part, path)).is_ok()
}

/// Reads a file as a whole; `None` if there is none, or something else in its place.
pub(super) fn read(path: &Path) -> Option<Vec<u8>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    file.metadata().ok().filter(fs::Metadata::is_file)?;
    let mut text = Vec::new();
    file.take(LONGEST_NOTE).read_to_end(&mut text).ok()?;
    Some(text)
}

/// Whether there is a file of this name, be it a symlink to nowhere.
pub(super) fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn open(path: &Path) -> std::io::Result<File> {
    // Without O_NONBLOCK a FIFO of this name would stop us until somebody reads it.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).custom_flags(flags).open(path)
}

/// Locks a file; whether somebody else had it first, and the file unless the wait was too long.
async fn lock(path: &Path, wait: Duration) -> (bool, Option<File>) {
    let started = tokio::time::Instant::now();
    let mut waited = false;
    loop {
        let Ok(file) = open(path) else { return (waited, None) };
        match file.try_lock() {
            Ok(()) if is_at(path, &file) => return (waited, Some(file)),
            // Whoever had it took its name away.
            Ok(()) if started.elapsed() < wait => {}
            Err(TryLockError::WouldBlock) if started.elapsed() < wait => {}
            Ok(()) | Err(_) => return (true, None),
        }
        waited = true;
        tokio::time::sleep((started.elapsed() / 16).clamp(TRY_EVERY, TRY_AT_LEAST)).await;
    }
}

/// Whether a file still has its name.
fn is_at(path: &Path, file: &File) -> bool {
    let found = fs::symlink_metadata(path).map(|found| found.ino());
    found.is_ok_and(|found| file.metadata().is_ok_and(|own| own.ino() == found))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// A state directory, as an earlier call of this boot has left it.
    fn noted() -> (tempfile::TempDir, State, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(&directory.path().join("state"));
        state.remember("origin", "uid");
        let file = directory.path().join("state").join(CLUSTER);
        (directory, state, file)
    }

    #[test]
    fn a_cluster_is_believed_for_the_api_server_that_it_was_noted_for_alone() {
        let (_directory, state, file) = noted();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!((state.recall("origin"), state.recall("other")), (Some("uid".to_owned()), None));
        state.remember("other", "uid-2");
        assert_eq!((state.recall("origin"), state.recall("other")), (None, Some("uid-2".to_owned())));
        for broken in ["", "{", r#"{"origin":"origin"}"#, r#"{"origin":"origin","uid":""}"#] {
            fs::write(&file, broken).unwrap();
            assert_eq!(state.recall("origin"), None, "{broken}");
        }
    }

    #[test]
    fn a_note_of_the_cluster_is_neither_read_nor_written_through_a_symlink() {
        let (directory, state, file) = noted();
        let elsewhere = directory.path().join("elsewhere");
        fs::rename(&file, &elsewhere).unwrap();
        symlink(&elsewhere, &file).unwrap();
        assert_eq!(state.recall("origin"), None);
        let before = fs::read(&elsewhere).unwrap();
        // Its part, too, may be there already.
        symlink(&elsewhere, file.with_extension("part")).unwrap();
        state.remember("origin", "uid-2");
        assert_eq!((state.recall("origin"), fs::read(&elsewhere).unwrap()), (Some("uid-2".to_owned()), before));
    }

    #[test]
    fn a_directory_that_others_may_write_to_has_nothing_to_say() {
        let (directory, _state, _file) = noted();
        let path = directory.path().join("state");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(State::open(&path).recall("origin"), None);
    }
}
