//! What every container was told, in memory, and judged at every answer. Knows nothing of records: those are compared
//! with these books afterwards, see [`super::verdict`].

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;

/// The books of one run.
#[derive(Debug)]
pub struct Books {
    /// The fixed addresses, and the name of the workload that each belongs to.
    fixed: BTreeMap<IpAddr, String>,
    /// First and last address that a random pod may get.
    range: (IpAddr, IpAddr),
    containers: HashMap<String, Container>,
    /// Who was told an address last and has not begun to leave.
    users: HashMap<IpAddr, String>,
    breaches: Vec<Breach>,
}

/// A container from the beginning of its ADD until the end of its DEL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its node.
    pub node: String,
    /// The fixed address that its pod asks for.
    pub wants: Option<IpAddr>,
    /// What it was told; nothing while its ADD runs, or after that was refused.
    pub told: Option<IpAddr>,
}

/// An answer that must not have been given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Breach {
    /// Another container was told the same, and its DEL has not begun.
    Duplicate {
        /// The address.
        address: IpAddr,
        /// Who was told now.
        container: String,
        /// Who had it.
        other: String,
    },
    /// A fixed pod was told another address than its own.
    NotItsOwn {
        /// Who was told.
        container: String,
        /// What it asked for.
        wants: IpAddr,
        /// What it was told.
        address: IpAddr,
    },
    /// A random pod was told an address outside of the range: a fixed one, or none that anybody may have.
    NotRandom {
        /// Who was told.
        container: String,
        /// What it was told.
        address: IpAddr,
    },
    /// An answer to a container that is not known, or had been told something else.
    Unasked {
        /// Who was told.
        container: String,
        /// What it was told.
        address: IpAddr,
    },
}

// === impl Books ===

impl Books {
    /// Empty books.
    pub fn new(fixed: BTreeMap<IpAddr, String>, range: (IpAddr, IpAddr)) -> Self {
        Self { fixed, range, containers: HashMap::new(), users: HashMap::new(), breaches: Vec::new() }
    }

    /// A container's ADD begins.
    pub fn asks(&mut self, container: &str, node: &str, wants: Option<IpAddr>) {
        let entry = Container { node: node.to_owned(), wants, told: None };
        self.containers.insert(container.to_owned(), entry);
    }

    /// Its ADD was answered.
    pub fn told(&mut self, container: &str, address: IpAddr) {
        let name = container.to_owned();
        let Some(entry) = self.containers.get_mut(container).filter(|entry| entry.told.is_none()) else {
            return self.breaches.push(Breach::Unasked { container: name, address });
        };
        entry.told = Some(address);
        match entry.wants {
            Some(wants) if wants != address => {
                self.breaches.push(Breach::NotItsOwn { container: name.clone(), wants, address });
            }
            None if address < self.range.0 || address > self.range.1 || self.fixed.contains_key(&address) => {
                self.breaches.push(Breach::NotRandom { container: name.clone(), address });
            }
            _ => {}
        }
        if let Some(other) = self.users.insert(address, name.clone()) {
            self.breaches.push(Breach::Duplicate { address, container: name, other });
        }
    }

    /// Its DEL begins: from now on the address may be given on.
    pub fn leaves(&mut self, container: &str) {
        let told = self.containers.get(container).and_then(|entry| entry.told);
        if let Some(address) = told.filter(|address| self.users.get(address).is_some_and(|user| user == container)) {
            self.users.remove(&address);
        }
    }

    /// Its DEL was answered: nothing of it may be on record.
    pub fn gone(&mut self, container: &str) {
        self.containers.remove(container);
    }

    /// Everybody who is there, by container id.
    pub fn containers(&self) -> impl Iterator<Item = (&str, &Container)> {
        self.containers.iter().map(|(id, entry)| (id.as_str(), entry))
    }

    /// A container that is there.
    pub fn container(&self, id: &str) -> Option<&Container> {
        self.containers.get(id)
    }

    /// The workload that a fixed address belongs to.
    pub fn owner(&self, address: IpAddr) -> Option<&str> {
        self.fixed.get(&address).map(String::as_str)
    }

    /// What was wrong with answers so far.
    pub fn breaches(&self) -> &[Breach] {
        &self.breaches
    }
}

// === impl Breach ===

impl Breach {
    /// Whether two containers had one address.
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Duplicate { .. })
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duplicate { address, container, other } => {
                write!(f, "{address} was given to {container} while {other} has it")
            }
            Self::NotItsOwn { container, wants, address } => {
                write!(f, "{container} asks for {wants} and got {address}")
            }
            Self::NotRandom { container, address } => {
                write!(f, "{container} got {address}, which is none for random pods")
            }
            Self::Unasked { container, address } => write!(f, "{container} got {address} without asking for it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn books() -> Books {
        let fixed = [(ip("10.0.0.10"), "web".to_owned())].into();
        let mut books = Books::new(fixed, (ip("10.0.0.64"), ip("10.0.0.254")));
        ["a", "b", "c"].into_iter().for_each(|id| books.asks(id, "n1", None));
        books.asks("f", "n1", Some(ip("10.0.0.10")));
        books
    }

    #[test]
    fn an_address_that_somebody_has_is_a_duplicate_until_its_del_begins() {
        let mut books = books();
        books.told("a", ip("10.0.0.70"));
        books.told("b", ip("10.0.0.71"));
        assert_eq!(books.breaches(), []);
        books.told("c", ip("10.0.0.70"));
        let duplicate = Breach::Duplicate { address: ip("10.0.0.70"), container: "c".into(), other: "a".into() };
        assert_eq!(books.breaches(), [duplicate]);
        books.leaves("b");
        books.asks("d", "n2", None);
        books.told("d", ip("10.0.0.71"));
        assert_eq!(books.breaches().len(), 1, "given on after the DEL had begun");
    }

    #[test]
    fn a_late_del_of_the_earlier_user_does_not_forget_the_later_one() {
        let mut books = books();
        books.told("a", ip("10.0.0.70"));
        books.leaves("a");
        books.told("b", ip("10.0.0.70"));
        books.leaves("a");
        books.gone("a");
        books.told("c", ip("10.0.0.70"));
        assert_eq!(books.breaches().iter().filter(|b| b.is_duplicate()).count(), 1);
    }

    #[test]
    fn fixed_pods_get_their_own_address_and_random_ones_none_of_those() {
        let mut books = books();
        books.told("f", ip("10.0.0.10"));
        assert_eq!(books.breaches(), []);
        books.leaves("f");
        books.told("a", ip("10.0.0.10"));
        books.told("b", ip("10.0.1.1"));
        books.asks("g", "n1", Some(ip("10.0.0.10")));
        books.told("g", ip("10.0.0.80"));
        books.told("g", ip("10.0.0.81"));
        books.told("nobody", ip("10.0.0.82"));
        let kinds = books.breaches().iter().map(Breach::to_string).collect::<Vec<_>>();
        assert_eq!(
            kinds,
            [
                "a got 10.0.0.10, which is none for random pods",
                "b got 10.0.1.1, which is none for random pods",
                "g asks for 10.0.0.10 and got 10.0.0.80",
                "g got 10.0.0.81 without asking for it",
                "nobody got 10.0.0.82 without asking for it",
            ]
        );
    }
}
