//! The character rules of names that arrive as text: Kubernetes objects, networks, containers, interfaces.

/// DNS-1123 label: 1 to 63 of `a-z0-9-`, a letter or digit at both ends.
pub(crate) fn is_dns_label(text: &str) -> bool {
    text.len() <= 63 && is_dns_part(text)
}

/// DNS-1123 subdomain: parts like labels (but of any length: so Kubernetes has it) joined by dots, 1 to 253 bytes in all.
pub(crate) fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_part)
}

fn is_dns_part(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// The CNI specification's rule for container ids and network names: a letter or digit, then letters, digits, `_`, `.`, `-`.
pub(crate) fn is_cni_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// What is wrong with the name of a network interface, if anything.
pub(crate) fn interface_fault(text: &str) -> Option<&'static str> {
    match text {
        "." | ".." => Some("is a directory, not an interface"),
        _ if text.len() > 15 => Some("is longer than 15 bytes"),
        _ if text.contains(['/', ':']) => Some("has a / or :"),
        _ if text.contains(|c: char| c.is_whitespace() || c.is_control()) => Some("has white space"),
        _ => None,
    }
}

/// The one of `known` that a misspelt name was probably meant to be: equal but for case, or a slip or two away.
pub(crate) fn meant<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let lower = name.to_ascii_lowercase();
    let near = |candidate: &&&str| {
        let slips = if candidate.len() < 6 { 1 } else { 2 };
        lower.len().abs_diff(candidate.len()) <= slips
            && strsim::damerau_levenshtein(&lower, &candidate.to_ascii_lowercase()) <= slips
    };
    known.iter().find(near).copied()
}
