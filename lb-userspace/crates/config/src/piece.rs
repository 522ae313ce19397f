//! Pieces of a configuration that are given by themselves, as a command's flags give them.
//!
//! They are read by the reader of the file, so that names, units and bounds are the same.

use lb_model::{check::Check, policy::Policy};
use toml::de::DeTable;

use super::{
    check::{read_check, read_policy},
    tree::{Problem, Problems, Table},
};

/// The health policy in the keys of a `[[service]]`.
///
/// # Errors
///
/// All mistakes, with their keys.
pub fn policy(keys: &toml::Table) -> Result<Policy, Vec<Problem>> {
    read(keys, |root| {
        let policy = read_policy(&root);
        root.finish();
        policy
    })
}

/// The check in the keys of a `[service.check]`.
///
/// # Errors
///
/// All mistakes, with their keys.
pub fn check(keys: &toml::Table) -> Result<Check, Vec<Problem>> {
    read(keys, |root| read_check(root, Check::default()))
}

fn read<T>(
    keys: &toml::Table,
    read: impl for<'a> FnOnce(Table<'a>) -> T,
) -> Result<T, Vec<Problem>> {
    let text = keys.to_string();
    let problems = Problems::new(&text);
    let (tree, errors) = DeTable::parse_recoverable(&text);
    for error in &errors {
        problems.push(error.span().map_or(0, |span| span.start), "", error.message());
    }
    let piece = read(Table::root(&tree, &problems));
    if problems.is_empty() { Ok(piece) } else { Err(problems.into_sorted()) }
}
