//! Any state that a file can express.

use std::{
    net::IpAddr,
    num::{NonZeroU8, NonZeroU16},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use lb_model::{
    check::{Check, Dns, Exec, Http, Kind, Start, Tls, Udp, Via},
    desired::{Admin, Backend, Mode, Protocol, Service, UdpPolicy},
    policy::OnDown,
};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{Writable, at};

fn any_kind() -> impl Strategy<Value = Kind> {
    let code = || 100u16..=599;
    let range = (code(), code()).prop_map(|(a, b)| RangeInclusive::new(a.min(b), a.max(b)));
    let http = (
        "[A-Z]{1,5}",
        "/[!-~]{0,6}",
        option::of("[!-~]{1,6}"),
        vec(range, 1..4),
        option::of("(?s).{1,6}"),
    );
    let http = http.prop_map(|(method, path, host, status, body)| Http {
        method,
        path,
        host,
        status,
        body,
    });
    let tls = (any::<bool>(), option::of("(?s).{0,4}"), option::of("/[a-z ]{1,4}"));
    let tls = tls.prop_map(|(insecure, server_name, ca_file)| Tls {
        insecure,
        server_name,
        ca_file: ca_file.map(PathBuf::from),
    });
    let bytes = || vec(any::<u8>(), 0..6);
    let name = prop_oneof![Just(".".to_owned()), "[a-z]{1,4}(\\.[a-z]{1,4}){0,2}\\.?"];
    prop_oneof![
        Just(Kind::None),
        Just(Kind::Tcp),
        http.clone().prop_map(Kind::Http),
        (http, tls).prop_map(|(http, tls)| Kind::Https(http, tls)),
        (bytes(), bytes()).prop_map(|(send, expect)| Kind::Udp(Udp { send, expect })),
        (name, select(vec!["A", "NS", "SOA"]))
            .prop_map(|(name, record)| Kind::Dns(Dns { name, record: record.into() })),
        ("/[a-z]{1,4}", vec("(?s).{0,4}", 0..3)).prop_map(|(program, arguments)| {
            Kind::Exec(Exec { command: std::iter::once(program).chain(arguments).collect() })
        }),
    ]
}

fn any_check() -> impl Strategy<Value = Check> {
    let time = || prop_oneof![50u64..2_000, 50u64..=3_600_000].prop_map(Duration::from_millis);
    let times = || any::<NonZeroU8>();
    let up = any::<bool>().prop_map(|up| if up { Start::Up } else { Start::Down });
    let via = any::<bool>().prop_map(|vip| if vip { Via::Vip } else { Via::Backend });
    let own = (option::of(1u16..), via, times(), times(), 0u8..=50, up);
    (any_kind(), own, time(), time(), time(), time()).prop_map(
        |(kind, (port, via, rise, fall, jitter, start), a, b, c, d)| Check {
            kind,
            port,
            via,
            interval: a,
            fast_interval: b,
            down_interval: c,
            timeout: d,
            rise,
            fall,
            jitter,
            start,
        },
    )
}

fn any_backend() -> impl Strategy<Value = Backend> {
    let admin = select(vec![
        Admin::Enabled,
        Admin::Disabled,
        Admin::Down,
        Admin::Draining { deadline: None },
        Admin::Removing { deadline: None },
    ]);
    (1u16.., admin, any::<bool>(), option::of(any_check())).prop_map(
        |(weight, admin, backup, check)| Backend {
            name: None,
            weight: weight.to_string().parse().expect("it is not zero"),
            admin,
            backup,
            check: check.map(Box::new),
        },
    )
}

fn any_service() -> impl Strategy<Value = Service> {
    let millis = || (0u64..=86_400_000).prop_map(Duration::from_millis);
    let udp = select(vec![UdpPolicy::Oneshot, UdpPolicy::Tracked, UdpPolicy::Quic]);
    let shape =
        (1u16.., option::of(udp), any::<bool>(), select(vec![1_009u32, 65_537]), any::<u32>());
    let silence = 1u64..=43_200;
    let target = any::<bool>();
    let times = (1u64..=43_200, option::of(1u64..=2_592_000), millis(), millis(), silence);
    let on_down = select(vec![OnDown::Keep, OnDown::Move]);
    let policy = (0u8..=100, any::<u16>(), any::<bool>(), any_check(), on_down);
    let backends = prop::collection::btree_map(1u8..5, any_backend(), 0..4);
    (shape, times, policy, target, backends).prop_map(
        |((port, udp, dsr, ring_slots, syn_budget), times, policy, target, backends)| {
            let (idle, drain, slow_start, half_life, silence) = times;
            let mode = if dsr { Mode::Dsr } else { Mode::Ipip };
            let mut service = Service::new(IpAddr::from([10, 0, 1, 1]), port, mode);
            service.key.protocol = if udp.is_some() { Protocol::Udp } else { Protocol::Tcp };
            service.udp_policy = udp.unwrap_or_default();
            (service.ring_slots, service.syn_budget) = (ring_slots, syn_budget);
            service.idle_timeout = Duration::from_secs(idle);
            service.drain_deadline = drain.map(Duration::from_secs);
            service.drain_silence = Duration::from_secs(silence);
            let p = &mut service.policy;
            (p.panic_threshold, p.min_healthy, p.second_choice) = (policy.0, policy.1, policy.2);
            (p.check, p.slow_start, p.flap_half_life) = (policy.3, slow_start, half_life);
            p.on_down = policy.4;
            // The port of a backend is the service's in these modes: given in one way, in the other or not.
            service.target_port = target.then_some(port).and_then(NonZeroU16::new);
            let own = |last: u8| last.is_multiple_of(2).then_some(port).and_then(NonZeroU16::new);
            let one = |(last, b): (u8, Backend)| {
                let name = (last % 3 == 0).then(|| format!("web{last}"));
                let at = at(last).or_port(own(last)).or_port(service.target_port);
                (at, Backend { name, ..b })
            };
            service.backends = backends.into_iter().map(one).collect();
            service
        },
    )
}

/// States that a file can express; each service has an address of its own.
pub(crate) fn any_state() -> impl Strategy<Value = Writable> {
    prop::collection::btree_map(1u8..4, any_service(), 0..3).prop_map(|services| {
        let mut wanted = Writable::default();
        for (number, mut service) in services {
            service.key.vip = IpAddr::from([10, 0, 1, number]);
            let name = format!("s{number}");
            wanted.desired.services.insert(name, service);
        }
        let none = Writable::default();
        Writable::of(&none.desired, &wanted.desired)
    })
}
