use super::*;
use proptest::prelude::*;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn matches(selector: &str, pairs: &[(&str, &str)]) -> bool {
    selector.parse::<Selector>().unwrap().matches(&labels(pairs))
}

#[test]
fn a_blank_selector_matches_everything() {
    for selector in ["", "  \t", "all()", " all( ) ", "global()", "!!all()"] {
        assert!(matches(selector, &[]), "{selector:?}");
        assert!(matches(selector, &[("zone", "b")]), "{selector:?}");
    }
    assert!(!matches("!all()", &[("zone", "b")]));
}

#[test]
fn an_absent_label_passes_only_the_negative_tests() {
    for passes in ["zone != 'a'", "zone not in {'a'}", "!has(zone)", "!(zone == 'a')", "zone notin {}"] {
        assert!(matches(passes, &[]), "{passes}");
    }
    for fails in
        ["zone == ''", "zone in {''}", "has(zone)", "zone contains ''", "zone starts with ''", "zone ends with ''"]
    {
        assert!(!matches(fails, &[]), "{fails}");
    }
}

#[test]
fn a_present_label_is_tested_by_its_value() {
    let rack = [("topology.k8s.io/rack", "r1-b")];
    for passes in [
        "topology.k8s.io/rack == 'r1-b'",
        "topology.k8s.io/rack != \"r1\"",
        "topology.k8s.io/rack in {'x', 'r1-b'}",
        "topology.k8s.io/rack in {'r1-b',}",
        "topology.k8s.io/rack not in {'x'}",
        "topology.k8s.io/rack contains '1-'",
        "topology.k8s.io/rack starts with 'r1'",
        "topology.k8s.io/rack startswith 'r1'",
        "topology.k8s.io/rack ends   with 'b'",
        "has( topology.k8s.io/rack )",
    ] {
        assert!(matches(passes, &rack), "{passes}");
        assert!(!matches(&format!("!{passes}"), &rack), "!{passes}");
    }
}

#[test]
fn and_binds_more_than_or_and_not_more_than_both() {
    let selector = "a == '1' || b == '1' && c == '1'";
    assert!(matches(selector, &[("a", "1")]));
    assert!(!matches(selector, &[("b", "1")]));
    assert!(matches(selector, &[("b", "1"), ("c", "1")]));
    assert!(!matches("(a == '1' || b == '1') && c == '1'", &[("a", "1")]));
    assert!(matches("!has(a) && has(b)", &[("b", "")]));
    assert!(!matches("!(has(a) || has(b))", &[("b", "")]));
}

#[test]
fn operators_are_label_names_where_a_label_is_expected() {
    assert!(matches(
        "in in {'1'} && contains == '2' && not not in {'1'}",
        &[("in", "1"), ("contains", "2"), ("not", "3")]
    ));
    assert!(matches("all == 'x' && has == 'y'", &[("all", "x"), ("has", "y")]));
    assert!(matches("a contains\"x\"", &[("a", "xy")]));
}

#[test]
fn a_quote_of_the_other_kind_may_be_in_a_string() {
    assert!(matches(r#"a in {"'", '"'}"#, &[("a", "'")]));
    assert!(matches(r#"a in {"'", '"'}"#, &[("a", "\"")]));
    assert!(matches("a == 'ünï cödé'", &[("a", "ünï cödé")]));
}

#[test]
fn a_bad_selector_is_refused_with_the_place_and_what_would_be_right() {
    for (selector, wanted) in [
        ("zone", "expected an operator after the label at position 4, found the end"),
        ("zone = 'a'", "expected == at position 5, found '='"),
        ("zone == a", "expected a string in quotes at position 8, found label \"a\""),
        ("zone == 'a", "the string that begins at position 8 has no closing quote"),
        ("zone in 'a'", "expected a set in braces at position 8, found string \"a\""),
        ("zone in {'a' 'b'}", "expected } at position 13, found string \"b\""),
        ("(has(a)", "expected ) at position 7, found the end"),
        ("has(a))", "expected &&, || or the end at position 6, found )"),
        ("has()", "expected a label at position 4, found ')'"),
        ("has(a) & has(b)", "expected && at position 7, found '&'"),
        ("has(a) ||", "expected a label, has(), all() or a parenthesis at position 9, found the end"),
        ("zone inside {'a'}", "expected an operator after the label at position 5, found 'i'"),
        ("zo\u{fc}ne == 'a'", "expected an operator after the label at position 2, found '\u{fc}'"),
    ] {
        assert_eq!(selector.parse::<Selector>().unwrap_err().to_string(), wanted, "{selector}");
    }
    let long = format!("{} == 'a'", "l".repeat(513));
    assert_eq!(long.parse::<Selector>(), Err(SelectorError::LabelTooLong { at: 0, length: 513 }));
}

#[test]
fn deep_nesting_is_refused_and_does_not_exhaust_the_stack() {
    let deep = |n: usize| format!("{}all(){}", "(".repeat(n), ")".repeat(n)).parse::<Selector>();
    assert!(deep(64).is_ok());
    assert_eq!(deep(65), Err(SelectorError::TooDeep { at: 64, most: 64 }));
    assert!(deep(1_000_000).is_err());
    assert!(
        format!("{}all()", "!".repeat(1_000_001)).parse::<Selector>().unwrap().root == Node::Not(Box::new(Node::All))
    );
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>()) {
        let _ = text.parse::<Selector>();
    }

    #[test]
    fn no_sequence_of_words_makes_the_parser_panic(
        words in prop::collection::vec(prop::sample::select(vec![
            "(", ")", "{", "}", ",", "==", "!=", "!", "&&", "||", "in", "not", "contains", "starts", "with", "has(",
            "all()", "global(", "a", "b/c", "'x'", "\"y\"", "'", " ", "=", "\u{fc}",
        ]), 0..24),
    ) {
        if let Ok(selector) = words.concat().parse::<Selector>() {
            selector.matches(&labels(&[("a", "x")]));
        }
        let _ = words.join(" ").parse::<Selector>();
    }
}
