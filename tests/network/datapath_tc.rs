//! The tc program's life in the real kernel: attached, adopted, ordered, exchanged for XDP and taken away.
//!
//! Both by links (TCX) and, as before Linux 6.6, by filters of the qdisc `clsact`.

use std::time::Duration;

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_programs};
use kit::{
    command,
    tun::{Layer, Tun},
    wait,
};
use lb_datapath::{Xdp, detach};
use lb_model::settings::{Attach, TcOrder};
use lb_plane::Interfaces as _;

use crate::datapath_lifecycle::{Testbed, ip, program_on};

/// Whether the kernel has links of tc programs.
fn has_links() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// The names and ids of the tc programs at the ingress of an interface, in their order: those of links, and of filters
/// where the kernel has no links.
fn tc_programs(interface: &str) -> Vec<(String, u32)> {
    if has_links() {
        let (_, programs) = SchedClassifier::query_tcx(interface, TcAttachType::Ingress).unwrap();
        let name = |program: &ProgramInfo| program.name_as_str().unwrap().to_owned();
        return programs.iter().map(|program| (name(program), program.id())).collect();
    }
    let shown = filters(interface);
    let mut words = shown.split_whitespace();
    let mut programs = Vec::new();
    while words.by_ref().any(|word| word == "id") {
        let id = words.next().unwrap().parse().unwrap();
        assert_eq!(words.next(), Some("name"), "{shown}");
        programs.push((words.next().unwrap().to_owned(), id));
    }
    programs
}

/// The filters at the ingress of an interface, as `tc` prints them.
fn filters(interface: &str) -> String {
    let mut tc = command::command("tc");
    let shown = tc.args(["filter", "show", "dev", interface, "ingress"]).output().unwrap();
    String::from_utf8(shown.stdout).unwrap()
}

/// The id of the first program of filters.
fn id_of(filters: &str) -> Option<u32> {
    filters.split_whitespace().skip_while(|word| *word != "id").nth(1)?.parse().ok()
}

fn testbed(attach: Attach) -> Testbed {
    let mut testbed = Testbed::new();
    testbed.settings.hooks.attach = attach;
    testbed
}

fn mode(xdp: &Xdp) -> String {
    let interface = &xdp.interfaces()[0];
    assert!(interface.attached, "{interface:?}: {:?}", xdp.problem(&interface.name));
    interface.mode.clone()
}

#[test]
fn a_link_of_tc_outlives_the_daemon_and_the_next_start_swaps_its_program() {
    let testbed = testbed(Attach::Tc);
    assert_eq!(mode(&testbed.open()), "tc");
    assert_eq!(program_on("va"), None, "no XDP");
    let before = tc_programs("va");
    assert!(matches!(&*before, [(name, _)] if name == "classify"), "{before:?}");
    assert_eq!(mode(&testbed.open()), "tc");
    let after = tc_programs("va");
    assert!(
        matches!(&*after, [(name, id)] if name == "classify" && *id != before[0].1),
        "{after:?}"
    );
    let removed = detach(&testbed.settings.pin_dir).unwrap();
    let pin = if has_links() { "tcx-va" } else { "clsact-va" };
    assert!(removed[0].contains(pin), "{removed:?}");
    assert!(tc_programs("va").is_empty() && !testbed.settings.pin_dir.exists());
}

#[test]
fn a_filter_of_clsact_outlives_the_daemon_and_the_next_start_swaps_its_program() {
    let mut testbed = testbed(Attach::Tc);
    testbed.settings.tc_links = false;
    assert_eq!(mode(&testbed.open()), "tc");
    let id = |shown: &str| id_of(shown).expect("the id of a program");
    let before = filters("va");
    assert!(before.contains("pref 1 bpf") && before.contains("direct-action"), "{before}");
    assert_eq!(mode(&testbed.open()), "tc");
    let after = filters("va");
    assert_ne!(id(&after), id(&before));
    assert_eq!(after.matches("direct-action").count(), 1, "{after}");
    // Another place among filters.
    testbed.settings.hooks.tc_order = TcOrder::Last;
    assert_eq!(mode(&testbed.open()), "tc");
    let last = filters("va");
    assert!(last.contains("pref 65534 bpf") && !last.contains("pref 1 bpf"), "{last}");
    // Links take the place of the filter where the kernel has them.
    if has_links() {
        testbed.settings.tc_links = true;
        assert_eq!(mode(&testbed.open()), "tc");
        assert_eq!((filters("va"), tc_programs("va").len()), (String::new(), 1));
        testbed.settings.tc_links = false;
        assert_eq!(mode(&testbed.open()), "tc");
        assert!(tc_programs("va").is_empty() && filters("va").contains("bpf"));
    }
    let removed = detach(&testbed.settings.pin_dir).unwrap();
    assert!(removed[0].contains("clsact-va"), "{removed:?}");
    assert_eq!(filters("va"), "");
    assert!(!testbed.settings.pin_dir.exists());
}

#[test]
fn the_program_that_somebody_takes_off_is_missed_and_attached_again() {
    for tc_links in [true, false] {
        let mut testbed = testbed(Attach::Tc);
        testbed.settings.tc_links = tc_links;
        let mut xdp = testbed.open();
        if !tc_links {
            ip(&["link", "set", "va", "up"]);
            let mut tc = command::command("tc");
            command::run(tc.args(["filter", "del", "dev", "va", "ingress"])).unwrap();
            assert_eq!(xdp.problem("va").as_deref(), Some("the program was detached"));
            xdp.reattach("va").unwrap();
            assert_eq!(mode(&xdp), "tc");
        }
        ip(&["link", "del", "va"]);
        ip(&["link", "add", "va", "type", "veth", "peer", "name", "vb"]);
        assert_eq!(xdp.problem("va").as_deref(), Some("the interface was made anew"));
        xdp.reattach("va").unwrap();
        assert_eq!(mode(&xdp), "tc");
    }
}

#[test]
fn an_interface_without_native_xdp_gets_tc_and_one_with_it_xdp() {
    let mut testbed = testbed(Attach::Auto);
    ip(&["link", "add", "br0", "type", "bridge"]);
    ip(&["link", "set", "br0", "up"]);
    testbed.settings.interfaces = vec!["va".into(), "br0".into()];
    let xdp = testbed.open();
    let modes: Vec<_> = xdp.interfaces().into_iter().map(|one| (one.name, one.mode)).collect();
    assert_eq!(modes, [("va".into(), "native".into()), ("br0".into(), "tc".into())]);
    assert_eq!((program_on("br0"), tc_programs("br0").len()), (None, 1));
    drop(xdp);
    // XDP alone is refused there, and the running program stays.
    testbed.settings.hooks.attach = Attach::Xdp;
    let refused = format!("{:#}", Xdp::open(&testbed.settings).unwrap_err());
    assert!(refused.contains("br0") && refused.contains("attach = \"auto\""), "{refused}");
    assert_eq!(tc_programs("br0").len(), 1);
    assert!(program_on("va").is_some());
}

#[test]
fn an_interface_changes_its_hook_with_the_settings() {
    let mut testbed = testbed(Attach::Xdp);
    for attach in [Attach::Xdp, Attach::Tc, Attach::Auto, Attach::Tc, Attach::Xdp] {
        testbed.settings.hooks.attach = attach;
        let expected = if attach == Attach::Tc { "tc" } else { "native" };
        assert_eq!(mode(&testbed.open()), expected, "{attach:?}");
        let by_tc = tc_programs("va").len();
        assert_eq!(
            (program_on("va").is_some(), by_tc),
            (expected == "native", usize::from(expected == "tc"))
        );
    }
    // By interface.
    testbed.settings.interfaces.push("vb".into());
    testbed.settings.hooks.by_interface.insert("vb".into(), Attach::Tc);
    let modes: Vec<_> = testbed.open().interfaces().into_iter().map(|one| one.mode).collect();
    assert_eq!(modes, ["native", "tc"]);
}

/// Whether the kernel has a program with this id.
fn is_loaded(id: u32) -> bool {
    loaded_programs().any(|one| one.is_ok_and(|one| one.id() == id))
}

#[test]
fn the_tc_program_is_unloaded_when_a_reload_gives_its_last_interface_xdp() {
    let mut testbed = testbed(Attach::Tc);
    testbed.settings.interfaces.push("vb".into());
    for tc_links in [true, false] {
        testbed.settings.tc_links = tc_links;
        let mut xdp = testbed.open();
        let mut hooks = testbed.settings.hooks.clone();
        for _ in 0..2 {
            let id = |xdp: &Xdp| {
                assert_eq!(mode(xdp), "tc");
                let shown = if tc_links { None } else { id_of(&filters("va")) };
                shown.unwrap_or_else(|| tc_programs("va")[0].1)
            };
            let before = id(&xdp);
            // One interface still uses it.
            hooks.by_interface.insert("vb".into(), Attach::Xdp);
            xdp.set_hooks(&hooks).unwrap();
            assert_eq!(id(&xdp), before);
            hooks.by_interface.insert("va".into(), Attach::Xdp);
            xdp.set_hooks(&hooks).unwrap();
            assert_eq!(mode(&xdp), "native");
            wait::until(Duration::from_secs(10), "the tc program is unloaded", || {
                anyhow::ensure!(!is_loaded(before), "program {before} is there");
                Ok(())
            })
            .unwrap();
            // The one of XDP stays loaded, as it explains packets.
            let native = program_on("va").expect("XDP").parse().expect("an id");
            hooks.by_interface.clear();
            xdp.set_hooks(&hooks).unwrap();
            assert!(is_loaded(native) && program_on("va").is_none());
        }
    }
}

#[test]
fn foreign_tc_programs_are_named_and_stay_before_or_behind_ours() {
    if !has_links() {
        println!("skipped: this kernel has no links of tc programs, which came with Linux 6.6");
        return;
    }
    let mut testbed = testbed(Attach::Tc);
    // To another pin folder the program that runs is foreign.
    let mut other = testbed.settings.clone();
    other.pin_dir.set_file_name(format!("{}-other", testbed.name()));
    let foreign = Xdp::open(&other).unwrap();
    let id = tc_programs("va")[0].1;
    for (order, place) in [(TcOrder::First, 0), (TcOrder::Last, 1), (TcOrder::First, 0)] {
        testbed.settings.hooks.tc_order = order;
        let xdp = testbed.open();
        let programs = tc_programs("va");
        assert_eq!((programs.len(), programs[1 - place].1), (2, id), "{order:?}: {programs:?}");
        let others = &xdp.interfaces()[0].others;
        assert!(matches!(&**others, [one] if one.contains(&format!("id {id}"))), "{others:?}");
    }
    detach(&testbed.settings.pin_dir).unwrap();
    assert_eq!(tc_programs("va")[0].1, id);
    drop(foreign);
    detach(&other.pin_dir).unwrap();
}

#[test]
fn an_interface_without_ethernet_header_gets_a_tc_program_of_its_own() {
    for attach in [Attach::Auto, Attach::Tc] {
        let mut testbed = testbed(attach);
        let _tun = Tun::new("tun0", Layer::Ip, None).unwrap();
        testbed.settings.interfaces = vec!["va".into(), "tun0".into()];
        for _ in 0..2 {
            let modes = |xdp: &Xdp| xdp.interfaces().iter().map(|one| one.mode.clone()).collect();
            let expected = [if attach == Attach::Tc { "tc" } else { "native" }, "tc"];
            let found: Vec<_> = modes(&testbed.open());
            assert_eq!(found, expected, "{attach:?}");
            let programs = tc_programs("tun0");
            assert!(matches!(&*programs, [(name, _)] if name == "classify_raw"), "{programs:?}");
            assert_eq!(program_on("tun0"), None);
        }
        detach(&testbed.settings.pin_dir).unwrap();
        assert_eq!(tc_programs("tun0"), []);
    }
}

#[test]
fn an_interface_without_ethernet_header_that_is_to_have_xdp_is_refused_and_nothing_is_left() {
    let mut testbed = testbed(Attach::Xdp);
    let _tun = Tun::new("tun0", Layer::Ip, None).unwrap();
    testbed.settings.interfaces = vec!["va".into(), "tun0".into()];
    let refused = format!("{:#}", Xdp::open(&testbed.settings).unwrap_err());
    assert!(refused.contains("tun0 has no Ethernet header, which XDP needs"), "{refused}");
    assert_eq!((program_on("va"), tc_programs("va").len()), (None, 0));
    assert!(!testbed.settings.pin_dir.exists());
}
