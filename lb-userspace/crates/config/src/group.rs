//! The `[[sync_group]]` tables of a configuration.

use std::collections::{BTreeMap, BTreeSet};

use lb_model::{router::SyncGroup, rules, units::nearest};

use super::{router::Read, tree::Table};

const ROUTERS: &str = "routers = [\"main\", \"main6\"]";

/// The groups of routers that are Active together.
pub(super) fn read_groups(root: &Table<'_>, routers: &[Read<'_>]) -> Vec<SyncGroup> {
    let known: BTreeSet<&str> = routers.iter().map(|read| read.router.name.as_str()).collect();
    let mut groups: Vec<SyncGroup> = Vec::new();
    let mut members: BTreeMap<String, String> = BTreeMap::new();
    for table in root.tables("sync_group", "sync_group") {
        const NAME: &str = "name = \"all\"";
        let field = table.required("name", NAME);
        let name = field.as_ref().and_then(|field| {
            field.parsed(NAME, |text| rules::check_name(text).map(|()| text.to_owned()))
        });
        if let (Some(field), Some(name)) = (&field, &name)
            && groups.iter().any(|group| group.name == *name)
        {
            field.refuse(format!("sync group {name} is there already; give each its own name"));
        }
        let name = name.unwrap_or_else(|| table.path().to_owned());
        let mut own = Vec::new();
        if let Some(field) = table.required("routers", ROUTERS)
            && let Some(items) = field.strings(ROUTERS)
        {
            if items.len() < 2 {
                field.refuse(format!("{} of two routers or more; write {ROUTERS}", items.len()));
            }
            for item in &items {
                let Some(router) = item.string(ROUTERS) else { continue };
                if !known.contains(router) {
                    item.refuse(match nearest(router, known.iter().copied()) {
                        Some(near) => format!("no virtual router {router}; did you mean {near}?"),
                        None => format!("no virtual router {router}"),
                    });
                } else if let Some(first) = members.insert(router.into(), name.clone()) {
                    item.refuse(format!(
                        "{router} is in sync group {first} already; a router is in one at most"
                    ));
                }
                own.push(router.to_owned());
            }
        }
        table.finish();
        groups.push(SyncGroup { name, routers: own });
    }
    groups
}
