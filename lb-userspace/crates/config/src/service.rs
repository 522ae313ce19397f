//! The `[[service]]` tables of a configuration.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
};

use lb_model::{
    backend_address::BackendAddress,
    check::Check,
    desired::{
        Admin, Backend, Desired, Mode, Ports, Protocol, Service, ServiceKey, UdpPolicy, Vips,
        Weight,
    },
    overrides::Unsaid,
    rules::{DRAIN_DEADLINE, DRAIN_SILENCE, IDLE_TIMEOUT, MAX_RING_SLOTS, Violation},
};

use super::{
    check::{read_check, read_policy},
    duration_within,
    tree::Table,
};

/// All services of a file.
#[derive(Default)]
pub(super) struct Services {
    pub(super) desired: Desired,
    /// Services that lack something, with stand-ins for it: their own mistakes are reported all the same.
    pub(super) incomplete: Desired,
    pub(super) unsaid: Unsaid,
    pub(super) places: Places,
}

/// Where in the file the fields of services and backends are.
#[derive(Default)]
pub(super) struct Places(HashMap<(String, Option<BackendAddress>, &'static str), (usize, String)>);

impl Places {
    /// Whether the field that is wrong is in the file, and not a stand-in for a missing one.
    pub(super) fn holds(&self, violation: &Violation) -> bool {
        let Violation { service, backend, field, .. } = violation;
        self.0.contains_key(&(service.clone(), *backend, *field))
    }

    /// The place of a mistake: the field's, else its table's.
    pub(super) fn find(&self, violation: &Violation) -> Option<(usize, String)> {
        let key = |field| (violation.service.clone(), violation.backend, field);
        self.0.get(&key(violation.field)).or_else(|| self.0.get(&key(""))).cloned()
    }
}

pub(super) fn read_services(root: &Table<'_>) -> Services {
    let mut services = Services::default();
    let mut lines: HashMap<String, String> = HashMap::new();
    for table in root.tables("service", "service") {
        let name = table.required("name", "name = \"web\"");
        let given = name.as_ref().and_then(|field| field.string("name = \"web\""));
        // A service without a name is read for its other mistakes.
        let name = given.map_or_else(|| table.path().to_owned(), str::to_owned);
        if let Some(first) = lines.get(&name) {
            let message = format!("service {name} is {first} already; give each its own name");
            table
                .optional("name")
                .map_or_else(|| table.refuse(message.clone()), |f| f.refuse(message.clone()));
            let mut ignored = Services::default();
            read_service(&table, &name, &mut ignored);
        } else {
            lines.insert(name.clone(), table.path().to_owned());
            read_service(&table, &name, &mut services);
            if given.is_none()
                && let Some(service) = services.desired.services.remove(&name)
            {
                services.incomplete.services.insert(name, service);
            }
        }
        table.finish();
    }
    services
}

/// Documentation addresses (RFC 5737, RFC 3849), which no configuration means.
const STAND_IN_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const STAND_IN_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// The port of a service that has none yet: one that its backends fit.
fn stand_in_port(target: Option<NonZeroU16>, backends: &BTreeMap<BackendAddress, Backend>) -> u16 {
    target.or_else(|| backends.keys().find_map(|at| at.port)).map_or(1, NonZeroU16::get)
}

fn read_service(table: &Table<'_>, name: &str, services: &mut Services) {
    let mut places = Vec::from([("", (table.offset(), table.path().to_owned()))]);
    let mut field = |key| {
        let field = table.optional(key)?;
        places.push((key, (field.span().start, field.path().to_owned())));
        Some(field)
    };
    field("name");
    let vip_field = field("vip");
    let port_field = field("port");
    let target_field = field("target_port");
    let ring_field = field("ring_slots");
    let idle_field = field("idle_timeout");
    let silence_field = field("drain_silence");
    for (key, place) in places {
        services.places.0.insert((name.into(), None, key), place);
    }
    let missing = |key: &'static str, example: &str| {
        table.required(key, example);
    };
    if vip_field.is_none() {
        missing("vip", "vip = \"10.0.0.100\"");
    }
    if port_field.is_none() {
        missing("port", "port = 80");
    }
    let vip = vip_field.and_then(|f| f.parsed("vip = \"10.0.0.100\"", str::parse::<Vips>));
    let port = port_field.and_then(|f| f.ports());
    let protocol = table
        .required("protocol", "protocol = \"tcp\"")
        .and_then(|f| f.word(&[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)]));
    let mode = table
        .required("mode", "mode = \"dsr\", mode = \"ipip\" or mode = \"nat\"")
        .and_then(|f| f.word(&[("dsr", Mode::Dsr), ("ipip", Mode::Ipip), ("nat", Mode::Nat)]));
    let udp = table.optional("udp");
    if let (Some(field), Some(Protocol::Tcp)) = (&udp, protocol) {
        field.refuse("`udp` is for services with protocol = \"udp\"; remove it");
    }
    let udp = udp.filter(|_| protocol != Some(Protocol::Tcp)).and_then(|f| {
        f.word(&[
            ("oneshot", UdpPolicy::Oneshot),
            ("tracked", UdpPolicy::Tracked),
            ("quic", UdpPolicy::Quic),
        ])
    });
    let idle = idle_field.and_then(|f| {
        f.parsed("idle_timeout = \"15m\"", |text| {
            duration_within(text, *IDLE_TIMEOUT.start(), *IDLE_TIMEOUT.end())
        })
    });
    let drain = table.optional("drain_deadline").and_then(|f| {
        f.parsed("drain_deadline = \"1h\"", |text| {
            duration_within(text, *DRAIN_DEADLINE.start(), *DRAIN_DEADLINE.end())
        })
    });
    let silence = silence_field.and_then(|f| {
        f.parsed("drain_silence = \"90s\"", |text| {
            duration_within(text, *DRAIN_SILENCE.start(), *DRAIN_SILENCE.end())
        })
    });
    let ring_slots = ring_field.and_then(|f| f.integer(2..u64::from(MAX_RING_SLOTS) + 1));
    let syn_budget = table.optional("syn_budget").and_then(|f| f.integer(0..1 << 32));
    let policy = read_policy(table);
    let target_port =
        target_field.and_then(|f| f.integer::<u16>(1..65_536)).and_then(NonZeroU16::new);
    let backends = read_backends(table, name, (&policy.check, target_port), services);

    // Stand-ins go with nothing else that could be wrong; what clashes with other services is not
    // looked for in an incomplete one.
    let complete = vip.is_some() && port.is_some() && protocol.is_some() && mode.is_some();
    let family = backends.keys().next().copied().map_or(STAND_IN_V4, |address| match address.ip {
        IpAddr::V4(_) => STAND_IN_V4,
        IpAddr::V6(_) => STAND_IN_V6,
    });
    let vips = vip.unwrap_or_else(|| Vips::one(family));
    let ports = port.unwrap_or_else(|| Ports::one(stand_in_port(target_port, &backends)));
    // Of the modes that could be meant, one that takes the backends' ports.
    let is_foreign =
        |address: &BackendAddress| address.port.is_some_and(|its| Ports::one(its.get()) != ports);
    let stand_in = if backends.keys().any(is_foreign) { Mode::Nat } else { Mode::Ipip };
    let (protocol, mode) = (protocol.unwrap_or(Protocol::Tcp), mode.unwrap_or(stand_in));
    let key = ServiceKey::of(vips, ports, protocol);
    let mut service = Service { key, ..Service::new(vips.first(), 1, mode) };
    service.udp_policy = udp.unwrap_or_default();
    service.idle_timeout = idle.unwrap_or(service.idle_timeout);
    service.ring_slots = ring_slots.unwrap_or(service.ring_slots);
    service.syn_budget = syn_budget.unwrap_or(service.syn_budget);
    service.drain_deadline = drain;
    service.drain_silence = silence.unwrap_or(service.drain_silence);
    service.policy = policy;
    service.target_port = target_port;
    service.backends = backends;
    let kept = if complete { &mut services.desired } else { &mut services.incomplete };
    kept.services.insert(name.into(), service);
}

fn read_backends(
    table: &Table<'_>,
    service: &str,
    (check, target_port): (&Check, Option<NonZeroU16>),
    services: &mut Services,
) -> BTreeMap<BackendAddress, Backend> {
    let mut backends = BTreeMap::new();
    for table in table.tables("backend", "service.backend") {
        const EXAMPLE: &str = "address = \"10.0.0.11\"";
        let field = table.required("address", EXAMPLE);
        let at = field.as_ref().and_then(|f| f.parsed(EXAMPLE, str::parse::<BackendAddress>));
        let port_field = table.optional("port");
        let port = port_field.as_ref().and_then(|f| f.integer::<u16>(1..65_536));
        if let (Some(field), Some(BackendAddress { port: Some(first), .. })) = (port_field, at) {
            field.refuse(format!("`address` has port {first} already; give the port once"));
        }
        let at = at.map(|at| at.or_port(port.and_then(NonZeroU16::new)).or_port(target_port));
        let name_field = table.optional("name");
        let own_name = name_field.as_ref().and_then(|field| field.string("name = \"web1\""));
        let weight = table
            .optional("weight")
            .and_then(|field| field.number("a number from 1 to 65535", str::parse::<Weight>));
        let admin = table.optional("state").and_then(|field| {
            field.word(&[
                ("enabled", Admin::Enabled),
                ("draining", Admin::Draining { deadline: None }),
                ("disabled", Admin::Disabled),
            ])
        });
        let backup = table.optional("backup").and_then(|field| field.flag());
        let own = table.optional("check").and_then(|field| field.table("service.backend.check"));
        let own = own.map(|table| Box::new(read_check(table, check.clone())));
        if let (Some(at), Some(field)) = (at, field) {
            let place = (field.span().start, field.path().to_owned());
            for key in ["name", "weight", "state", "backup", "check"] {
                if table.optional(key).is_none() {
                    services.unsaid.insert((service.into(), at, key));
                }
            }
            let backend = Backend {
                name: own_name.map(str::to_owned),
                weight: weight.unwrap_or_default(),
                admin: admin.unwrap_or_default(),
                backup: backup.unwrap_or_default(),
                check: own,
            };
            if backends.insert(at, backend).is_some() {
                field.refuse(format!(
                    "backend {at} is there already; give each backend once, with its weight"
                ));
            } else {
                services.places.0.insert((service.into(), Some(at), "address"), place);
                if let Some(field) = name_field {
                    let place = (field.span().start, field.path().to_owned());
                    services.places.0.insert((service.into(), Some(at), "name"), place);
                }
            }
        }
        table.finish();
    }
    backends
}
