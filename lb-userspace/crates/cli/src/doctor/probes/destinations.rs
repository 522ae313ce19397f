//! The firewall rules for certain destinations, from the output of `nft -j`.

use std::{collections::BTreeSet, net::IpAddr};

use lb_model::prefix::Prefix;
use lb_vrrp::thread::filter::TABLE;
use serde_json::Value;

use super::nft::{collect_numbers, table, text};
use crate::doctor::snapshot::Destination;

/// Of all rules but those of chains that see only what this node sends itself, and those of `lbd`.
pub(super) fn destinations(objects: &[Value]) -> Vec<Destination> {
    let outgoing: Vec<String> = objects
        .iter()
        .filter_map(|object| object.get("chain"))
        .filter(|chain| ["output", "postrouting"].contains(&text(&chain["hook"])))
        .map(|chain| format!("{} {}", table(chain), text(&chain["name"])))
        .collect();
    let mut all = Vec::new();
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let chain = format!("{} {}", table(rule), text(&rule["chain"]));
        if outgoing.contains(&chain) || rule["table"] == TABLE {
            continue;
        }
        let (mut addresses, mut ports) = (Vec::new(), BTreeSet::new());
        for (left, right) in rule["expr"].as_array().into_iter().flatten().filter_map(compared) {
            let set = named_set(right, rule, objects);
            if reads(left, "daddr") {
                collect_addresses(right, &mut addresses);
                set.into_iter().for_each(|set| collect_addresses(set, &mut addresses));
            } else if reads(left, "dport") {
                collect_numbers(right, &mut ports);
                set.into_iter().for_each(|set| collect_numbers(set, &mut ports));
            }
        }
        let handle = rule["handle"].as_u64().unwrap_or_default();
        all.extend(addresses.into_iter().map(|(first, last)| Destination {
            chain: chain.clone(),
            handle,
            first,
            last,
            ports: ports.clone(),
        }));
    }
    all
}

/// The two sides of a comparison.
fn compared(expression: &Value) -> Option<(&Value, &Value)> {
    let matched = expression.get("match").map(|one| (&one["left"], &one["right"]));
    matched.or_else(|| expression.get("vmap").map(|one| (&one["key"], &one["data"])))
}

/// Whether an expression reads this field of a packet, alone or beside others (`ip daddr . tcp dport`).
fn reads(left: &Value, field: &str) -> bool {
    let of = |of: &str, key: &str| text(&left[of][key]).ends_with(field);
    of("payload", "field")
        || of("ct", "key")
        || left["concat"].as_array().is_some_and(|all| all.iter().any(|one| reads(one, field)))
}

/// The elements of the set that is named, as `@blocked`.
fn named_set<'a>(right: &Value, rule: &Value, objects: &'a [Value]) -> Option<&'a Value> {
    let name = right.as_str()?.strip_prefix('@')?;
    let mut sets = objects.iter().filter_map(|object| object.get("set").or(object.get("map")));
    let set = sets.find(|set| set["name"] == name && table(set) == table(rule));
    set.map(|set| &set["elem"])
}

/// The addresses of the right side: one, prefixes, ranges, sets of these. Not all of a family.
fn collect_addresses(value: &Value, all: &mut Vec<(IpAddr, IpAddr)>) {
    let parse = |value: &Value| text(value).parse::<IpAddr>().ok();
    match value {
        Value::String(_) => all.extend(parse(value).map(|one| (one, one))),
        Value::Array(values) => values.iter().for_each(|one| collect_addresses(one, all)),
        Value::Object(map) => {
            if let Some(prefix) = map.get("prefix") {
                let length = prefix["len"].as_u64().unwrap_or_default() as u8;
                let bounds = parse(&prefix["addr"]).map(|one| bounds(Prefix::new(one, length)));
                all.extend(bounds.filter(|_| length > 0));
            } else if let Some([from, to]) =
                map.get("range").and_then(Value::as_array).map(Vec::as_slice)
            {
                all.extend(parse(from).zip(parse(to)));
            } else {
                map.values().for_each(|one| collect_addresses(one, all));
            }
        }
        _ => {}
    }
}

/// The first and the last address of a prefix.
fn bounds(prefix: Prefix) -> (IpAddr, IpAddr) {
    let length = u32::from(prefix.length());
    match prefix.address() {
        IpAddr::V4(address) => {
            let rest = u32::MAX.checked_shr(length).unwrap_or(0);
            let bits = address.to_bits();
            (IpAddr::V4((bits & !rest).into()), IpAddr::V4((bits | rest).into()))
        }
        IpAddr::V6(address) => {
            let rest = u128::MAX.checked_shr(length).unwrap_or(0);
            let bits = address.to_bits();
            (IpAddr::V6((bits & !rest).into()), IpAddr::V6((bits | rest).into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(extra: &[Value], expr: &Value) -> Vec<(String, String, Vec<u64>)> {
        let rule = json!({"rule": {"family": "inet", "table": "filter", "chain": "input",
                                   "handle": 7, "expr": expr}});
        let objects: Vec<_> = extra.iter().cloned().chain([rule]).collect();
        let one = |one: Destination| {
            assert_eq!((&*one.chain, one.handle), ("inet filter input", 7));
            (one.first.to_string(), one.last.to_string(), one.ports.into_iter().collect())
        };
        destinations(&objects).into_iter().map(one).collect()
    }

    fn compare(field: &str, right: &Value) -> Value {
        let left = json!({"payload": {"protocol": "ip", "field": field}});
        json!({"match": {"op": "==", "left": left, "right": right}})
    }

    fn range(first: &str, last: &str, ports: &[u64]) -> (String, String, Vec<u64>) {
        (first.into(), last.into(), ports.into())
    }

    #[test]
    fn destinations_are_read_of_addresses_prefixes_ranges_and_sets() {
        let daddr = |right: Value| json!([compare("daddr", &right), {"drop": null}]);
        let prefix = |address: &str, len: u8| json!({"prefix": {"addr": address, "len": len}});
        for (right, expected) in [
            (json!("10.0.0.1"), range("10.0.0.1", "10.0.0.1", &[])),
            (prefix("10.0.0.0", 24), range("10.0.0.0", "10.0.0.255", &[])),
            (prefix("fd00::", 127), range("fd00::", "fd00::1", &[])),
            (json!({"range": ["10.0.0.1", "10.0.0.9"]}), range("10.0.0.1", "10.0.0.9", &[])),
            (json!({"set": ["10.0.0.1"]}), range("10.0.0.1", "10.0.0.1", &[])),
            (json!("@vips"), range("10.0.0.3", "10.0.0.3", &[])),
        ] {
            let set = json!({"set": {"family": "inet", "table": "filter", "name": "vips",
                                     "elem": ["10.0.0.3"]}});
            assert_eq!(found(&[set], &daddr(right.clone())), [expected], "{right}");
        }
        assert!(found(&[], &daddr(prefix("0.0.0.0", 0))).is_empty(), "all are none in particular");
        assert!(found(&[], &json!([compare("saddr", &json!("10.0.0.1"))])).is_empty());
    }

    #[test]
    fn ports_and_maps_of_a_rule_are_read() {
        let both = [compare("daddr", &json!("10.0.0.1")), compare("dport", &json!(22))];
        assert_eq!(found(&[], &json!(both)), [range("10.0.0.1", "10.0.0.1", &[22])]);
        let key = json!({"concat": [{"payload": {"protocol": "ip", "field": "daddr"}},
                                    {"payload": {"protocol": "tcp", "field": "dport"}}]});
        let data = json!({"set": [[{"concat": ["10.0.0.1", 80]}, {"drop": null}]]});
        let vmap = json!([{"vmap": {"key": key, "data": data}}]);
        assert_eq!(found(&[], &vmap), [range("10.0.0.1", "10.0.0.1", &[])]);
    }

    #[test]
    fn rules_for_what_the_node_sends_hold() {
        let chain = json!({"chain": {"family": "inet", "table": "filter", "name": "input",
                                     "hook": "output"}});
        assert!(found(&[chain], &json!([compare("daddr", &json!("10.0.0.1"))])).is_empty());
    }
}
