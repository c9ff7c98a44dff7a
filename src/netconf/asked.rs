//! Ways to ask for an address that kube-ipam does not serve: an address without a claim could be somebody's fixed one.
//! Passed over, the pod would get any address.

use serde_json::Value;

use crate::cni::{CniError, text};
use crate::pod::IP;

/// Where runtimes put the addresses they want, by the conventions of CNI; `args` may hold anything else.
const PLACES: [&str; 3] = ["/runtimeConfig/ips", "/args/cni/ips", "/runtimeConfig/ipRanges"];

/// The refusal of an address that a configuration asks for; `None` if it asks for none.
pub(super) fn refusal(conf: &Value) -> Option<CniError> {
    let asks = |place: &&str| Some((place[1..].replace('/', "."), conf.pointer(place).filter(|value| is_said(value))?));
    let (field, value) = PLACES.iter().find_map(asks)?;
    let right = match addresses(value) {
        list if list.is_empty() => {
            format!("configure the ranges as ipam.ranges, or give the pod one address by the annotation {IP}")
        }
        list => format!("give the pod the annotation {IP}: {list:?}, and leave {field} out"),
    };
    Some(CniError::field(
        &field,
        &value.to_string(),
        "asks for an address in a way that kube-ipam does not serve",
        right,
    ))
}

fn is_said(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => list.iter().any(is_said),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    }
}

/// The first addresses of a list, without their masks, as the annotation takes them.
fn addresses(list: &Value) -> String {
    let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    let plain = texts.filter_map(|text| text::address(text.split('/').next()?).ok());
    plain.take(4).map(|address| address.to_string()).collect::<Vec<_>>().join(",")
}
