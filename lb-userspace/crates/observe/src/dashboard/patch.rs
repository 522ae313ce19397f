//! The difference of two JSON values, as a merge patch (RFC 7396): most of a node stays as it was
//! from one second to the next.

use serde_json::{Map, Value};

/// The patch that makes `new` of `old`; none: they are equal. Neither may hold nulls in objects, since a null
/// in a patch removes a member.
pub(super) fn between(old: &Value, new: &Value) -> Option<Value> {
    let (Value::Object(old), Value::Object(new)) = (old, new) else {
        return (old != new).then(|| new.clone());
    };
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    let mut patch: Map<String, Value> = gone.map(|key| (key.clone(), Value::Null)).collect();
    for (key, value) in new {
        let change = match old.get(key) {
            Some(before) => between(before, value),
            None => Some(value.clone()),
        };
        patch.extend(change.map(|change| (key.clone(), change)));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, prelude::*};
    use serde_json::json;

    use super::*;

    /// RFC 7396, section 2.
    fn apply(target: &mut Value, patch: &Value) {
        let Value::Object(patch) = patch else {
            *target = patch.clone();
            return;
        };
        if !target.is_object() {
            *target = json!({});
        }
        let members = target.as_object_mut().expect("it was made one");
        for (key, value) in patch {
            if value.is_null() {
                members.remove(key);
            } else {
                apply(members.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            (0..3_u64).prop_map(Value::from),
            proptest::collection::vec(0..3_u64, 0..3).prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            btree_map("[a-c]", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect()))
        })
    }

    #[test]
    fn only_what_differs_is_told() {
        let old = json!({"a": 1, "b": {"c": [1, 2], "d": "x"}, "e": 5});
        let new = json!({"a": 1, "b": {"c": [1, 3], "d": "x"}, "f": {}});
        let patch = json!({"b": {"c": [1, 3]}, "e": null, "f": {}});
        assert_eq!(between(&old, &new), Some(patch));
        assert_eq!(between(&new, &new), None);
    }

    proptest! {
        #[test]
        fn the_patch_makes_the_new_value_of_the_old_one(old in value(), new in value()) {
            let mut patched = old.clone();
            if let Some(patch) = between(&old, &new) {
                apply(&mut patched, &patch);
            }
            prop_assert_eq!(patched, new);
        }
    }
}
