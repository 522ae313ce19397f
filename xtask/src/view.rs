//! The live view: a picture of `lbctl status`, for a terminal or a line for a pipe.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr, time::Instant};

use kit::{lab::Lab, status::ServiceExt as _};
use lb_api::status::{Backend, Service, Status};
use lb_model::backend_address::BackendAddress;

/// One look at the balancer.
pub struct View<'a> {
    /// Its status.
    pub status: &'a Status,
    /// An earlier status, and when it was read.
    pub before: Option<&'a (Instant, Status)>,
    /// The hosts' names by address.
    pub names: &'a BTreeMap<IpAddr, String>,
}

/// The next steps, for the user.
pub fn advice() -> &'static str {
    "In another terminal:  cargo xtask lab exec client -- curl -sS http://10.0.0.100/\n\
     Ctrl-C ends it and removes all of it."
}

/// The web hosts' names by address.
pub fn names(lab: &Lab) -> BTreeMap<IpAddr, String> {
    let both = |host: &kit::lab::Host| [host.v4.into(), host.v6.into()];
    let named =
        lab.webs.iter().flat_map(|web| both(&web.host).map(|ip| (ip, web.host.name.clone())));
    named.collect()
}

impl View<'_> {
    /// The picture for a terminal.
    pub fn table(&self) -> String {
        let mut out = self.header();
        for (name, service) in &self.status.services {
            let key = &service.key;
            let _ = writeln!(
                out,
                "\n{name}: VIP {} {}, {}, {} slots in flux",
                key.protocol,
                service.address(),
                service.mode,
                service.slots_in_flux
            );
            let _ = writeln!(
                out,
                "  {:<8} {:<16} {:>6} {:>7} {:>11} {:>13} {:>11}  state",
                "host", "address", "weight", "share", "packets/s", "packets", "new flows"
            );
            for (address, backend) in &service.backends {
                let _ = writeln!(
                    out,
                    "  {:<8} {:<16} {:>6} {:>7} {:>11} {:>13} {:>11}  {}",
                    self.name(address.ip),
                    address.to_string(),
                    backend.weight,
                    share(service, backend),
                    grouped(self.rate(name, *address, backend)),
                    grouped(backend.sent.packets),
                    grouped(backend.new_flows),
                    backend.state().name(),
                );
            }
        }
        for (title, counts) in [("passed", &self.status.passed), ("dropped", &self.status.dropped)]
        {
            let counts = counts.iter().filter(|(_, count)| count.packets > 0);
            let counts =
                counts.map(|(reason, count)| format!("{reason} {}", grouped(count.packets)));
            let counts: Vec<_> = counts.collect();
            if !counts.is_empty() {
                let _ = writeln!(out, "\n{title}: {}", counts.join(", "));
            }
        }
        if let Some(error) = &self.status.last_error {
            let _ = writeln!(out, "\nlast error: {error}");
        }
        out
    }

    /// Where the program runs, and how.
    pub fn header(&self) -> String {
        let mut out = String::new();
        for interface in &self.status.interfaces {
            let there = if interface.attached { "" } else { " (NOT ATTACHED)" };
            let _ = writeln!(
                out,
                "lbd {} on {}: XDP {} mode{there}, up {} s",
                self.status.version, interface.name, interface.mode, self.status.uptime_secs
            );
        }
        out
    }

    /// A line for each service.
    pub fn lines(&self) -> String {
        let mut out = String::new();
        for (name, service) in &self.status.services {
            let backends = service.backends.iter().map(|(address, backend)| {
                format!(
                    "{} {} packets/s {} packets {} flows",
                    self.name(address.ip),
                    self.rate(name, *address, backend),
                    backend.sent.packets,
                    backend.new_flows
                )
            });
            let backends: Vec<_> = backends.collect();
            let _ = writeln!(out, "{name} {}: {}", service.address(), backends.join("; "));
        }
        out
    }

    fn name(&self, address: IpAddr) -> &str {
        self.names.get(&address).map_or("", String::as_str)
    }

    /// Packets a second since the look before.
    fn rate(&self, service: &str, address: BackendAddress, backend: &Backend) -> u64 {
        let Some((then, before)) = self.before else { return 0 };
        let old = before.services.get(service).and_then(|old| old.backends.get(&address));
        let sent = backend.sent.packets.saturating_sub(old.map_or(0, |old| old.sent.packets));
        (sent as f64 / then.elapsed().as_secs_f64()).round() as u64
    }
}

/// The backend's share of new flows, as the ring gives it.
fn share(service: &Service, backend: &Backend) -> String {
    percent(backend.slots.into(), service.ring_slots.into())
}

/// `33.3%`.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".into() } else { format!("{:.1}%", part as f64 * 100.0 / whole as f64) }
}

/// `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lb_api::status::{Count, Interface, Standing, Totals};
    use lb_model::desired::{Admin, Mode, Protocol, ServiceKey};

    use super::*;

    fn status(packets: u64) -> Status {
        let count = |packets| Count { packets, bytes: 0 };
        let backend = Backend {
            weight: 1,
            admin: Admin::Draining { deadline: None },
            id: 1,
            slots: 65_537,
            new_flows: 12,
            sent: count(packets),
            ..Backend::default()
        };
        let vip = IpAddr::from([10, 0, 0, 100]);
        let service = Service {
            key: ServiceKey::new(vip, 80, Protocol::Tcp),
            mode: Mode::Dsr,
            udp_policy: None,
            ring_slots: 65_537,
            slots_in_flux: 0,
            idle_timeout_secs: 900,
            standing: Standing::default(),
            totals: Totals::default(),
            target_port: None,
            backends: [([10, 0, 0, 11].into(), backend)].into(),
        };
        let interface = Interface {
            name: "eth0".into(),
            ifindex: 2,
            mode: "native".into(),
            attached: true,
            others: Vec::new(),
        };
        Status {
            version: "0.1.0".into(),
            uptime_secs: 3,
            interfaces: vec![interface],
            services: [("web".to_owned(), service)].into(),
            passed: [("not_ip".to_owned(), count(7))].into(),
            dropped: [("no_backend".to_owned(), count(0))].into(),
            ..Status::default()
        }
    }

    #[test]
    fn the_view_shows_who_gets_what() {
        let now = status(1_234_567);
        let then = Instant::now().checked_sub(Duration::from_secs(1)).expect("up for a second");
        let before = (then, status(1_233_567));
        let names = BTreeMap::from([(IpAddr::from([10, 0, 0, 11]), "web1".to_owned())]);
        let view = View { status: &now, before: Some(&before), names: &names };
        let table = view.table();
        for expected in [
            "native mode",
            "tcp 10.0.0.100:80",
            "web1",
            "100.0%",
            "1,234,567",
            "draining",
            "not_ip 7",
        ] {
            assert!(table.contains(expected), "{expected} is missing in:\n{table}");
        }
        assert!(!table.contains("dropped"), "nothing was dropped:\n{table}");
        let rate = view.rate(
            "web",
            [10, 0, 0, 11].into(),
            &now.services["web"].backends[&BackendAddress::from([10, 0, 0, 11])],
        );
        assert!((900..=1000).contains(&rate), "{rate} packets a second");
        assert_eq!(view.lines().lines().count(), 1);
    }

    #[test]
    fn numbers_are_grouped() {
        let numbers = [0, 12, 123, 1_234, 123_456, 1_234_567];
        let shown = ["0", "12", "123", "1,234", "123,456", "1,234,567"];
        assert_eq!(numbers.map(grouped), shown);
    }
}
