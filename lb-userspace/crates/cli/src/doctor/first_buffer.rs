//! Frames whose headers no program can reach, as the driver leaves their first buffer empty.

use lb_datapath::probe::Hook;

use super::{
    Finding,
    snapshot::{InterfaceSnapshot, NodeSnapshot},
};

const CHECK: &str = "first_buffer";

/// On a node with the balancer.
pub(super) fn of_node(snapshot: &NodeSnapshot) -> Vec<Finding> {
    let names = snapshot.config.iter().flat_map(|config| &config.interfaces);
    let with = names.filter_map(|name| snapshot.interfaces.get(name));
    // The network stack brings headers together before it runs a program.
    let native =
        with.filter(|one| one.program.as_ref().is_none_or(|program| program.hook == Hook::Native));
    let why = "no frame is balanced: they pass to this host, counted as `truncated`, or the driver refuses the program";
    native.flat_map(|interface| findings(interface, why)).collect()
}

/// Of an interface, and why it matters there.
pub(super) fn findings<'a>(
    interface: &'a InterfaceSnapshot,
    why: &'a str,
) -> impl Iterator<Item = Finding> + 'a {
    let all = interface.empty_first_buffers.iter();
    all.map(move |found| Finding::error(CHECK, found.to_string(), why).fixed_by(found.fix()))
}

#[cfg(test)]
mod tests {
    use lb_datapath::probe::Found;
    use lb_model::desired::Mode;
    use lb_netlink::striding::EmptyFirstBuffers;

    use super::*;
    use crate::doctor::{
        Grade,
        backend::{self, empty_first_buffers},
        tests::{assert_finding, describe, healthy},
    };

    const FIX: &str = "ethtool --set-priv-flags eth0 rx_striding_rq off";

    fn empty() -> Vec<EmptyFirstBuffers> {
        vec![EmptyFirstBuffers { interface: "eth0".into(), mtu: 9_000, largest: 3_498 }]
    }

    #[test]
    fn empty_first_buffers_of_a_node_are_named_unless_the_network_stack_runs_the_program() {
        let found = |hook| {
            let mut snapshot = healthy();
            let eth0 = snapshot.interfaces.get_mut("eth0").expect("the node has it");
            eth0.empty_first_buffers = empty();
            eth0.program = Some(Found { name: "balance".into(), hook, ours: true });
            describe(&of_node(&snapshot))
        };
        assert_finding(&found(Hook::Native), Grade::Error, &["MTU of 9000, over 3498", FIX]);
        for hook in [Hook::Generic, Hook::Tc] {
            assert_eq!(found(hook), (Grade::Ok, String::new()));
        }
        assert_eq!(of_node(&healthy()), []);
    }

    #[test]
    fn empty_first_buffers_of_a_backend_are_named_where_a_decapsulator_is() {
        let found = |mode, generic| {
            let mut snapshot = backend::tests::healthy(mode);
            let eth0 = snapshot.interfaces.get_mut("eth0").expect("the backend has it");
            eth0.empty_first_buffers = empty();
            snapshot.decaps.values_mut().for_each(|decap| decap.generic = generic);
            describe(&empty_first_buffers(&snapshot))
        };
        assert_finding(&found(Mode::Ipip, false), Grade::Error, &["MTU of 9000, over 3498", FIX]);
        assert_eq!(found(Mode::Ipip, true), (Grade::Ok, String::new()));
        assert_eq!(found(Mode::Dsr, false), (Grade::Ok, String::new()));
    }
}
