//! Ranges through the forms they are written in.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::cni::CniError;
use crate::cni::object::Object;

fn read(ipam: Value, default_gateway: bool) -> Result<(Option<RangeSet>, Option<RangeSet>), CniError> {
    parse(&Object::new("ipam", &ipam)?, default_gateway)
}

fn v4(ipam: Value) -> RangeSet {
    read(ipam, false).unwrap().0.unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[track_caller]
fn refused(ipam: Value, names: &[&str]) {
    let error = read(ipam, false).unwrap_err();
    assert_eq!(error.code, 7);
    assert!(!error.details.is_empty());
    for name in names {
        assert!(error.to_string().contains(name), "{name} is not in: {error}");
    }
}

#[test]
fn the_guides_range_is_read() {
    let set = v4(
        json!({"subnet": "10.244.0.0/16", "rangeStart": "10.244.0.10", "rangeEnd": "10.244.0.200", "gateway": "10.244.0.1"}),
    );
    let expected = Subnet {
        network: "10.244.0.0/16".parse().unwrap(),
        start: ip("10.244.0.10"),
        end: ip("10.244.0.200"),
        gateway: Some(ip("10.244.0.1")),
    };
    assert_eq!(set.subnets(), [expected]);
    assert_eq!(set.size(), 191);
    assert_eq!(set.family(), Family::V4);
    assert_eq!(set.to_string(), "10.244.0.0/16 (10.244.0.10 to 10.244.0.200)");
}

#[test]
fn a_range_runs_from_the_first_to_the_last_usable_address_by_default() {
    let set = v4(json!({"subnet": "10.0.0.0/29"}));
    assert_eq!((set.subnets()[0].start, set.subnets()[0].end), (ip("10.0.0.1"), ip("10.0.0.6")));
    assert_eq!(set.size(), 6);
    let set = read(json!({"subnet": "fd00::/125"}), false).unwrap().1.unwrap();
    assert_eq!((set.subnets()[0].start, set.subnets()[0].end), (ip("fd00::1"), ip("fd00::7")));
    assert_eq!(set.size(), 7);
}

#[test]
fn a_main_plugin_that_needs_a_gateway_gets_the_first_usable_address() {
    let set = read(json!({"subnet": "10.0.0.0/29"}), true).unwrap().0.unwrap();
    assert_eq!(set.subnets()[0].gateway, Some(ip("10.0.0.1")));
    assert_eq!(set.size(), 5);
    assert!(!set.permits_random(ip("10.0.0.1")));
}

#[test]
fn host_locals_ranges_give_several_subnets_and_both_families() {
    let ranges = json!({"ranges": [
        [{"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.9"}, {"subnet": "10.2.0.0/24", "gateway": "10.2.0.254"}],
        [{"subnet": "fd00:1::/64", "rangeStart": "fd00:1::100"}],
    ]});
    let (v4, v6) = read(ranges, false).unwrap();
    let (v4, v6) = (v4.unwrap(), v6.unwrap());
    assert_eq!(v4.subnets().len(), 2);
    assert_eq!(v4.size(), 9 + 253);
    assert_eq!(v4.subnet_of(ip("10.2.0.7")).unwrap().gateway, Some(ip("10.2.0.254")));
    assert_eq!(v4.subnet_of(ip("10.3.0.7")), None);
    assert_eq!(v6.family(), Family::V6);
    assert!(!v6.permits_random(ip("fd00:1::ff")) && v6.permits_random(ip("fd00:1::100")));
    assert_eq!(v6.permits_fixed(ip("fd00:1::ff")), Ok(()));
}

#[test]
fn the_flat_form_may_stand_beside_ranges_of_the_other_family() {
    let (v4, v6) = read(json!({"subnet": "10.1.0.0/24", "ranges": [[{"subnet": "fd00::/64"}]]}), false).unwrap();
    assert!(v4.is_some() && v6.is_some());
    refused(
        json!({"subnet": "10.1.0.0/24", "ranges": [[{"subnet": "10.2.0.0/24"}]]}),
        &["ipam.ranges[0]", "second IPv4 set", "one set"],
    );
    refused(
        json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]}),
        &["ipam.ranges[1]", "10.2.0.0/24", "second"],
    );
}

#[test]
fn a_subnet_with_host_bits_is_refused_with_the_right_one() {
    refused(
        json!({"subnet": "10.244.0.1/16"}),
        &["ipam.subnet: \"10.244.0.1/16\"", "host bits", "write 10.244.0.0/16"],
    );
    refused(json!({"ranges": [[{"subnet": "fd00::1/64"}]]}), &["ipam.ranges[0][0].subnet", "write fd00::/64"]);
}

#[test]
fn a_subnet_that_is_none_is_refused() {
    for bad in [
        "10.244.0.0",
        "10.244.0.0/33",
        "10.244.0.0/+8",
        "10.244.0.0/255.255.0.0",
        "usePodCidr",
        "10.244.0/16",
        "/16",
        "::ffff:10.0.0.0/112",
    ] {
        refused(json!({ "subnet": bad }), &["ipam.subnet", bad]);
    }
    refused(json!({"subnet": 16}), &["ipam.subnet: 16", "string"]);
    for bad in ["0.0.0.0/0", "127.0.0.0/8", "224.0.0.0/8", "ff00::/8", "::/0"] {
        refused(json!({ "subnet": bad }), &["ipam.subnet", bad, "not a network for pods"]);
    }
    for bad in ["10.0.0.0/31", "10.0.0.0/32", "fd00::/127", "fd00::/128"] {
        refused(json!({ "subnet": bad }), &["ipam.subnet", bad, "too small"]);
    }
}

#[test]
fn start_end_and_gateway_lie_in_the_subnet() {
    for key in ["rangeStart", "rangeEnd", "gateway"] {
        refused(
            json!({"subnet": "10.244.0.0/16", key: "10.245.0.1"}),
            &[
                &format!("ipam.{key}: \"10.245.0.1\""),
                "outside the subnet 10.244.0.0/16",
                "10.244.0.1 to 10.244.255.254",
            ],
        );
        refused(json!({"subnet": "10.244.0.0/16", key: "fd00::1"}), &[&format!("ipam.{key}"), "outside"]);
        refused(
            json!({"subnet": "10.244.0.0/16", key: "10.244.0.1/16"}),
            &[&format!("ipam.{key}"), "write 10.244.0.1"],
        );
        refused(
            json!({"subnet": "10.244.0.0/16", key: "10.244.0.300"}),
            &[&format!("ipam.{key}"), "not an IP address"],
        );
        refused(json!({ key: "10.244.0.1" }), &["ipam.subnet: missing"]);
    }
    refused(
        json!({"subnet": "10.244.0.0/16", "gateway": "10.244.0.0"}),
        &["ipam.gateway", "network or broadcast", "such as 10.244.0.1"],
    );
    refused(json!({"subnet": "10.244.0.0/16", "gateway": "10.244.255.255"}), &["ipam.gateway", "network or broadcast"]);
}

#[test]
fn a_range_that_ends_before_it_starts_is_refused() {
    refused(
        json!({"subnet": "10.244.0.0/16", "rangeStart": "10.244.0.20", "rangeEnd": "10.244.0.10"}),
        &["ipam.rangeEnd: \"10.244.0.10\"", "before rangeStart 10.244.0.20"],
    );
    refused(
        json!({"subnet": "10.244.0.0/16", "rangeStart": "10.244.255.255"}),
        &["ipam.rangeStart", "after 10.244.255.254"],
    );
    assert_eq!(v4(json!({"subnet": "10.244.0.0/16", "rangeStart": "10.244.0.9", "rangeEnd": "10.244.0.9"})).size(), 1);
}

#[test]
fn a_range_without_an_address_to_give_is_refused() {
    refused(
        json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.1", "rangeEnd": "10.0.0.1", "gateway": "10.0.0.1"}),
        &["ipam.subnet", "no address", "gateway"],
    );
    refused(json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.0", "rangeEnd": "10.0.0.0"}), &["no address"]);
}

#[test]
fn subnets_of_a_set_are_of_one_family_and_do_not_overlap() {
    refused(
        json!({"ranges": [[{"subnet": "10.1.0.0/16"}, {"subnet": "10.1.2.0/24"}]]}),
        &["ipam.ranges[0]: \"10.1.2.0/24\"", "overlaps 10.1.0.0/16"],
    );
    refused(
        json!({"ranges": [[{"subnet": "10.1.2.0/24"}, {"subnet": "10.1.0.0/16"}]]}),
        &["10.1.2.0/24\" overlaps 10.1.0.0/16"],
    );
    refused(
        json!({"ranges": [[{"subnet": "10.1.0.0/16"}, {"subnet": "fd00::/64"}]]}),
        &["another family", "[[{IPv4}], [{IPv6}]]"],
    );
}

#[test]
fn an_error_about_very_many_subnets_stays_short() {
    let subnets: Vec<_> =
        (0..20_000u32).map(|n| json!({"subnet": format!("{}/30", Ipv4Addr::from(0x0a00_0000 + 4 * n))})).collect();
    let set = v4(json!({"ranges": [subnets]}));
    let why = set.permits_fixed(ip("192.0.2.1")).unwrap_err().to_string();
    assert!(why.contains("10.0.0.0/30") && why.ends_with("and 19996 more") && why.len() < 200, "{why}");
    assert!(set.to_string().ends_with("and 19996 more") && set.to_string().len() < 400, "{set}");
}

#[test]
fn ranges_of_another_shape_are_refused() {
    for bad in [json!([[]]), json!([{"subnet": "10.0.0.0/24"}]), json!(["x"])] {
        refused(json!({ "ranges": bad }), &["ipam.ranges[0]", "a list of sets"]);
    }
    refused(json!({"ranges": {"subnet": "10.0.0.0/24"}}), &["ipam.ranges: (an object)", "array"]);
    refused(json!({"ranges": [["x"]]}), &["ipam.ranges[0][0]", "object"]);
    refused(
        json!({"ranges": [[{"subnet": "10.0.0.0/24", "rangestart": "10.0.0.9"}]]}),
        &["rangestart", "did you mean rangeStart?"],
    );
    assert_eq!(read(json!({"ranges": []}), false).unwrap(), (None, None));
}

#[test]
fn a_fixed_address_may_lie_outside_the_range_but_not_on_a_reserved_one() {
    let set = v4(
        json!({"subnet": "10.244.0.0/16", "rangeStart": "10.244.0.10", "rangeEnd": "10.244.0.200", "gateway": "10.244.0.1"}),
    );
    assert_eq!(set.permits_fixed(ip("10.244.0.216")), Ok(()));
    assert!(!set.permits_random(ip("10.244.0.216")));
    let why = |text| set.permits_fixed(ip(text)).unwrap_err().to_string();
    assert_eq!(why("10.244.0.0"), "is the network address of 10.244.0.0/16");
    assert_eq!(why("10.244.255.255"), "is the broadcast address of 10.244.0.0/16");
    assert_eq!(why("10.244.0.1"), "is the gateway of 10.244.0.0/16");
    assert_eq!(why("10.245.0.1"), "is outside of 10.244.0.0/16");
    assert_eq!(why("fd00::1"), "is outside of 10.244.0.0/16");
}

#[test]
fn ipv6_has_an_anycast_address_and_no_broadcast_address() {
    let set = read(json!({"subnet": "fd00::/64", "rangeStart": "fd00::"}), false).unwrap().1.unwrap();
    assert!(!set.permits_random(ip("fd00::")));
    assert!(set.permits_random(ip("fd00::ffff:ffff:ffff:ffff")));
    assert_eq!(
        set.permits_fixed(ip("fd00::")).unwrap_err().to_string(),
        "is the subnet-router anycast address of fd00::/64"
    );
    assert_eq!(set.size(), u128::from(u64::MAX));
}

#[test]
fn a_block_is_met_if_one_of_its_addresses_may_be_given() {
    let set = v4(
        json!({"subnet": "10.244.0.0/16", "rangeStart": "10.244.0.64", "rangeEnd": "10.244.0.127", "gateway": "10.244.0.64"}),
    );
    let meets = |block: &str| set.intersects(&block.parse().unwrap());
    assert!(meets("10.244.0.64/26") && meets("10.244.0.0/16") && meets("10.244.0.65/32") && meets("0.0.0.0/0"));
    assert!(!meets("10.244.0.0/26") && !meets("10.244.0.128/26") && !meets("fd00::/122"));
    assert!(!meets("10.244.0.64/32"), "the gateway alone is no address to give");
}

prop_compose! {
    /// An `ipam` section that is often right: a subnet and addresses near it.
    fn sections()(
        v6 in any::<bool>(),
        base in any::<u16>(),
        length in 8u8..=32,
        low in proptest::option::of(0u32..600),
        high in proptest::option::of(0u32..600),
        gateway in proptest::option::of(0u32..600),
    ) -> Value {
        let start = 0x0a00_0000 + (u32::from(base) << 8);
        let address = |offset: u32| match v6 {
            true => Ipv6Addr::from((0xfd00 << 112) + u128::from(start + offset)).to_string(),
            false => Ipv4Addr::from(start + offset).to_string(),
        };
        let length = if v6 { length + 96 } else { length };
        let network: IpNetwork = format!("{}/{length}", address(0)).parse().unwrap();
        json!({
            "subnet": format!("{}/{length}", network.network()),
            "rangeStart": low.map(address), "rangeEnd": high.map(address), "gateway": gateway.map(address),
        })
    }
}

proptest! {
    #[test]
    fn no_text_in_place_of_a_range_panics(
        texts in proptest::collection::vec("\\PC{0,12}|[0-9a-f.:/]{0,20}|10\\.0\\.0\\.[0-9]{1,3}(/[0-9]{1,3})?", 4), listed in any::<bool>(),
    ) {
        let section = json!({"subnet": texts[0], "rangeStart": texts[1], "rangeEnd": texts[2], "gateway": texts[3]});
        let section = if listed { json!({"ranges": [[section]]}) } else { section };
        if let Err(error) = read(section, true) {
            prop_assert_eq!(error.code, 7);
            prop_assert!(!error.msg.is_empty() && !error.details.is_empty(), "{error}");
        }
    }

    #[test]
    fn no_accepted_range_permits_a_reserved_address(section in sections(), default_gateway in any::<bool>(), nth in any::<u128>()) {
        let Ok((v4, v6)) = read(section, default_gateway) else { return Ok(()) };
        let set = v4.or(v6).unwrap();
        let subnet = set.subnets()[0];
        let mut reserved = vec![subnet.network.network()];
        reserved.extend(subnet.gateway);
        reserved.extend(subnet.network.is_ipv4().then(|| subnet.network.broadcast()));
        for ip in &reserved {
            prop_assert!(!set.permits_random(*ip), "{ip} of {set}");
            prop_assert!(set.permits_fixed(*ip).is_err());
        }
        prop_assert!(set.size() > 0);
        prop_assert!(set.intersects(&subnet.network));
        let span = number(subnet.end) - number(subnet.start);
        let inside = number(subnet.start) + nth % (span + 1);
        let inside: IpAddr = if subnet.network.is_ipv4() { Ipv4Addr::from(inside as u32).into() } else { Ipv6Addr::from(inside).into() };
        prop_assert_eq!(set.permits_random(inside), !reserved.contains(&inside));
        prop_assert_eq!(set.intersects(&IpNetwork::from(inside)), set.permits_random(inside));
        if span < 2000 {
            let mut counted = 0;
            for at in number(subnet.start)..=number(subnet.end) {
                let ip: IpAddr = if subnet.network.is_ipv4() { Ipv4Addr::from(at as u32).into() } else { Ipv6Addr::from(at).into() };
                counted += u128::from(set.permits_random(ip));
            }
            prop_assert_eq!(set.size(), counted);
        }
    }
}
