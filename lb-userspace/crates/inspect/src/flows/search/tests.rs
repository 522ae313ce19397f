//! The results of searches.

use std::{collections::HashMap, net::IpAddr};

use lb_common::abi::{self, ConnectionKey};
use lb_model::{backend_address::BackendAddress, desired::Protocol, flow::FlowTable};
use zerocopy::FromZeros as _;

use super::*;

/// The second of the search.
const NOW: u32 = 10_000;

/// Tables in memory.
#[derive(Default)]
struct Tables {
    services: BTreeMap<ServiceKey, Service>,
    backends: BTreeMap<u16, abi::Backend>,
    flows: HashMap<FlowTable, Vec<(FlowRef, FlowValue)>>,
}

impl Source for Tables {
    fn services(&self) -> Result<BTreeMap<ServiceKey, Service>> {
        Ok(self.services.clone())
    }

    fn backends(&self) -> Result<BTreeMap<u16, abi::Backend>> {
        Ok(self.backends.clone())
    }

    fn walk(
        &self,
        table: FlowTable,
        visit: &mut dyn FnMut(FlowRef, FlowValue) -> ControlFlow<()>,
    ) -> Result<()> {
        for (flow, value) in self.flows.get(&table).into_iter().flatten() {
            if visit(*flow, *value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

fn key(port: u16) -> ServiceKey {
    ServiceKey::new(IpAddr::from([10, 0, 0, 100]), port, Protocol::Tcp)
}

fn address(text: &str) -> [u8; 16] {
    entry::address(text.parse().expect(text))
}

fn client(text: &str, port: u16, service: u16) -> FlowKey {
    FlowKey::new(address(text), port.into(), service)
}

/// An established flow that has been silent for so long.
const fn silent(backend: u16, secs: u32) -> FlowValue {
    FlowValue { backend, flags: flow_flags::ESTABLISHED, seen: NOW - secs }
}

/// Two services: `web` with two backends, `dns` with one.
fn tables() -> Tables {
    let mut tables = Tables::default();
    for (id, port) in [(1, 80), (2, 53)] {
        let mut service = Service::new_zeroed();
        (service.id, service.slots, service.idle_timeout) = (id, 1_009, 900);
        tables.services.insert(key(port), service);
    }
    for (id, service, at) in [(1, 1, "10.0.0.11"), (2, 1, "10.0.0.12"), (3, 2, "10.0.0.11")] {
        let mut backend = abi::Backend::new_zeroed();
        (backend.service, backend.address) = (service, address(at));
        tables.backends.insert(id, backend);
    }
    let pin = |at, port, service, value| (FlowRef::Pin(client(at, port, service)), value);
    let pins = vec![
        pin("198.51.100.7", 4_242, 1, silent(1, 10)),
        pin("198.51.100.8", 1_000, 1, silent(2, 0)),
        pin("2001:db8::7", 1_000, 1, FlowValue { flags: 0, ..silent(2, 5) }),
    ];
    tables.flows.insert(FlowTable::Pins, pins);
    let tracked = FlowRef::Tracked(client("198.51.100.7", 53, 2));
    tables.flows.insert(FlowTable::Tracked, vec![(tracked, silent(3, 1))]);
    let id = [0xab, 1, 2, 3, 4, 5, 6, 7];
    let quic = FlowRef::Connection(ConnectionKey { id, service: 2, reserved: 0 });
    let closing = flow_flags::ESTABLISHED | flow_flags::CLOSING;
    let value = FlowValue { flags: closing, ..silent(3, 60) };
    tables.flows.insert(FlowTable::Connections, vec![(quic, value)]);
    tables
}

fn names() -> BTreeMap<ServiceKey, String> {
    [(key(80), "web".into()), (key(53), "dns".into())].into()
}

fn found(tables: &Tables, query: &Query) -> Result<Found, Refusal> {
    let names = Names::read(tables, &names()).expect("they are in memory");
    let mut search = Search::new(&names, query, NOW)?;
    search.run(tables).expect("they are in memory");
    Ok(search.found())
}

/// The clients and connections that are found.
fn who(query: &Query) -> Vec<String> {
    let flows = found(&tables(), query).expect("it is asked for what there is").flows;
    let name = |flow: &Flow| match (flow.client, &flow.connection) {
        (Some(client), _) => format!("{client} {}", flow.port.expect("a client has a port")),
        (None, connection) => connection.clone().expect("a connection has an id"),
    };
    flows.iter().map(name).collect()
}

#[test]
fn each_kind_of_flow_is_found_with_its_names() {
    let found = found(&tables(), &Query::default()).expect("it is valid");
    assert_eq!(found.matched, 5);
    let states: Vec<_> = found
        .flows
        .iter()
        .map(|flow| (flow.kind, flow.service.as_deref(), flow.state(), flow.idle_secs))
        .collect();
    assert_eq!(
        states,
        [
            (Kind::Pin, Some("web"), "established", 0),
            (Kind::Tracked, Some("dns"), "established", 1),
            (Kind::Pin, Some("web"), "opening", 5),
            (Kind::Pin, Some("web"), "established", 10),
            (Kind::Quic, Some("dns"), "closing", 60),
        ]
    );
    assert_eq!(found.flows[4].connection.as_deref(), Some("ab01020304050607"));
    assert_eq!(found.flows[4].slot, None);
    assert!(found.flows[..4].iter().all(|flow| flow.slot.is_some_and(|slot| slot < 1_009)));
}

#[test]
fn filters_hold_together() {
    let (web, dns) = (Some("web".to_owned()), Some("dns".to_owned()));
    let eleven = Some(BackendAddress::from([10, 0, 0, 11]));
    let of_net = Some("198.51.100.0/24".parse().expect("a prefix"));
    let base = Query::default();
    let cases: [(Query, &[&str]); 7] = [
        (Query { service: web.clone(), backend: eleven, ..base.clone() }, &["198.51.100.7 4242"]),
        (
            Query { backend: eleven, ..base.clone() },
            &["198.51.100.7 53", "198.51.100.7 4242", "ab01020304050607"],
        ),
        (
            Query { service: web.clone(), client: of_net, ..base.clone() },
            &["198.51.100.8 1000", "198.51.100.7 4242"],
        ),
        (Query { kind: Some(Kind::Tracked), ..base.clone() }, &["198.51.100.7 53"]),
        (Query { kind: Some(Kind::Quic), client: of_net, ..base.clone() }, &[]),
        (Query { kind: Some(Kind::Pin), service: dns, ..base.clone() }, &[]),
        (
            Query { client: Some("2001:db8::/32".parse().expect("a prefix")), ..base },
            &["2001:db8::7 1000"],
        ),
    ];
    for (query, expected) in cases {
        assert_eq!(who(&query), expected, "{query:?}");
    }
}

#[test]
fn a_limit_keeps_the_latest_and_counts_all() {
    let mut tables = tables();
    let many = (1..=1_000).map(|port| {
        // In no order of time.
        let value = silent(1, u32::from(port) * 617 % 1_009 % 900);
        (FlowRef::Pin(client("203.0.113.1", port, 1)), value)
    });
    tables.flows.insert(FlowTable::Pins, many.collect());
    let query = Query { service: Some("web".into()), limit: Some(7), ..Query::default() };
    let found = found(&tables, &query).expect("it is valid");
    assert_eq!(found.matched, 1_000);
    assert_eq!(found.flows.len(), 7);
    let all = tables.flows[&FlowTable::Pins].iter().map(|(_, value)| NOW - value.seen);
    let mut latest: Vec<u32> = all.collect();
    latest.sort_unstable();
    let kept: Vec<u32> = found.flows.iter().map(|flow| flow.idle_secs).collect();
    assert_eq!(kept, latest[..7]);
}

#[test]
fn what_has_been_silent_for_too_long_is_no_flow() {
    let mut tables = tables();
    let key = |port| client("203.0.113.1", port, 1);
    let opening = |secs| FlowValue { flags: 0, ..silent(1, secs) };
    let connection = |first| ConnectionKey { id: [first; 8], service: 1, reserved: 0 };
    tables.flows = [
        (
            FlowTable::Pins,
            vec![
                (FlowRef::Pin(key(1)), silent(1, 900)),
                (FlowRef::Pin(key(2)), silent(1, 901)),
                // A handshake is not waited for as long.
                (FlowRef::Pin(key(3)), opening(75)),
                (FlowRef::Pin(key(4)), opening(76)),
                // The idle timeout of a service that is gone is unknown.
                (FlowRef::Pin(client("203.0.113.1", 5, 9)), silent(1, 5_000)),
            ],
        ),
        // These stay in their tables until another one needs the place.
        (
            FlowTable::Tracked,
            vec![
                (FlowRef::Tracked(key(6)), opening(900)),
                (FlowRef::Tracked(key(7)), opening(901)),
            ],
        ),
        (
            FlowTable::Connections,
            vec![
                (FlowRef::Connection(connection(8)), silent(1, 900)),
                (FlowRef::Connection(connection(9)), silent(1, 901)),
            ],
        ),
    ]
    .into();
    let all = found(&tables, &Query::default()).expect("it is valid");
    let mut ports: Vec<_> = all.flows.iter().map(|flow| flow.port).collect();
    ports.sort_unstable();
    assert_eq!(ports, [None, Some(1), Some(3), Some(5), Some(6)]);
    assert_eq!(all.matched, 5);
    assert_eq!(all.backends.iter().map(Count::all).sum::<u64>(), 5);
    let names = Names::read(&tables, &names()).expect("they are in memory");
    let query = Query::default();
    let mut met = 0;
    let mut count = |_: Flow| {
        met += 1;
        ControlFlow::Continue(())
    };
    Search::new(&names, &query, NOW)
        .expect("it is valid")
        .visit(&tables, &mut count)
        .expect("it is");
    assert_eq!(met, 5, "as lines as well");
}

#[test]
fn flows_are_counted_by_backend_without_one_being_told() {
    let found =
        found(&tables(), &Query { limit: Some(0), ..Query::default() }).expect("it is valid");
    assert_eq!(found.flows, []);
    let counts: Vec<_> = found
        .backends
        .iter()
        .map(|count| {
            let backend = count.backend.expect("it is there").to_string();
            let service = count.service.as_deref().expect("it is there");
            (service, backend, count.pins, count.tracked, count.quic, count.all())
        })
        .collect();
    assert_eq!(
        counts,
        [
            ("dns", "10.0.0.11".to_owned(), 0, 1, 1, 2),
            ("web", "10.0.0.11".to_owned(), 1, 0, 0, 1),
            ("web", "10.0.0.12".to_owned(), 2, 0, 0, 2),
        ]
    );
}

#[test]
fn an_address_without_a_port_is_its_backend_or_those_with_ports() {
    let mut tables = tables();
    let mut search = |port: u16, wanted: &str| {
        let other = tables.backends.get_mut(&2).expect("it is there");
        (other.address, other.port) = (address("10.0.0.11"), port.into());
        let backend = Some(wanted.parse().expect("an address"));
        let query = Query { service: Some("web".into()), backend, ..Query::default() };
        let found = found(&tables, &query).expect("it is there");
        found.backends.iter().map(|count| count.backend.expect("it is there").to_string()).collect()
    };
    let found: Vec<String> = search(8080, "10.0.0.11");
    assert_eq!(found, ["10.0.0.11"]);
    let found: Vec<String> = search(8080, "10.0.0.11:8080");
    assert_eq!(found, ["10.0.0.11:8080"]);
    tables.backends.get_mut(&1).expect("it is there").port = 8081.into();
    let query = Query { backend: Some([10, 0, 0, 11].into()), ..Query::default() };
    let found = super::tests::found(&tables, &query).expect("it is there");
    assert_eq!(found.backends.len(), 3, "{found:?}");
}

#[test]
fn what_there_is_not_is_refused_with_what_is_near() {
    let error = |service: Option<&str>, backend: Option<[u8; 4]>| {
        let query = Query {
            service: service.map(str::to_owned),
            backend: backend.map(BackendAddress::from),
            ..Query::default()
        };
        let refusal = found(&tables(), &query).expect_err("there is no such thing");
        assert_eq!(refusal.kind, RefusalKind::NotFound);
        format!("{}; {}", refusal.error, refusal.hint.unwrap_or_default())
    };
    assert_eq!(error(Some("wep"), None), "no service wep; did you mean web?");
    assert_eq!(
        error(Some("dns"), Some([10, 0, 0, 12])),
        "service dns has no backend 10.0.0.12; did you mean 10.0.0.11?"
    );
    assert_eq!(
        error(None, Some([10, 0, 0, 99])),
        "no service has a backend 10.0.0.99; 'lbctl backend list' shows all"
    );
}

#[test]
fn a_flow_of_what_is_gone_is_told_by_what_is_left() {
    let mut tables = tables();
    tables.backends.remove(&2);
    let names = Names::read(&tables, &BTreeMap::new()).expect("they are in memory");
    let query = Query { kind: Some(Kind::Pin), ..Query::default() };
    let mut search = Search::new(&names, &query, NOW).expect("it is valid");
    search.run(&tables).expect("they are in memory");
    let first = search.found().flows.remove(0);
    assert_eq!(first.service.as_deref(), Some("tcp 10.0.0.100:80"));
    assert_eq!((first.backend, first.backend_id), (None, 2));
}
