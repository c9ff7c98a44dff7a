//! API calls by verb and resource: what an operation costs, counted at the server.

use std::collections::BTreeMap;
use std::fmt;

/// How often each resource was asked for what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<(String, String), usize>);

impl Counts {
    /// How often this verb was used on this resource.
    pub fn of(&self, verb: &str, resource: &str) -> usize {
        self.0.get(&(verb.to_owned(), resource.to_owned())).copied().unwrap_or_default()
    }

    /// Calls that cannot change anything.
    pub fn reads(&self) -> usize {
        self.0.iter().filter(|((verb, _), _)| is_read(verb)).map(|(_, count)| count).sum()
    }

    /// Calls that may change something.
    pub fn writes(&self) -> usize {
        self.0.iter().filter(|((verb, _), _)| !is_read(verb)).map(|(_, count)| count).sum()
    }

    /// Verb, resource and number of calls, by verb.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, usize)> {
        self.0.iter().map(|((verb, resource), count)| (verb.as_str(), resource.as_str(), *count))
    }

    /// Adds what another operation cost.
    pub fn add(&mut self, other: Counts) {
        for (key, count) in other.0 {
            *self.0.entry(key).or_default() += count;
        }
    }
}

fn is_read(verb: &str) -> bool {
    matches!(verb, "get" | "list" | "watch")
}

/// Verb and resource of every call; a resource may bear its group, as `ipamblocks.crd.projectcalico.org`.
impl FromIterator<(String, String)> for Counts {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(calls: I) -> Self {
        let mut counts = BTreeMap::new();
        for (verb, resource) in calls {
            let plural = resource.split('.').next().unwrap_or_default().to_owned();
            *counts.entry((verb, plural)).or_default() += 1;
        }
        Counts(counts)
    }
}

/// Some of what was counted.
impl<'a> FromIterator<(&'a str, &'a str, usize)> for Counts {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str, usize)>>(counts: I) -> Self {
        Counts(counts.into_iter().map(|(verb, what, count)| ((verb.to_owned(), what.to_owned()), count)).collect())
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.iter().map(|(verb, what, count)| format!("{count} {verb} {what}")).collect();
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(calls: &[(&str, &str)]) -> Counts {
        calls.iter().map(|(verb, resource)| (verb.to_string(), resource.to_string())).collect()
    }

    #[test]
    fn calls_are_counted_by_verb_and_plural_whatever_the_group() {
        let mut one = counts(&[("get", "pods"), ("update", "ipamblocks.crd.projectcalico.org"), ("list", "ippools")]);
        one.add(counts(&[("get", "pods"), ("create", "ipamhandles")]));
        assert_eq!((one.reads(), one.writes()), (3, 2));
        assert_eq!((one.of("get", "pods"), one.of("update", "ipamblocks"), one.of("list", "ipamblocks")), (2, 1, 0));
        assert_eq!(one.to_string(), "1 create ipamhandles, 2 get pods, 1 list ippools, 1 update ipamblocks");
    }
}
