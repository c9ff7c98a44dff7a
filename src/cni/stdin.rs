//! Standard input to JSON, with bounded memory.

use serde_json::Value;

use super::{CniError, code};

/// The most bytes that are read from stdin: 1 MiB. Read one byte more than this and hand it all to [`parse_stdin`], which refuses it.
pub const READ_STDIN_LIMIT: usize = 1 << 20;

/// The network configuration as a JSON object. Code 5 when longer than [`READ_STDIN_LIMIT`] (it was not read to its end), code 6 when
/// empty, cut short, nested deeper than 127 levels, or not an object. The text itself is never repeated: it may hold secrets.
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
    let json: Value = serde_json::from_slice(bytes).map_err(|error| refuse(format!("not JSON: {error}")))?;
    match json {
        Value::Object(_) => Ok(json),
        Value::Array(_) => Err(refuse("a JSON array".to_owned())),
        _ => Err(refuse("a bare JSON value".to_owned())),
    }
}
