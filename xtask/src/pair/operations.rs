//! The operations on the nodes of the pair.

use anyhow::{Context as _, Result};
use kit::{ha_pair::HaPair, lab::Host, status::PairExt as _};

/// An operation on a node of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `lbd` on the Active node is killed.
    Kill,
    /// `lbd` on the Active node is stopped.
    Stop,
    /// The Active node's cable is pulled.
    Unplug,
    /// The Active node loses power.
    PowerOff,
    /// The operator lets the other node take over.
    HandOver,
    /// Whatever befell the nodes ends.
    Restore,
}

/// All operations, with the key of each.
pub const OPERATIONS: [(char, Operation, &str); 6] = [
    ('k', Operation::Kill, "kill lbd on the Active node"),
    ('s', Operation::Stop, "stop it"),
    ('u', Operation::Unplug, "unplug the Active node"),
    ('p', Operation::PowerOff, "power it off"),
    ('h', Operation::HandOver, "hand over"),
    ('r', Operation::Restore, "restore everything"),
];

/// The operation of a key.
pub fn by_key(key: char) -> Option<Operation> {
    OPERATIONS.iter().find(|(its, ..)| *its == key).map(|(_, operation, _)| *operation)
}

/// The node that is Active, as the nodes report; a node that does not answer is not.
pub fn active(ha_pair: &HaPair) -> Option<usize> {
    [0, 1].into_iter().find(|&n| ha_pair.pair(n).is_ok_and(|pair| pair.is_active()))
}

/// Performs it; returns a description, or the reason of a failure.
pub fn perform(ha_pair: &mut HaPair, operation: Operation) -> String {
    done(ha_pair, operation).unwrap_or_else(|err| format!("it can't be done: {err:#}"))
}

/// Performs it; returns a description.
///
/// # Errors
///
/// If it can't be done.
pub fn done(ha_pair: &mut HaPair, operation: Operation) -> Result<String> {
    if operation == Operation::Restore {
        return restore(ha_pair);
    }
    let n = active(ha_pair).context("no node is Active")?;
    let name = ha_pair.host(n).name.clone();
    Ok(match operation {
        Operation::Kill => {
            ha_pair.nodes[n].kill()?;
            format!("lbd on {name} was killed")
        }
        Operation::Stop => {
            ha_pair.nodes[n].stop()?;
            format!("lbd on {name} was stopped")
        }
        Operation::Unplug => {
            ha_pair.lab.cut(&name)?;
            format!("{name} was unplugged")
        }
        Operation::PowerOff => {
            ha_pair.lab.freeze(ha_pair.host(n))?;
            format!("{name} has lost power")
        }
        Operation::HandOver => {
            ha_pair.hand_over(n)?;
            format!("{name} has handed over")
        }
        Operation::Restore => unreachable!("it was done above"),
    })
}

/// Plugs everything in, lets everything go on, and starts stopped daemons.
fn restore(ha_pair: &mut HaPair) -> Result<String> {
    for n in [0, 1] {
        let host: &Host = ha_pair.host(n);
        // A node that is up and runs is not disturbed by it.
        ha_pair.lab.thaw(host)?;
        if !ha_pair.nodes[n].is_running() {
            ha_pair.nodes[n].launch()?;
        }
    }
    Ok("all is plugged in and runs".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_deed_has_a_key_of_its_own() {
        for (key, operation, _) in OPERATIONS {
            assert_eq!(by_key(key), Some(operation));
        }
        assert_eq!(by_key('q'), None, "it ends the view");
    }
}
