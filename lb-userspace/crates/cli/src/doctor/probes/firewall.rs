//! The tables of the firewall, as `nft` prints them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use serde_json::Value;

use super::{
    destinations::destinations,
    nft::{collect_numbers, table, text},
};
use crate::doctor::snapshot::{Chain, Firewall, Rules};

/// Runs `nft`.
pub(super) fn read() -> Firewall {
    let listed = Command::new("nft").args(["-j", "list", "ruleset"]).output();
    let listed = match listed {
        Ok(output) if output.status.success() => output.stdout,
        Ok(output) => {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Firewall::Unknown(errors.lines().next().unwrap_or("nft fails").to_owned());
        }
        Err(error) => return Firewall::Unknown(format!("nft: {error}")),
    };
    let Ok(listed) = serde_json::from_slice(&listed) else {
        return Firewall::Unknown("nft prints something else than JSON".into());
    };
    let legacy = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];
    let legacy =
        legacy.iter().any(|file| fs::read_to_string(file).is_ok_and(|names| !names.is_empty()));
    Firewall::Known(Rules { legacy, ..rules(&listed) })
}

/// The rules of the listed tables.
fn rules(listed: &Value) -> Rules {
    let objects = listed["nftables"].as_array().map_or(&[][..], Vec::as_slice);
    let mut accepts: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    let mut drops: BTreeSet<String> = BTreeSet::new();
    let mut clamps = false;
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let expressions = rule["expr"].as_array().map_or(&[][..], Vec::as_slice);
        let has = |key: &str| expressions.iter().any(|one| one.get(key).is_some());
        let matches = expressions.iter().filter_map(|one| one.get("match"));
        if has("accept") {
            let numbers = accepts.entry(table(rule)).or_default();
            matches.clone().for_each(|one| collect_numbers(&one["right"], numbers));
        }
        // One that drops whatever comes to it.
        if matches.count() == 0 && (has("drop") || has("reject")) {
            drops.insert(format!("{} {}", table(rule), text(&rule["chain"])));
        }
        clamps |= expressions
            .iter()
            .filter_map(|one| one.get("mangle"))
            .any(|one| one["key"]["tcp option"]["name"] == "maxseg");
    }
    let closed = objects.iter().filter_map(|object| object.get("chain")).filter_map(|chain| {
        let name = format!("{} {}", table(chain), text(&chain["name"]));
        let is_closed = chain["policy"] == "drop" || drops.contains(&name);
        (chain["hook"] == "input" && is_closed).then(|| Chain {
            accepts: accepts.get(&table(chain)).cloned().unwrap_or_default(),
            name,
        })
    });
    Rules { closed: closed.collect(), legacy: false, clamps, destinations: destinations(objects) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chain(name: &str, hook: &str, policy: &str) -> Value {
        json!({"chain": {"family": "inet", "table": "filter", "name": name, "hook": hook, "policy": policy}})
    }

    fn rule(chain: &str, expr: &Value) -> Value {
        json!({"rule": {"family": "inet", "table": "filter", "chain": chain, "expr": expr}})
    }

    #[test]
    fn a_chain_is_closed_by_its_policy_or_its_last_rule() {
        let listed = json!({"nftables": [
            chain("input", "input", "drop"), chain("output", "output", "drop"),
            chain("open", "input", "accept"), chain("ends", "input", "accept"),
            rule("ends", &json!([{"drop": null}])),
            rule("open", &json!([{"match": {"right": 7}}, {"drop": null}])),
        ]});
        let closed: Vec<_> = rules(&listed).closed.into_iter().map(|chain| chain.name).collect();
        assert_eq!(closed, ["inet filter input", "inet filter ends"]);
    }

    #[test]
    fn what_is_accepted_is_known_by_its_numbers() {
        let accept = |right: Value| json!([{"match": {"right": right}}, {"accept": null}]);
        let listed = json!({"nftables": [
            chain("input", "input", "drop"),
            rule("input", &accept(json!("vrrp"))),
            rule("other", &accept(json!({"set": [22, {"range": [80, 82]}]}))),
            rule("input", &json!([{"match": {"right": 99}}, {"drop": null}])),
        ]});
        let rules = rules(&listed);
        assert_eq!(rules.closed[0].accepts, BTreeSet::from([22, 80, 81, 82, 112]));
        assert!(!rules.clamps);
    }

    #[test]
    fn a_rule_that_lowers_the_segment_size_is_seen() {
        let key = json!({"tcp option": {"name": "maxseg", "field": "size"}});
        let listed = json!({"nftables": [
            rule("output", &json!([{"mangle": {"key": key, "value": 1440}}])),
        ]});
        assert!(rules(&listed).clamps);
        assert_eq!(rules(&json!({})), Rules::default());
    }
}
