//! Interfaces that lose the program while lbd runs.

use std::fs;

use aya::{
    Ebpf,
    programs::{
        self,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use lb_control::engine::{Engine, InterfaceEventKind};
use lb_datapath::{Xdp, objects};
use lb_model::time::Now;
use lb_plane::{Interfaces as _, Maps as _};

use super::{
    migration::decisions,
    older,
    testbed::{Testbed, detach_link, ifindex, ip, link_at},
    wire::Wire,
};

/// A testbed with the maps of `v1`, and the engine on it.
fn running(reattach: bool) -> Option<(Testbed, Engine<Xdp>)> {
    let mut testbed = Testbed::new()?;
    testbed.settings.reattach = reattach;
    drop(older::start(&testbed.settings, older::LAST));
    let mut engine = Engine::adopt(testbed.open(), &testbed.settings).unwrap();
    assert_eq!(sweep(&mut engine), []);
    Some((testbed, engine))
}

fn sweep(engine: &mut Engine<Xdp>) -> Vec<(String, InterfaceEventKind, String)> {
    let swept = engine.sweep(Now::read()).unwrap();
    swept.interfaces.into_iter().map(|event| (event.interface, event.kind, event.text)).collect()
}

/// The same without the words.
fn kinds(events: &[(String, InterfaceEventKind, String)]) -> Vec<(&str, InterfaceEventKind)> {
    events.iter().map(|(interface, kind, _)| (interface.as_str(), *kind)).collect()
}

fn attached(engine: &Engine<Xdp>, name: &str) -> bool {
    let interfaces = engine.data_plane().interfaces();
    interfaces.into_iter().any(|interface| interface.name == name && interface.attached)
}

#[test]
fn an_interface_that_is_made_anew_carries_packets_again() {
    use InterfaceEventKind::{Back, Lost};
    let Some((testbed, mut engine)) = running(true) else { return };
    let decided = decisions(&Wire::at("vb"));
    let before = ifindex("va");
    ip(&["link", "del", "va"]);
    let events = sweep(&mut engine);
    assert_eq!(kinds(&events), [("va", Lost)]);
    assert!(events[0].2.contains("no interface of this name"), "{events:?}");
    assert_eq!(sweep(&mut engine), [], "it is reported once");
    assert!(!attached(&engine, "va") && attached(&engine, "vc"));

    testbed.add_pair("va", "vb");
    let now = ifindex("va");
    assert_ne!(now, before);
    assert_eq!(kinds(&sweep(&mut engine)), [("va", Back)]);
    assert!(attached(&engine, "va"));
    // The resolver's part: the backends' interface.
    let data_plane = engine.data_plane_mut();
    for (id, mut backend) in data_plane.backends().unwrap() {
        backend.ifindex = now;
        data_plane.put_backend(id, &backend).unwrap();
    }
    assert_eq!(decisions(&Wire::at("vb")), decided);
    assert_eq!(testbed.pinned(), testbed.whole());

    // Both at once, between two looks.
    ip(&["link", "del", "va"]);
    testbed.add_pair("va", "vb");
    let events = sweep(&mut engine);
    assert_eq!(kinds(&events), [("va", Lost), ("va", Back)]);
    assert!(events[0].2.contains("made anew"), "{events:?}");
    assert!(attached(&engine, "va"));
    // The next daemon takes it over.
    drop(engine);
    assert!(testbed.open().interfaces().iter().all(|interface| interface.attached));
}

#[test]
fn a_program_that_somebody_takes_off_is_attached_again() {
    use InterfaceEventKind::{Back, Lost};
    let Some((testbed, mut engine)) = running(true) else { return };
    let decided = decisions(&Wire::at("vb"));
    let pin = testbed.settings.pin_dir.join("link-va");
    for how in ["detached", "unpinned"] {
        match how {
            "detached" => detach_link(&pin),
            _ => {
                // The kernel ends a link some time after its last user has gone.
                detach_link(&pin);
                fs::remove_file(&pin).unwrap();
            }
        }
        let events = sweep(&mut engine);
        assert_eq!(kinds(&events), [("va", Lost), ("va", Back)], "{how}");
        assert!(events[0].2.contains("was detached"), "{events:?}");
        assert_eq!(decisions(&Wire::at("vb")), decided, "{how}");
        assert_eq!(sweep(&mut engine), []);
    }
}

#[test]
fn a_program_that_somebody_takes_off_stays_off_if_that_is_configured() {
    let Some((testbed, mut engine)) = running(false) else { return };
    detach_link(&testbed.settings.pin_dir.join("link-va"));
    assert_eq!(kinds(&sweep(&mut engine)), [("va", InterfaceEventKind::Lost)]);
    for _ in 0..3 {
        assert_eq!(sweep(&mut engine), []);
    }
    assert!(!attached(&engine, "va") && attached(&engine, "vc"));
    // A new start attaches it.
    drop(engine);
    assert!(testbed.open().interfaces().iter().all(|interface| interface.attached));
}

#[test]
fn a_foreign_program_is_named_and_stays() {
    use InterfaceEventKind::{Back, Lost};
    for reattach in [true, false] {
        let Some((mut testbed, mut engine)) = running(reattach) else { return };
        // Not even where a start may replace one.
        testbed.settings.force = true;
        detach_link(&testbed.settings.pin_dir.join("link-va"));
        let foreign = testbed.add_foreign_program("va");
        let events = sweep(&mut engine);
        assert_eq!(kinds(&events), [("va", Lost)]);
        assert!(events[0].2.contains("the program with id "), "{events:?}");
        assert_eq!(sweep(&mut engine), []);
        assert!(engine.data_plane().problem("va").unwrap().contains("is there"));
        let refused = engine.data_plane_mut().reattach("va").unwrap_err();
        assert!(format!("{refused:#}").contains("is there"), "{refused:#}");

        detach_link(&foreign);
        fs::remove_file(&foreign).unwrap();
        let events = sweep(&mut engine);
        assert_eq!(kinds(&events), if reattach { vec![("va", Back)] } else { vec![] });
        assert_eq!(attached(&engine, "va"), reattach);
    }
}

#[test]
fn another_program_in_our_own_link_is_named_and_stays() {
    let Some((testbed, mut engine)) = running(true) else { return };
    let mut object = Ebpf::load(objects::DECAP).unwrap();
    let program: &mut programs::Xdp =
        object.program_mut("decapsulate").unwrap().try_into().unwrap();
    lb_datapath::load_program(program).unwrap();
    let pin = testbed.settings.pin_dir.join("link-va");
    let link = FdLink::from(PinnedLink::from_pin(&pin).unwrap());
    let id = program.attach_to_link(XdpLink::try_from(link).unwrap()).unwrap();
    drop(program.take_link(id).unwrap());

    let events = sweep(&mut engine);
    assert_eq!(kinds(&events), [("va", InterfaceEventKind::Lost)]);
    assert!(events[0].2.contains("its link runs the program `decapsulate`"), "{events:?}");
    assert_eq!(sweep(&mut engine), []);
    assert_eq!(link_at(&pin).1, program.info().unwrap().id());
    // A start is the operator's word.
    drop(engine);
    assert!(testbed.open().interfaces()[0].attached);
}
