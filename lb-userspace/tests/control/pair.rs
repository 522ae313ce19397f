//! Virtual routers and peers: the state that lbd sends them, and its handling of their reports.

use std::{collections::BTreeSet, fs, net::IpAddr, sync::mpsc, time::Duration};

use hyper::{Method, body::Bytes};
use lb_api::{
    event::Kind,
    requests::Done,
    status::{Pair, Status},
};
use lb_config::Config;
use lb_control::engine::{Engine, Role};
use lb_model::{
    desired::{Extent, Mode, Service, ServiceKey},
    hop::Neighbourhood,
    router::{Router, State},
};
use lb_sync::PeerId;
use lb_vrrp::{Done as Answered, Notice, NoticeKind, Order, Report};

use crate::{
    cli::lbctl,
    common::{Place, Running, WEB, events, eventually},
    fakes::Recorded,
};

/// A router for the VIP of [`WEB`].
pub const ROUTER: &str = r#"
[[virtual_router]]
name = "main"
interface = "eth0"
vrid = 51
priority = 150
addresses = ["10.0.0.100"]
"#;
pub const SYNC: &str = r#"
[sync]
key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
listen = "10.0.0.2:3780"
peers = ["10.0.0.3:3780"]
node = "lb1"
"#;
pub const PEER: PeerId = PeerId(0);
pub const PEER_ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 3));

/// A service, a router and a peer.
pub fn all() -> String {
    format!("{WEB}{ROUTER}{SYNC}")
}

pub fn config(place: &Place) -> Config {
    Config::load(&place.file()).expect("it is valid")
}

pub fn main(place: &Place) -> Router {
    config(place).routers.routers.remove(0)
}

pub fn web(place: &Place) -> ServiceKey {
    config(place).desired.services["web"].key
}

/// The state of a peer that is configured as this node, but for its router's state.
pub async fn peer_state(lbd: &Running, place: &Place, state: State) -> lb_sync::NodeState {
    eventually("the node state is sent to the peers", async || {
        lbd.script.recorder.node_state().is_some()
    })
    .await;
    let mut node_state = lbd.script.recorder.node_state().expect("they are");
    let router = node_state.routers.get_mut(&main(place).key).expect("it is configured");
    (router.state, router.priority) = (state, 100);
    router.source = Some(PEER_ADDRESS);
    node_state
}

/// Waits for a recorded, and returns the value that `pick` makes of it.
pub async fn recorded<T: Clone>(
    lbd: &Running,
    what: &str,
    pick: impl Fn(&Recorded) -> Option<T>,
) -> T {
    eventually(what, async || !lbd.script.recorder.of(&pick).is_empty()).await;
    lbd.script.recorder.of(&pick).remove(0)
}

/// The role of the service that was given last.
pub fn role(lbd: &Running, place: &Place) -> Option<Role> {
    let web = web(place);
    let all = [Role::Own, Role::Follows, Role::Shared];
    let given =
        |recorded: &Recorded| all.into_iter().find(|role| *recorded == Recorded::role(web, *role));
    lbd.script.recorder.of(given).pop()
}

/// The messages of the events of a kind.
pub async fn messages(lbd: &Running, kind: Kind) -> Vec<String> {
    let events = events(&lbd.client).await.into_iter();
    events.filter(|event| event.body.kind == kind).map(|event| event.body.message).collect()
}

/// As the file refuses it: the VIPs of a service move together.
#[tokio::test]
async fn a_prefix_with_addresses_of_two_routers_is_refused_from_lbctl_too() {
    let second = ROUTER.replace("main", "other").replace("51", "52").replace(".100", ".101");
    let place = Place::new(&format!("{WEB}{ROUTER}{second}"));
    let lbd = place.start().await;
    for (host_bits, port, refused) in [(1, 81, true), (0, 82, false)] {
        let mut service = Service::new(IpAddr::from([10, 0, 0, 100]), port, Mode::Dsr);
        let extent = Extent { host_bits, more_ports: 0 };
        service.key = service.key.with_extent(extent).expect("it is aligned");
        let path = format!("/v1/services/all{port}");
        let made = lbd.client.send_json::<Done>(Method::POST, &path, &service).await;
        let text = made.err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(
            text.contains(
                "10.0.0.101 is a VIP of service all81, as are addresses of virtual router main"
            ),
            refused,
            "{text}"
        );
        assert_eq!(text.is_empty(), !refused, "{text}");
    }
    lbd.stop().await;
}

#[tokio::test]
async fn routers_take_part_when_the_maps_are_written() {
    let place = Place::new(&format!("{WEB}{ROUTER}"));
    let lbd = place.start().await;
    eventually("they have the external state", async || {
        lbd.script.recorder.external_state().is_some()
    })
    .await;
    let orders = lbd.script.recorder.of(|recorded| match recorded {
        Recorded::Order(order) => Some(order.clone()),
        _ => None,
    });
    assert_eq!(orders[0], Order::Configure(config(&place).routers));
    let external = lbd.script.recorder.external_state().expect("they are sent");
    assert_eq!(external.forwarding, BTreeSet::from(["eth0".to_owned()]));
    assert_eq!(external.healthy, [("web".to_owned(), 2)].into());
    assert!(!external.draining && external.unsynced.is_empty() && external.mismatched.is_empty());
    // A backend that the operator takes out is not healthy.
    lbctl(&place, "backend disable web 10.0.0.11").await;
    let healthy = async || {
        lbd.script.recorder.external_state().is_some_and(|external| external.healthy["web"] == 1)
    };
    eventually("one is left", healthy).await;
    lbd.stop().await;
}

#[tokio::test]
async fn routers_wait_while_the_maps_can_not_be_written() {
    let place = Place::new(&format!("{WEB}{ROUTER}"));
    place.remote.failing_writes.store(3, std::sync::atomic::Ordering::SeqCst);
    let lbd = place.start().await;
    let before = place.remote.failing_writes.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(before, 0, "it was ready when the fourth write went well");
    let calls = lbd.script.recorder.take();
    let orders = calls
        .iter()
        .filter(|recorded| matches!(recorded, Recorded::Order(Order::ExternalState(_))));
    assert!(orders.count() <= 1, "{calls:?}");
    lbd.stop().await;
}

#[tokio::test]
async fn what_a_predecessor_serves_is_enough_to_resume() {
    let router = format!("{ROUTER}virtual_mac = true\n");
    let place = Place::new(&format!("{WEB}{router}"));
    // The maps of one that had them in order.
    let config = config(&place);
    let settings = lb_model::settings::Settings {
        limits: place.limits,
        ..config.settings(false).expect("the seed is given")
    };
    let mut maps = lb_plane::fake::Fake::new(place.limits);
    maps.set_interface("eth0", None);
    let mut engine = Engine::adopt(maps, &settings).expect("empty maps");
    engine.set_desired(config.desired.clone());
    let wants = engine.wants().into_iter();
    let hop = crate::common::hop;
    let hops = wants.map(|want| (want, lb_model::hop::Resolution::Resolved(hop())));
    let hops = hops.collect();
    engine.set_neighbourhood(Neighbourhood { hops, ..Neighbourhood::default() });
    engine.reconcile(lb_model::time::Now::read()).expect("they are written");
    *place.maps.lock().expect("nobody panics") = Some(engine.into_data_plane());
    // And a first write of this one that does not go well.
    place.configure(&format!("{WEB}{router}").replace("weight = 3", "weight = 5"));
    place.remote.failing_writes.store(1, std::sync::atomic::Ordering::SeqCst);
    let lbd = place.start().await;
    assert_eq!(place.remote.failing_writes.load(std::sync::atomic::Ordering::SeqCst), 0);
    let calls = lbd.script.recorder.take();
    let Some(Recorded::Order(Order::Configure(_))) = calls.first() else { panic!("{calls:?}") };
    let Some(Recorded::Order(Order::ExternalState(external))) = calls.get(1) else {
        panic!("{calls:?}")
    };
    assert_eq!(external.healthy, [("web".to_owned(), 2)].into());
    assert_eq!(external.forwarding, BTreeSet::from(["eth0".to_owned()]));
    // Before a write could take it out of the maps.
    let mac = [0, 0, 0x5e, 0, 1, 51];
    assert_eq!(calls.get(2), Some(&Recorded::take_mac(mac, true)));
    lbd.script.becomes(&main(&place), State::Backup, "it listens");
    lbd.script.becomes(&main(&place), State::Fault, "eth0 is down");
    let gone = |recorded: &Recorded| (*recorded == Recorded::take_mac(mac, false)).then_some(());
    recorded(&lbd, "it is given up", gone).await;
    lbd.stop().await;
}

#[tokio::test]
async fn every_transition_is_an_event_and_is_seen() {
    let place = Place::new(&format!("{WEB}{ROUTER}"));
    let lbd = place.start().await;
    let main = main(&place);
    lbd.script.becomes(&main, State::Backup, "it begins");
    lbd.script.becomes(&main, State::Active, "no advertisement was received");
    eventually("it is active", async || !messages(&lbd, Kind::VrrpActive).await.is_empty()).await;
    lbd.script.becomes(&main, State::Fault, "interface eth0 is down");
    eventually("it is in fault", async || !messages(&lbd, Kind::VrrpFault).await.is_empty()).await;
    assert_eq!(messages(&lbd, Kind::VrrpBackup).await, ["main is backup"]);
    assert_eq!(
        messages(&lbd, Kind::VrrpActive).await,
        ["main is active: this node holds 10.0.0.100"]
    );
    assert_eq!(
        messages(&lbd, Kind::VrrpFault).await,
        ["main is in fault: this node can't hold 10.0.0.100, and was active"]
    );
    let notice = Notice {
        router: "main".into(),
        kind: NoticeKind::AddressElsewhere,
        message: "10.0.0.100 is at 02:00:00:00:00:09, too".into(),
        cause: "an ARP reply".into(),
    };
    lbd.script.vrrp.send(Report::Notice(notice)).expect("lbd receives it");
    let elsewhere = async || messages(&lbd, Kind::VrrpAddressElsewhere).await;
    eventually("it is reported", async || !elsewhere().await.is_empty()).await;
    assert_eq!(elsewhere().await, ["main: 10.0.0.100 is at 02:00:00:00:00:09, too"]);
    let status: Status = lbd.client.get("/v1/status").await.expect("it answers");
    assert_eq!(status.vrrp[0].state, State::Fault);
    let pair: Pair = lbd.client.get("/v1/vrrp").await.expect("it answers");
    assert_eq!((pair.routers, pair.peers), (status.vrrp, vec![]));
    let table = lbctl(&place, "vrrp status").await.out;
    assert!(table.contains("\nmain    IPv4 VRID 51  eth0       fault"), "{table}");
    let overview = lbctl(&place, "status").await.out;
    assert!(overview.contains("\nvirtual routers: main fault\n"), "{overview}");
    lbd.stop().await;
}

#[tokio::test]
async fn frames_to_a_virtual_mac_are_taken_before_anything_else() {
    let place = Place::new(&format!("{WEB}{ROUTER}"));
    let lbd = place.start().await;
    // A change was written just now, and those that follow wait for the next one.
    lbctl(&place, "backend weight web 10.0.0.12 9").await;
    let (done, answered) = mpsc::sync_channel(1);
    let mac = [0, 0, 0x5e, 0, 1, 51];
    let done = Answered(done);
    lbd.script.vrrp.send(Report::TakeMac { mac, take: true, done }).expect("lbd receives it");
    let wait = move || answered.recv_timeout(Duration::from_secs(5));
    tokio::task::spawn_blocking(wait).await.expect("no panic").expect("it is answered");
    let taken = lbd
        .script
        .recorder
        .of(|recorded| (*recorded == Recorded::take_mac(mac, true)).then_some(()));
    assert_eq!(taken, [()]);
    lbd.stop().await;
}

#[tokio::test]
async fn a_peer_that_is_configured_otherwise_is_told_and_not_followed() {
    let place = Place::new(&all());
    let lbd = place.start().await;
    let (main, web) = (main(&place), web(&place));
    lbd.script.becomes(&main, State::Backup, "it begins");
    let alike = peer_state(&lbd, &place, State::Active).await;
    let mut unlike = alike.clone();
    unlike.fingerprint.services.entry(web).or_default().settings = 1;
    let router = unlike.routers.get_mut(&main.key).expect("it is there");
    (router.fingerprint, router.addresses) = (1, 1);
    lbd.script.joins(PEER, unlike.clone());
    let refused = async || messages(&lbd, Kind::PeerRefused).await;
    eventually("it is reported", async || !refused().await.is_empty()).await;
    assert_eq!(
        refused().await,
        ["lb2: web: mode, ring_slots, idle_timeout or udp are others there"]
    );
    assert_eq!(
        messages(&lbd, Kind::VrrpMismatch).await,
        [
            "lb2: virtual router main: version, password, key are others there, so that no advertisement can be taken",
            "lb2: virtual router main: its addresses are others there",
        ]
    );
    // Its advertisements are accepted all the same, lest there are two Active routers.
    let mismatched = async || {
        let external = lbd.script.recorder.external_state().expect("they are sent");
        external.mismatched == BTreeSet::from([(main.key, PEER_ADDRESS)])
    };
    eventually("it is reported", mismatched).await;
    assert_eq!(role(&lbd, &place), Some(Role::Own), "it is not followed");
    let status = lbctl(&place, "vrrp status").await.out;
    assert!(status.contains("\nmain: PROBLEM: lb2: virtual router main: version"), "{status}");
    assert!(status.contains("\n  PROBLEM: web: mode, ring_slots"), "{status}");
    // The same state again makes no second event.
    lbd.script.report(lb_sync::Report::NodeState(PEER, unlike.clone()));
    // One that has another backend is followed all the same.
    let mut alike = alike;
    alike.fingerprint.services.entry(web).or_default().backends = 1;
    lbd.script.report(lb_sync::Report::NodeState(PEER, alike.clone()));
    eventually("it follows", async || role(&lbd, &place) == Some(Role::Follows)).await;
    assert_eq!(refused().await.len(), 1);
    // Another seed makes it incompatible.
    let mut incompatible = alike;
    incompatible.fingerprint.seed = 1;
    lbd.script.report(lb_sync::Report::NodeState(PEER, incompatible));
    let refused_altogether = async || refused().await.len() == 2;
    eventually("it is refused", refused_altogether).await;
    let json = lbctl(&place, "sync status -o json").await.out;
    let peers: Vec<lb_api::status::Peer> = serde_json::from_str(&json).expect(&json);
    let why = peers[0].session.refused.as_deref().expect("it is refused");
    assert!(why.contains("give both nodes the same `seed`"), "{why}");
    lbd.stop().await;
}

#[tokio::test]
async fn two_nodes_that_are_active_for_long_are_told() {
    let place = Place::new(&all());
    let lbd = place.start().await;
    lbd.script.becomes(&main(&place), State::Active, "no advertisement was received");
    lbd.script.joins(PEER, peer_state(&lbd, &place, State::Active).await);
    let both = async || messages(&lbd, Kind::VrrpTwoActive).await;
    eventually("it is reported", async || !both().await.is_empty()).await;
    assert_eq!(both().await, ["main is active here and on lb2: both hold its addresses"]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(both().await.len(), 1, "once");
    lbd.stop().await;
}

#[tokio::test]
async fn a_reload_changes_routers_and_leaves_the_others_alone() {
    let place = Place::new(&all());
    let lbd = place.start().await;
    lbd.script.becomes(&main(&place), State::Active, "no advertisement was received");
    let reload = async || {
        lbd.script.recorder.take();
        let done: Done =
            lbd.client.send(Method::POST, "/v1/reload", Bytes::new()).await.expect("it is valid");
        let configured = lbd.script.recorder.of(|recorded| match recorded {
            Recorded::Order(Order::Configure(routers)) => Some(routers.clone()),
            _ => None,
        });
        (done, configured)
    };
    let (done, configured) = reload().await;
    assert!(done.message.contains("nothing changed: 1 service, 2 backends, 1 virtual router"));
    assert_eq!((done.notes, configured), (vec![], vec![]));
    let other = ROUTER.replace("main", "other").replace("51", "52").replace("0.100", "0.101");
    let text = all().replace("priority = 150", "priority = 120");
    place.configure(&format!("{text}{other}"));
    let diff = lbctl(&place, "config diff").await.out;
    assert!(diff.contains("\n  virtual router main: priority changed\n"), "{diff}");
    let (done, configured) = reload().await;
    assert!(!done.message.contains("nothing changed"), "{done:?}");
    assert_eq!(done.notes, ["virtual router main: priority changed", "virtual router other added"]);
    assert_eq!(configured, [config(&place).routers]);
    // It is still active, as far as the daemon knows.
    lbctl(&place, "vrrp failover main --dry-run").await;
    place.configure(&all().replace("10.0.0.3:3780", "10.0.0.4:3780"));
    let (done, _) = reload().await;
    assert_eq!(
        done.notes,
        [
            "virtual router main: priority changed",
            "virtual router other removed",
            "restart lbd for the change of sync",
        ]
    );
    lbd.stop().await;
}

#[tokio::test]
async fn a_first_router_that_a_reload_adds_knows_that_the_node_forwards() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    place.configure(&format!("{WEB}{ROUTER}"));
    lbd.script.recorder.take();
    let _: Done =
        lbd.client.send(Method::POST, "/v1/reload", Bytes::new()).await.expect("it is valid");
    let orders = lbd.script.recorder.of(|recorded| match recorded {
        Recorded::Order(order) => Some(order.clone()),
        _ => None,
    });
    let forwarding = BTreeSet::from(["eth0".to_owned()]);
    assert!(
        matches!(&orders[0], Order::ExternalState(external) if external.forwarding == forwarding),
        "{orders:?}"
    );
    assert_eq!(orders[1], Order::Configure(config(&place).routers));
    lbd.stop().await;
}

#[tokio::test]
async fn what_is_saved_leaves_routers_and_peers_as_they_are_written() {
    let text = format!("{WEB}# routers\n{ROUTER}# peers\n{SYNC}# end\n");
    let place = Place::new(&text);
    let lbd = place.start().await;
    assert_eq!(lbctl(&place, "backend weight web 10.0.0.12 9").await.code, Some(0));
    assert_eq!(lbctl(&place, "config save").await.code, Some(0));
    let saved = fs::read_to_string(place.file()).expect("it is there");
    assert!(saved.ends_with(&text.replace("weight = 3", "weight = 9")), "{saved}");
    lbd.stop().await;
}

#[tokio::test]
async fn a_key_for_peers_needs_no_daemon() {
    let place = Place::new(&all());
    let key = lbctl(&place, "sync key").await;
    assert_eq!((key.code, key.out.len(), key.err.as_str()), (Some(0), 65, ""));
    let file = place.path("sync.key");
    fs::write(&file, &key.out).expect("it is written");
    let from_file = format!("key_file = \"{}\"", file.display());
    let given = SYNC.lines().find(|line| line.starts_with("key")).expect("it has one");
    place.configure(&all().replace(given, &from_file));
    let read = config(&place).sync.expect("there is one").key;
    let hex: String = read.0.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, key.out.trim());
}

#[tokio::test]
async fn a_virtual_mac_is_taken_as_long_as_a_router_needs_it() {
    let place = Place::new(&format!("{WEB}{ROUTER}virtual_mac = true\n"));
    let lbd = place.start().await;
    let mac = [0, 0, 0x5e, 0, 1, 51];
    let take_mac = async |take| {
        let (done, answered) = mpsc::sync_channel(1);
        let done = Answered(done);
        lbd.script.vrrp.send(Report::TakeMac { mac, take, done }).expect("lbd receives it");
        let wait = move || answered.recv_timeout(Duration::from_secs(5));
        tokio::task::spawn_blocking(wait).await.expect("no panic").expect("it is answered");
        lbd.script.recorder.of(|recorded| match recorded {
            recorded if *recorded == Recorded::take_mac(mac, true) => Some(true),
            recorded if *recorded == Recorded::take_mac(mac, false) => Some(false),
            _ => None,
        })
    };
    assert_eq!(take_mac(true).await, [true]);
    assert_eq!(take_mac(true).await, [true]);
    assert_eq!(take_mac(false).await, [true], "who has asked first needs it");
    assert_eq!(take_mac(false).await, [true, false]);
    lbd.stop().await;
}
