//! Calico's selector language: `all()`, `has(l)`, `l == "v"`, `l in {"a", "b"}` and so on, joined by `&&`,
//! `||`, `!` and parentheses.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

mod parse;
mod token;

/// A condition on labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    root: Node,
    text: String,
}

/// What is wrong with a selector. Positions are byte offsets into it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// Something else was expected.
    #[error("expected {expected} at position {at}, found {found}")]
    Expected {
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
        /// Where.
        at: usize,
    },
    /// A string has no closing quote.
    #[error("the string that begins at position {at} has no closing quote")]
    Unterminated {
        /// Where.
        at: usize,
    },
    /// A label name is longer than 512 characters.
    #[error("the label name at position {at} has {length} characters, more than 512")]
    LabelTooLong {
        /// Where.
        at: usize,
        /// How long it is.
        length: usize,
    },
    /// Parentheses are nested too deeply.
    #[error("parentheses are nested more than {most} deep at position {at}")]
    TooDeep {
        /// Where.
        at: usize,
        /// How deep is allowed.
        most: usize,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    All,
    Has(String),
    Value(String, Test),
    Not(Box<Node>),
    And(Vec<Node>),
    Or(Vec<Node>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Equal(String),
    NotEqual(String),
    In(Vec<String>),
    NotIn(Vec<String>),
    Contains(String),
    StartsWith(String),
    EndsWith(String),
}

impl Selector {
    /// Whether the labels meet the condition. An absent label is unequal to every value and in no set, so
    /// `l != "v"` and `l not in {"v"}` match it; every other test of it fails.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.root.matches(labels)
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    /// Reads a selector; a blank one matches everything.
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let root = parse::selector(&token::tokens(text)?)?;
        Ok(Self { root, text: text.to_owned() })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Node {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::All => true,
            Self::Has(label) => labels.contains_key(label),
            Self::Value(label, test) => test.passes(labels.get(label).map(String::as_str)),
            Self::Not(node) => !node.matches(labels),
            Self::And(nodes) => nodes.iter().all(|node| node.matches(labels)),
            Self::Or(nodes) => nodes.iter().any(|node| node.matches(labels)),
        }
    }
}

impl Test {
    fn passes(&self, value: Option<&str>) -> bool {
        match self {
            Self::Equal(wanted) => value == Some(wanted),
            Self::NotEqual(wanted) => value != Some(wanted),
            Self::In(wanted) => value.is_some_and(|value| wanted.iter().any(|one| one == value)),
            Self::NotIn(wanted) => value.is_none_or(|value| wanted.iter().all(|one| one != value)),
            Self::Contains(part) => value.is_some_and(|value| value.contains(part.as_str())),
            Self::StartsWith(part) => value.is_some_and(|value| value.starts_with(part.as_str())),
            Self::EndsWith(part) => value.is_some_and(|value| value.ends_with(part.as_str())),
        }
    }
}

#[cfg(test)]
mod tests;
