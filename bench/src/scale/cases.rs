//! The packets of each case: one thing varies, and the others stay at the base.

use kit::reports::scale::Sweep;

use super::testbed::{PORT, Size};
use crate::frames::{self, Plan, Shape};

/// Backends of a service, unless they vary.
pub const EACH: u16 = 8;
/// Flows, unless they vary.
pub const FLOWS: u32 = 1 << 20;
/// Everything at its base.
pub const BASE: Size = Size { services: 1, each: EACH, pins: None };

const SERVICES: [u16; 4] = [1, 8, 64, 512];
const BACKENDS: [u16; 5] = [1, 8, 64, 512, 4_096];
const FEW_TO_MANY: [u32; 5] = [1, 1 << 10, 1 << 16, 1 << 20, 1 << 24];
const PINS: [u32; 5] = [0, 1 << 10, 1 << 16, 1 << 18, 1 << 20];

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// The first service.
    First,
    /// All services in turn.
    All,
    /// The one beside the first.
    Beside,
}

/// A case.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The variable.
    pub sweep: Sweep,
    /// The path and the kind of packets, as text: cases of one sweep with the same are a curve.
    pub packets: &'static str,
    /// The value of the variable.
    pub value: u32,
    /// How much there is of all.
    pub size: Size,
    /// Where packets go.
    pub to: To,
    /// Of how many flows they are.
    pub flows: u32,
}

impl Case {
    /// Its description.
    pub fn words(&self) -> String {
        format!("{} {}, {}", self.sweep.name(), self.value, self.packets)
    }

    /// Its packets.
    pub fn plan(&self) -> Plan {
        let (port, services) = match self.to {
            To::First => (PORT, 1),
            To::All => (PORT, self.size.services),
            To::Beside => (PORT + self.size.services, 1),
        };
        let plan = frames::plan(false, Shape::Tcp, port, self.flows);
        Plan { services: u32::from(services - 1), ..plan }
    }
}

/// All cases.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |sweep, packets, value, size, to, flows| {
        cases.push(Case { sweep, packets, value, size, to, flows });
    };
    for services in SERVICES {
        let size = Size { services, ..BASE };
        add(Sweep::Services, "to one of them", services.into(), size, To::First, FLOWS);
        add(Sweep::Services, "to all of them", services.into(), size, To::All, FLOWS);
    }
    for each in BACKENDS {
        let size = Size { each, ..BASE };
        add(Sweep::Backends, "to all of them", each.into(), size, To::First, FLOWS);
    }
    let many = Size { services: 512, ..BASE };
    for flows in FEW_TO_MANY {
        add(Sweep::Flows, "to one service", flows, BASE, To::First, flows);
        add(Sweep::Flows, "to 512 services", flows, many, To::All, flows);
    }
    for pins in PINS {
        let size = Size { pins: Some(pins), ..BASE };
        add(
            Sweep::Pins,
            "of a million flows, as many of them pinned",
            pins,
            size,
            To::First,
            FLOWS,
        );
        if pins > 0 {
            add(Sweep::Pins, "of the pinned flows alone", pins, size, To::First, pins);
        }
        add(Sweep::Pins, "to a steady service beside", pins, size, To::Beside, FLOWS);
    }
    cases
}

/// The sizes of all cases, each once.
pub fn sizes(cases: &[Case]) -> Vec<Size> {
    let mut sizes: Vec<_> = cases.iter().map(|case| case.size).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The variable of a case: everything that is not at its base.
    fn varied(case: &Case) -> (bool, bool, bool, bool) {
        let Size { services, each, pins } = case.size;
        (services != BASE.services, each != EACH, case.flows != FLOWS, pins.is_some())
    }

    #[test]
    fn a_sweep_leaves_the_others_at_their_base() {
        for case in all() {
            let (services, backends, flows, pins) = varied(&case);
            let others = match case.sweep {
                Sweep::Services => [backends, flows, pins],
                Sweep::Backends => [services, flows, pins],
                // The curve over many services is named for them.
                Sweep::Flows => [services && case.packets != "to 512 services", backends, pins],
                // Where only the pinned flows send, they are as many as the pins.
                Sweep::Pins => [services, backends, flows && case.flows != case.value],
            };
            assert_eq!(others, [false; 3], "{case:?}");
        }
    }

    #[test]
    fn sweeps_go_from_the_least_to_the_limit() {
        let ends = |sweep| {
            let cases = all();
            let values = || cases.iter().filter(|case| case.sweep == sweep).map(|case| case.value);
            (values().min(), values().max())
        };
        assert_eq!(ends(Sweep::Services), (Some(1), Some(512)));
        assert_eq!(ends(Sweep::Backends), (Some(1), Some(4_096)));
        assert_eq!(ends(Sweep::Flows), (Some(1), Some(16_777_216)));
        assert_eq!(ends(Sweep::Pins), (Some(0), Some(1_048_576)));
    }

    #[test]
    fn packets_go_where_the_case_says() {
        for case in all() {
            let plan = case.plan();
            let ports = plan.service..=plan.service + plan.services;
            let first = u32::from(PORT);
            let expected = match case.to {
                To::First => first..=first,
                To::All => first..=first + u32::from(case.size.services) - 1,
                To::Beside => first + 1..=first + 1,
            };
            assert_eq!(ports, expected, "{case:?}");
            // The program takes the low bits of a flow's number.
            assert!((plan.services + 1).is_power_of_two() && case.flows.is_power_of_two());
        }
    }

    #[test]
    fn every_size_is_within_the_limits() {
        for size in sizes(&all()) {
            let limits = size.limits();
            assert!(u32::from(size.services) <= limits.services, "{size:?}");
            assert!(size.backends() <= limits.backends, "{size:?}");
            assert!(size.pins.is_none_or(|pins| pins <= limits.pins), "{size:?}");
        }
    }
}
