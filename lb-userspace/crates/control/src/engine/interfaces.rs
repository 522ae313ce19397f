//! The interfaces' watch: an interface that loses the program is reported, and gets it again.
//!
//! Each second the engine looks whether each interface still has its program. An interface that was made anew, or
//! that has lost the program, gets it again unless `reattach` is false. Another project's program is reported and
//! stays, with `--force` too.

use std::collections::BTreeMap;

use lb_plane::DataPlane;
use tracing::error;

/// An event of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceEvent {
    /// Its name.
    pub interface: String,
    /// Its kind.
    pub kind: InterfaceEventKind,
    /// The message, with the cause.
    pub text: String,
}

/// The kinds of events of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterfaceEventKind {
    /// It has lost the program: made anew, or another process took it off. Frames that arrive there are not
    /// forwarded.
    Lost,
    /// It has the program again.
    Back,
}

/// The interfaces without the program, and the events to report.
#[derive(Debug, Default)]
pub(super) struct Interfaces {
    /// The cause, as it was logged last.
    bare: BTreeMap<String, String>,
    events: Vec<InterfaceEvent>,
}

impl Interfaces {
    /// The events since the last call.
    pub(super) fn take_events(&mut self) -> Vec<InterfaceEvent> {
        std::mem::take(&mut self.events)
    }

    /// Reports interfaces that have lost the program, and attaches it again, if that is wanted and
    /// can be done; if not, each call tries again. A cause is logged once.
    pub(super) fn watch(&mut self, data_plane: &mut impl DataPlane, reattach: bool) {
        for there in data_plane.interfaces() {
            let interface = there.name.as_str();
            let known = self.bare.contains_key(interface);
            let Some(problem) = data_plane.problem(interface) else {
                if self.bare.remove(interface).is_some() {
                    let text = format!("{interface}: the balancer's program is back");
                    self.record(interface, InterfaceEventKind::Back, text);
                }
                continue;
            };
            if !known {
                let text = format!("{interface}: the balancer's program is gone: {problem}");
                self.record(interface, InterfaceEventKind::Lost, text);
            }
            let why = if !reattach {
                format!("{problem}; with `reattach = false` a new start of lbd attaches it")
            } else if let Err(error) = data_plane.reattach(interface) {
                format!("{error:#}; trying again each second")
            } else {
                self.bare.remove(interface);
                let text = format!("{interface}: the balancer's program is attached again");
                self.record(interface, InterfaceEventKind::Back, text);
                continue;
            };
            if self.bare.get(interface) != Some(&why) {
                error!(interface, "the balancer's program is not attached again: {why}");
                self.bare.insert(interface.to_owned(), why);
            }
        }
    }

    fn record(&mut self, interface: &str, kind: InterfaceEventKind, text: String) {
        self.events.push(InterfaceEvent { interface: interface.to_owned(), kind, text });
    }
}

#[cfg(test)]
mod tests {
    use lb_model::settings::{Limits, Settings};
    use lb_plane::{Interfaces as _, fake::Fake};

    use super::{
        super::{Engine, Now},
        *,
    };

    fn engine(reattach: bool) -> Engine<Fake> {
        let mut data_plane = Fake::new(Limits { services: 4, backends: 4, ..Limits::default() });
        data_plane.set_interface("eth0", None);
        data_plane.set_interface("eth1", None);
        let settings = Settings { reattach, ..Settings::default() };
        Engine::adopt(data_plane, &settings).unwrap()
    }

    fn sweep(engine: &mut Engine<Fake>) -> Vec<(InterfaceEventKind, String)> {
        let swept = engine.sweep(Now::read()).unwrap();
        swept.interfaces.into_iter().map(|event| (event.kind, event.text)).collect()
    }

    #[test]
    fn what_can_not_be_attached_is_tried_each_second_and_told_once() {
        let mut engine = engine(true);
        assert_eq!(sweep(&mut engine), []);
        engine.data_plane_mut().set_interface("eth1", Some("it is gone"));
        engine.data_plane_mut().refuse_reattach(Some("not yet"));
        let lost = "eth1: the balancer's program is gone: it is gone".to_owned();
        assert_eq!(sweep(&mut engine), [(InterfaceEventKind::Lost, lost)]);
        for _ in 0..3 {
            assert_eq!(sweep(&mut engine), []);
        }
        engine.data_plane_mut().refuse_reattach(None);
        let back = "eth1: the balancer's program is attached again".to_owned();
        assert_eq!(sweep(&mut engine), [(InterfaceEventKind::Back, back)]);
        assert_eq!(engine.data_plane().problem("eth1"), None);
        assert_eq!(sweep(&mut engine), []);
    }

    #[test]
    fn nothing_is_attached_where_the_settings_forbid_it() {
        let mut engine = engine(false);
        engine.data_plane_mut().set_interface("eth0", Some("it was detached"));
        assert_eq!(sweep(&mut engine).len(), 1);
        assert_eq!(sweep(&mut engine), []);
        assert!(engine.data_plane().problem("eth0").is_some());
        // Another process has taken it off and put it back.
        engine.data_plane_mut().set_interface("eth0", None);
        let back = "eth0: the balancer's program is back".to_owned();
        assert_eq!(sweep(&mut engine), [(InterfaceEventKind::Back, back)]);
    }
}
