//! What may befall a node of the pair.

use anyhow::{Context as _, Result};
use kit::{ha_pair::HaPair, lab::Host, status::PairExt as _};

/// A deed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
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

/// All deeds, with the key of each.
pub const DEEDS: [(char, Deed, &str); 6] = [
    ('k', Deed::Kill, "kill lbd on the Active node"),
    ('s', Deed::Stop, "stop it"),
    ('u', Deed::Unplug, "unplug the Active node"),
    ('p', Deed::PowerOff, "power it off"),
    ('h', Deed::HandOver, "hand over"),
    ('r', Deed::Restore, "restore everything"),
];

/// The deed of a key.
pub fn by_key(key: char) -> Option<Deed> {
    DEEDS.iter().find(|(its, ..)| *its == key).map(|(_, deed, _)| *deed)
}

/// The node that is Active, as the nodes say; a node that does not answer is not.
pub fn active(ha_pair: &HaPair) -> Option<usize> {
    [0, 1].into_iter().find(|&n| ha_pair.pair(n).is_ok_and(|pair| pair.is_active()))
}

/// Does it; what was done, or why it was not.
pub fn perform(ha_pair: &mut HaPair, deed: Deed) -> String {
    done(ha_pair, deed).unwrap_or_else(|err| format!("it can't be done: {err:#}"))
}

/// Does it; what was done.
///
/// # Errors
///
/// If it can't be done.
pub fn done(ha_pair: &mut HaPair, deed: Deed) -> Result<String> {
    if deed == Deed::Restore {
        return restore(ha_pair);
    }
    let n = active(ha_pair).context("no node is Active")?;
    let name = ha_pair.host(n).name.clone();
    Ok(match deed {
        Deed::Kill => {
            ha_pair.nodes[n].kill()?;
            format!("lbd on {name} was killed")
        }
        Deed::Stop => {
            ha_pair.nodes[n].stop()?;
            format!("lbd on {name} was stopped")
        }
        Deed::Unplug => {
            ha_pair.lab.cut(&name)?;
            format!("{name} was unplugged")
        }
        Deed::PowerOff => {
            ha_pair.lab.freeze(ha_pair.host(n))?;
            format!("{name} has lost power")
        }
        Deed::HandOver => {
            ha_pair.hand_over(n)?;
            format!("{name} has handed over")
        }
        Deed::Restore => unreachable!("it was done above"),
    })
}

/// Plugs everything in, lets everything go on, and starts what does not run.
fn restore(ha_pair: &mut HaPair) -> Result<String> {
    for n in [0, 1] {
        let host: &Host = ha_pair.host(n);
        // What is up, and goes on, is not disturbed by it.
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
        for (key, deed, _) in DEEDS {
            assert_eq!(by_key(key), Some(deed));
        }
        assert_eq!(by_key('q'), None, "it ends the view");
    }
}
