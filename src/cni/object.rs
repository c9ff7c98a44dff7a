//! Typed access to the fields of a JSON object, with the path that an error has to name.
//!
//! `null` and the empty string count as absent, as they do for the Go programs that read the same files.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::error::{shown, shown_json};
use super::text::Wrong;
use super::{CniError, code, names};

/// A JSON object and where it is, for instance `ipam.etcdConfig`; empty for the outermost.
pub(crate) struct Object<'a> {
    path: String,
    fields: &'a Map<String, Value>,
}

/// How an error calls the object that has no path.
const OUTERMOST: &str = "the network configuration";

impl<'a> Object<'a> {
    pub(crate) fn new(path: impl Into<String>, value: &'a Value) -> Result<Object<'a>, CniError> {
        let path = path.into();
        match value {
            Value::Object(fields) => Ok(Object { path, fields }),
            other => {
                let what = if path.is_empty() { OUTERMOST } else { &path };
                Err(invalid(format!("{what}: {} is not an object", shown_json(other)), "write { ... }"))
            }
        }
    }

    /// The path of a field.
    pub(crate) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// An error about a field that has a value.
    pub(crate) fn refuse(&self, key: &str, value: &str, wrong: impl AsRef<str>, right: impl Into<String>) -> CniError {
        CniError::field(&self.path(key), value, wrong, right)
    }

    /// An error about a field that has none.
    pub(crate) fn missing(&self, key: &str, right: impl Into<String>) -> CniError {
        invalid(format!("{}: missing", self.path(key)), right)
    }

    /// Reads the text of a field by one of the readers in [`super::text`].
    pub(crate) fn read<T>(&self, key: &str, text: &str, read: fn(&str) -> Result<T, Wrong>) -> Result<T, CniError> {
        read(text).map_err(|error| self.refuse(key, text, error.wrong, error.right))
    }

    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.fields.get(key).filter(|value| !value.is_null() && value.as_str() != Some(""))
    }

    /// Whether the field is there at all, be it null.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.fields.contains_key(key)
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, CniError> {
        self.typed(key, Value::as_str, "is not a string", "write it in quotes")
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, CniError> {
        self.typed(key, Value::as_bool, "is neither true nor false", "write true or false, without quotes")
    }

    pub(crate) fn list(&self, key: &str) -> Result<Option<&'a [Value]>, CniError> {
        self.typed(key, |value| value.as_array().map(Vec::as_slice), "is not an array", "write [ ... ]")
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Object<'a>>, CniError> {
        self.value(key).map(|value| Object::new(self.path(key), value)).transpose()
    }

    /// A list of strings.
    pub(crate) fn texts(&self, key: &str) -> Result<Vec<&'a str>, CniError> {
        let text = |(index, value): (usize, &'a Value)| {
            value.as_str().ok_or_else(|| {
                let wrong = format!("{}[{index}]: {} is not a string", self.path(key), shown_json(value));
                invalid(wrong, "write a list of strings, [\"...\"]")
            })
        };
        self.list(key)?.unwrap_or_default().iter().enumerate().map(text).collect()
    }

    /// A list of objects.
    pub(crate) fn objects(&self, key: &str) -> Result<Vec<Object<'a>>, CniError> {
        let object = |(index, value)| Object::new(format!("{}[{index}]", self.path(key)), value);
        self.list(key)?.unwrap_or_default().iter().enumerate().map(object).collect()
    }

    /// The path of a file: absolute, because nobody knows the working directory of a plugin.
    pub(crate) fn file(&self, key: &str) -> Result<Option<PathBuf>, CniError> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let refuse = |wrong, right| Err(self.refuse(key, text, wrong, right));
        if text.starts_with("__") && text.ends_with("__") {
            return refuse("is a placeholder that the installer has not replaced", "write the path of a file");
        }
        if !text.starts_with('/') {
            return refuse("is not an absolute path", "write the path of a file, beginning with /");
        }
        if text.contains(char::is_control) {
            return refuse("has a control character", "write the path of a file");
        }
        Ok(Some(PathBuf::from(text)))
    }

    /// The names of its fields.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.fields.keys().map(String::as_str)
    }

    /// An error about a field that is not known here.
    pub(crate) fn unknown(&self, key: &str, right: impl Into<String>) -> CniError {
        let path = if self.path.is_empty() { OUTERMOST } else { &self.path };
        invalid(format!("{path}: {} is not a field", shown(key)), right)
    }

    /// Refuses a field that differs from a `known` one by case alone: Go programs read it, and this one does not.
    pub(crate) fn refuse_case(&self, known: &[&str]) -> Result<(), CniError> {
        for key in self.keys().filter(|key| !known.contains(key)) {
            if let Some(meant) = known.iter().find(|meant| key.eq_ignore_ascii_case(meant)) {
                return Err(self.unknown(key, format!("did you mean {meant}?")));
            }
        }
        Ok(())
    }

    /// Refuses a field that is not `known` but looks like a slip in one that is: it would be ignored in silence.
    pub(crate) fn refuse_misspelt(&self, known: &[&str]) -> Result<(), CniError> {
        for key in self.keys().filter(|key| !known.contains(key)) {
            if let Some(meant) = names::meant(key, known) {
                return Err(self.unknown(key, format!("did you mean {meant}?")));
            }
        }
        Ok(())
    }

    fn typed<T>(
        &self,
        key: &str,
        read: impl Fn(&'a Value) -> Option<T>,
        wrong: &str,
        right: &str,
    ) -> Result<Option<T>, CniError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match read(value) {
            Some(typed) => Ok(Some(typed)),
            None => Err(invalid(format!("{}: {} {wrong}", self.path(key), shown_json(value)), right)),
        }
    }
}

fn invalid(wrong: String, right: impl Into<String>) -> CniError {
    CniError::new(code::INVALID_CONFIG, wrong, right)
}
