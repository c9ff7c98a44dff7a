//! Standard input to JSON, with bounded memory.

use serde_json::Value;

use super::{CniError, code};

/// The most bytes that are read from stdin: 1 MiB. Read one byte more than this and hand it all to [`parse_stdin`], which refuses it.
pub const READ_STDIN_LIMIT: usize = 1 << 20;

/// The most JSON values that are read. One that is an object takes hundreds of bytes of memory for its eight of text.
pub const MOST_VALUES: usize = 1 << 15;

/// The network configuration as a JSON object. Code 5 when longer than [`READ_STDIN_LIMIT`] (it was not read to its end) or of more than
/// [`MOST_VALUES`] values, code 6 when empty, cut short, nested deeper than 127 levels, or not an object. The text itself is never repeated: it may hold secrets.
pub fn parse_stdin(bytes: &[u8]) -> Result<Value, CniError> {
    if bytes.len() > READ_STDIN_LIMIT {
        return Err(CniError::new(
            code::IO,
            format!("stdin: longer than {READ_STDIN_LIMIT} bytes"),
            "a network configuration is a few kilobytes; check what calls the plugin",
        ));
    }
    let refuse = |wrong: String| {
        CniError::new(
            code::DECODE,
            format!("stdin: {wrong}"),
            "give one network configuration, a JSON object, on stdin",
        )
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(refuse("empty".to_owned()));
    }
    if value_count(bytes) > MOST_VALUES {
        return Err(CniError::new(
            code::IO,
            format!("stdin: of more than {MOST_VALUES} JSON values"),
            "a network configuration has some dozens; check what calls the plugin",
        ));
    }
    let json: Value = serde_json::from_slice(bytes).map_err(|error| refuse(format!("not JSON: {error}")))?;
    match json {
        Value::Object(_) => Ok(json),
        Value::Array(_) => Err(refuse("a JSON array".to_owned())),
        _ => Err(refuse("a bare JSON value".to_owned())),
    }
}

/// How many values a JSON text holds, at most one more than that: what its memory follows, unlike its length.
pub fn value_count(json: &[u8]) -> usize {
    let (mut count, mut in_text, mut escaped) = (1, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_text,
            b'"' => in_text = !in_text,
            b'[' | b'{' | b',' if !in_text => count += 1,
            _ => {}
        }
    }
    count
}

#[cfg(test)]
mod count {
    use super::value_count;

    #[test]
    fn values_are_counted_and_what_is_in_texts_is_none() {
        for (json, count) in [
            (r#"{}"#, 2),
            (r#"7"#, 1),
            (r#"{"a":[1,2,{"b":3}]}"#, 6),
            (r#"{"a":",[{\",","b":"\\"}"#, 3),
            (r#"[{"":0},{"":0}]"#, 5),
        ] {
            assert_eq!(value_count(json.as_bytes()), count, "{json}");
        }
    }
}
