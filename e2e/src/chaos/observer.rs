//! The independent judge: which container was told which address, and when it let it go again.
//!
//! Knows nothing of blocks or claims. A container has an address from the moment its ADD was answered until just
//! before its namespace is taken down for DEL; two that overlap are a duplicate, whatever the records say.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A container that has, or had, an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tenure {
    pub container: String,
    pub pod: String,
    pub node: String,
    told: Duration,
    let_go: Option<Duration>,
}

/// Everything that was told, and what was found wrong with it.
pub(super) struct Observer {
    started: Instant,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    tenures: BTreeMap<IpAddr, Vec<Tenure>>,
    /// Remarks by address, such as what the witnesses said.
    remarks: BTreeMap<IpAddr, Vec<(Duration, String)>>,
    duplicates: Vec<IpAddr>,
    wrongs: Vec<(Option<IpAddr>, String)>,
}

/// Lines of an address's history that are shown.
const LINES: usize = 60;

// === impl Observer ===

impl Observer {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), seen: Mutex::default() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the run began.
    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// A container was told its address.
    pub(super) fn told(&self, address: IpAddr, container: &str, pod: &str, node: &str) {
        let mut seen = self.seen();
        let told = self.now();
        let tenures = seen.tenures.entry(address).or_default();
        let others: Vec<String> = tenures.iter().filter(|t| t.let_go.is_none()).map(Tenure::who).collect();
        let tenure = Tenure { container: container.into(), pod: pod.into(), node: node.into(), told, let_go: None };
        let who = tenure.who();
        tenures.push(tenure);
        if !others.is_empty() {
            seen.duplicates.push(address);
            let wrong = format!("{address} was told to {who} while {} had it", others.join(" and "));
            seen.wrongs.push((Some(address), wrong));
        }
    }

    /// A container is about to lose its address.
    pub(super) fn lets_go(&self, address: IpAddr, container: &str) {
        let mut seen = self.seen();
        let now = self.now();
        let of_container = |t: &&mut Tenure| t.container == container && t.let_go.is_none();
        if let Some(tenure) = seen.tenures.get_mut(&address).and_then(|all| all.iter_mut().find(of_container)) {
            tenure.let_go = Some(now);
        }
    }

    /// Who has which address now.
    pub(super) fn held(&self) -> Vec<(IpAddr, Tenure)> {
        let seen = self.seen();
        let all = seen.tenures.iter().flat_map(|(address, tenures)| tenures.iter().map(move |t| (*address, t)));
        all.filter(|(_, tenure)| tenure.let_go.is_none()).map(|(address, tenure)| (address, tenure.clone())).collect()
    }

    /// Whether this tenure goes on.
    pub(super) fn goes_on(&self, address: IpAddr, tenure: &Tenure) -> bool {
        self.seen().tenures.get(&address).is_some_and(|all| all.contains(tenure))
    }

    /// Containers answered for an address when it was asked who has it, at a moment since `asked`. Each of them must
    /// have had it since then, and at one moment there may be one.
    pub(super) fn answered(&self, address: IpAddr, asked: Duration, containers: &[String]) {
        let mut seen = self.seen();
        let no_tenures = Vec::new();
        let tenures = seen.tenures.get(&address).unwrap_or(&no_tenures);
        let had = |container: &String| {
            tenures.iter().any(|t| t.container == *container && t.let_go.is_none_or(|end| end >= asked))
        };
        let strangers: Vec<&String> = containers.iter().filter(|c| !had(c)).collect();
        let short =
            |containers: &[&String]| containers.iter().map(|c| &c[..c.len().min(12)]).collect::<Vec<_>>().join(" and ");
        let mut wrongs = Vec::new();
        if !strangers.is_empty() {
            wrongs.push(format!("{address} is answered for by {}, which does not have it", short(&strangers)));
        }
        let mut different: Vec<&String> = containers.iter().collect();
        different.sort();
        different.dedup();
        if different.len() > 1 {
            wrongs.push(format!("one question for {address} was answered by {}", short(&different)));
            seen.duplicates.push(address);
        }
        seen.wrongs.extend(wrongs.into_iter().map(|wrong| (Some(address), wrong)));
    }

    /// Something else that must not be.
    pub(super) fn wrong(&self, address: Option<IpAddr>, what: String) {
        self.seen().wrongs.push((address, what));
    }

    /// For the history of an address.
    pub(super) fn remark(&self, address: IpAddr, what: String) {
        let now = self.now();
        self.seen().remarks.entry(address).or_default().push((now, what));
    }

    /// Whether nothing was found wrong.
    pub(super) fn is_content(&self) -> bool {
        self.seen().wrongs.is_empty()
    }

    /// How often an address was had by two.
    pub(super) fn duplicates(&self) -> usize {
        self.seen().duplicates.len()
    }

    /// Everything that must not be, each with the history of its address.
    pub(super) fn wrongs(&self) -> Vec<String> {
        let wrongs = self.seen().wrongs.clone();
        let with_history = |(address, wrong): (Option<IpAddr>, String)| match address {
            Some(address) => format!("{wrong}\n{}", self.history(address)),
            None => wrong,
        };
        wrongs.into_iter().map(with_history).collect()
    }

    /// What happened to an address, a line each, in the order of time.
    pub(super) fn history(&self, address: IpAddr) -> String {
        let seen = self.seen();
        let mut lines: Vec<(Duration, String)> = seen.remarks.get(&address).cloned().unwrap_or_default();
        for tenure in seen.tenures.get(&address).into_iter().flatten() {
            lines.push((tenure.told, format!("told to {}", tenure.who())));
            lines.extend(tenure.let_go.map(|at| (at, format!("let go by {}", tenure.who()))));
        }
        lines.sort();
        let mut text = format!("  history of {address}:\n");
        for (at, line) in lines.iter().skip(lines.len().saturating_sub(LINES)) {
            let _ = writeln!(text, "  {:9.3} s  {line}", at.as_secs_f64());
        }
        text
    }
}

// === impl Tenure ===

impl Tenure {
    /// Since it was told, as of `now`.
    pub(super) fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.told)
    }

    fn who(&self) -> String {
        let Tenure { pod, node, container, .. } = self;
        format!("{pod} on {node} (container {})", &container[..container.len().min(12)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 0, 9));

    #[test]
    fn an_address_that_passes_on_in_turn_is_no_duplicate() {
        let observer = Observer::new();
        for container in ["a", "b", "a"] {
            observer.told(A, container, "p", "n1");
            let asked = observer.now();
            observer.answered(A, asked, &[container.into(), container.into()]);
            observer.lets_go(A, container);
            // Asked before it let go, answered afterwards.
            observer.answered(A, asked, &[container.into()]);
        }
        assert_eq!((observer.duplicates(), observer.wrongs()), (0, vec![]));
        assert!(observer.held().is_empty());
    }

    #[test]
    fn an_address_told_to_a_second_container_is_a_duplicate_with_its_history() {
        let observer = Observer::new();
        observer.told(A, "aaaa", "web-0", "n1");
        observer.remark(A, "DEL failed".into());
        observer.told(A, "bbbb", "web-1", "n2");
        assert_eq!(observer.duplicates(), 1);
        let wrongs = observer.wrongs().join("\n");
        for said in
            ["web-1 on n2 (container bbbb) while web-0 on n1", "told to web-0", "DEL failed", "history of 10.244.0.9"]
        {
            assert!(wrongs.contains(said), "{said:?} is not in {wrongs}");
        }
    }

    #[test]
    fn two_answers_to_one_question_are_a_duplicate_and_a_strangers_answer_is_wrong() {
        let observer = Observer::new();
        observer.told(A, "a", "p", "n1");
        let asked = observer.now();
        observer.answered(A, asked, &["a".into(), "b".into()]);
        assert_eq!((observer.duplicates(), observer.wrongs().len()), (1, 2));
        observer.lets_go(A, "a");
        std::thread::sleep(Duration::from_millis(2));
        observer.answered(A, observer.now(), &["a".into()]);
        assert_eq!(observer.wrongs().len(), 3, "it had let go before it was asked");
    }
}
