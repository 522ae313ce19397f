//! The parts of a listing of `nft -j`.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::doctor::node::VRRP;

/// Family and name of the table that an object of the listing is in.
pub(super) fn table(object: &Value) -> String {
    format!("{} {}", text(&object["family"]), text(&object["table"]))
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The numbers that a packet is compared with: one, a set, ranges in a set.
pub(super) fn collect_numbers(value: &Value, numbers: &mut BTreeSet<u64>) {
    match value {
        Value::Number(number) => numbers.extend(number.as_u64()),
        Value::String(word) if word == "vrrp" => drop(numbers.insert(VRRP)),
        Value::Array(all) => all.iter().for_each(|one| collect_numbers(one, numbers)),
        Value::Object(map) => {
            if let Some([Value::Number(from), Value::Number(to)]) =
                map.get("range").and_then(Value::as_array).map(Vec::as_slice)
            {
                let (from, to) = (from.as_u64().unwrap_or(1), to.as_u64().unwrap_or(0));
                // Ports and protocols have 16 bits at most.
                numbers.extend(from..=to.min(0xffff));
            } else {
                map.values().for_each(|one| collect_numbers(one, numbers));
            }
        }
        _ => {}
    }
}
