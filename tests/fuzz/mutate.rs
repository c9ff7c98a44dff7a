//! New inputs from those of a corpus: by bytes, and by the values of the JSON that an input is or ends with.

use std::collections::VecDeque;

use fastrand::Rng;
use serde_json::{Map, Value, json};

/// Longest input that is made; a corpus may hold longer ones.
const LONGEST: usize = 64 << 10;

/// What inputs are made of.
pub struct Material {
    pub corpus: Vec<Vec<u8>>,
    pub words: Vec<Vec<u8>>,
}

impl Material {
    /// One of the corpus, changed one to five times.
    pub fn input(&self, rng: &mut Rng) -> Vec<u8> {
        let mut input = self.one(rng).to_vec();
        for _ in 0..rng.usize(1..6) {
            // Most of what is not JSON any more is refused by the first reader.
            if rng.u8(..) < 200 {
                self.change_json(&mut input, rng);
            } else {
                self.change_bytes(&mut input, rng);
            }
        }
        input.truncate(LONGEST);
        input
    }

    fn one(&self, rng: &mut Rng) -> &[u8] {
        &self.corpus[rng.usize(..self.corpus.len())]
    }

    fn word(&self, rng: &mut Rng) -> &[u8] {
        &self.words[rng.usize(..self.words.len())]
    }

    fn change_bytes(&self, input: &mut Vec<u8>, rng: &mut Rng) {
        let at = rng.usize(..=input.len());
        let end = (at + rng.usize(..16)).min(input.len());
        match rng.u8(..6) {
            0 if at < end => input[at] ^= 1 << rng.u8(..8),
            1 => drop(input.drain(at..end)),
            2 => input.truncate(at),
            3 => drop(input.splice(at..end, self.word(rng).to_vec())),
            4 => {
                let other = self.one(rng);
                let from = rng.usize(..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                let part = input[at..end].repeat(1 << rng.u8(..8));
                input.splice(at..at, part);
            }
        }
    }

    fn change_json(&self, input: &mut Vec<u8>, rng: &mut Rng) {
        let start = input.iter().position(|byte| *byte == b'{').unwrap_or(input.len());
        let Ok(mut document) = serde_json::from_slice::<Value>(&input[start..]) else {
            return self.change_bytes(input, rng);
        };
        let count = count(&document);
        let place = at(&mut document, rng.usize(..count));
        self.change_value(place, rng);
        input.truncate(start);
        input.extend(document.to_string().into_bytes());
    }

    fn change_value(&self, place: &mut Value, rng: &mut Rng) {
        match (rng.u8(..8), place) {
            (0..=2, Value::Object(fields)) if !fields.is_empty() => self.change_fields(fields, rng),
            (0..=2, Value::Array(items)) if !items.is_empty() => {
                let index = rng.usize(..items.len());
                match rng.u8(..3) {
                    0 => drop(items.remove(index)),
                    1 => items.push(items[index].clone()),
                    _ => items.extend(vec![items[index].clone(); rng.usize(..300)]),
                }
            }
            (0..=2, Value::String(text)) => {
                let mut bytes = std::mem::take(text).into_bytes();
                self.change_bytes(&mut bytes, rng);
                *text = String::from_utf8_lossy(&bytes).into_owned();
            }
            (0..=2, Value::Number(number)) => {
                *number = number.as_i64().unwrap_or(0).wrapping_add(rng.i64(-2..=2)).into();
            }
            (_, place) => *place = self.value(rng),
        }
    }

    fn change_fields(&self, fields: &mut Map<String, Value>, rng: &mut Rng) {
        let key = fields.keys().nth(rng.usize(..fields.len())).cloned().unwrap_or_default();
        let word = String::from_utf8_lossy(self.word(rng)).into_owned();
        match rng.u8(..3) {
            0 => drop(fields.remove(&key)),
            1 => drop(fields.insert(word, self.value(rng))),
            _ => {
                let value = fields.remove(&key).unwrap_or_default();
                fields.insert(word, value);
            }
        }
    }

    /// A plain value, or a part of another input.
    fn value(&self, rng: &mut Rng) -> Value {
        match rng.u8(..10) {
            0 => Value::Null,
            1 => rng.bool().into(),
            2 => rng.i64(-3..300).into(),
            3 => rng.choice([json!(u64::MAX), json!(i64::MIN), json!(1e300), json!(-0.5)]).unwrap_or_default(),
            4 => json!([]),
            5 => json!({}),
            6 | 7 => String::from_utf8_lossy(self.word(rng)).into(),
            _ => {
                let other = self.one(rng);
                let start = other.iter().position(|byte| *byte == b'{').unwrap_or(0);
                let Ok(mut other) = serde_json::from_slice::<Value>(&other[start..]) else { return Value::Null };
                let count = count(&other);
                at(&mut other, rng.usize(..count)).take()
            }
        }
    }
}

fn children(value: &mut Value) -> Vec<&mut Value> {
    match value {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(fields) => fields.values_mut().collect(),
        _ => Vec::new(),
    }
}

fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(fields) => 1 + fields.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

/// The n-th value of a document, counted level by level from its root.
fn at(document: &mut Value, n: usize) -> &mut Value {
    let mut next = VecDeque::from([document]);
    for _ in 0..n {
        if let Some(value) = next.pop_front() {
            next.extend(children(value));
        }
    }
    next.pop_front().unwrap_or_else(|| unreachable!("a document has as many values as were counted"))
}
