//! The API: the bytes of a connection, any of them, to the routes of `lbd` with a daemon over
//! maps in memory.
//!
//! Nothing panics, no answer is 500 but to requests that maps in memory can't serve, the daemon answers
//! afterwards, and its state file can be read again. Nothing leaves the process but files in a
//! folder of its own.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    io::Cursor,
    net::IpAddr,
    ops::ControlFlow,
    path::Path,
    pin::pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use axum::{Router, body::Body};
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Body as _, Bytes, Incoming},
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use lb_api::{
    check_status::{CheckStatus, Load},
    routers::RouterStatus,
};
use lb_common::abi::{self, FlowKey, FlowValue, mapped};
use lb_config::Config;
use lb_control::engine::Engine;
use lb_daemon::{
    api::{self, server},
    clock::Clocks,
    daemon::{Checks, Daemon, DaemonInputs, Effects},
    state_file::{self, Loaded},
};
use lb_health::prober::Assignment;
use lb_inspect::flows::Source;
use lb_model::{
    desired::{Protocol, ServiceKey},
    flow::{FlowRef, FlowTable},
    hop::{Neighbourhood, NextHop, Resolution},
    router::State,
    seen::BackendKey,
    settings::Limits,
};
use lb_observe::{events::Events, samples::Samples};
use lb_plane::fake::Fake;
use lb_threads::systemd::Notifier;
use lb_vrrp::{Order, Report, Vrrp};
use tokio::sync::{mpsc, oneshot, watch};

/// Requests that fail here and not in `lbd`: maps in memory have no program, and this process has no log.
const EXCUSED: [&str; 2] = ["there is no program in the kernel", "there is no log"];

/// Where the folder of a daemon is: in memory, if that can be.
const MEMORY: &str = "/dev/shm";

const SERVICES: &str = r#"
[[service]]
name = "web"
vip = "10.0.0.100"
port = 80
protocol = "tcp"
mode = "dsr"
ring_slots = 101
backend = [{ address = "10.0.0.11" }, { address = "10.0.0.12", weight = 3 }]

[[service]]
name = "dns"
vip = "fd00::100"
port = 53
protocol = "udp"
mode = "ipip"
udp = "tracked"
ring_slots = 101
backend = [{ address = "fd00::11" }]

[[virtual_router]]
name = "main"
interface = "eth0"
vrid = 51
addresses = ["10.0.0.100"]
"#;

/// Takes the bytes of a connection.
pub fn run(bytes: &[u8]) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().build().expect("a runtime");
    let folder = tempfile::Builder::new().prefix("lb-fuzz-").tempdir_in(MEMORY);
    let folder = folder.or_else(|_| tempfile::tempdir()).expect("a temporary folder");
    runtime.block_on(serve(folder.path(), bytes.to_vec()));
    let kept = state_file::load(&folder.path().join("state.json")).expect("it can be read");
    assert!(!matches!(kept, Loaded::SetAside { .. }), "what was kept is no state: {kept:?}");
    // Its tasks end with it; threads that compute are not waited for.
    runtime.shutdown_background();
}

async fn serve(folder: &Path, bytes: Vec<u8>) {
    let (router, requests) = start(folder).await;
    let service = service_fn(|request| {
        let router = router.clone();
        async move { Ok::<_, Infallible>(answer(router, request).await) }
    });
    let stream = tokio::io::join(Cursor::new(bytes), tokio::io::sink());
    let mut http = http1::Builder::new();
    // A client that has sent everything is still answered.
    let connection = http.half_close(true).serve_connection(TokioIo::new(stream), service);
    // An error is a request that is none.
    let _ = connection.await;
    let (reply, status) = oneshot::channel();
    // It has ended, or answers.
    if requests.send(api::Request::Status(reply)).await.is_ok() {
        let status = status.await;
        assert!(!matches!(status, Ok(Err(_))), "it does not report its state: {status:?}");
    }
}

/// The answer, without later data.
async fn answer(router: Router, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let what = format!("{} {}", request.method(), request.uri());
    let Ok(answer) = TowerToHyperService::new(router).call(request).await;
    let (head, body) = answer.into_parts();
    let bytes = at_once(body);
    if head.status == StatusCode::INTERNAL_SERVER_ERROR {
        let why = String::from_utf8_lossy(&bytes);
        assert!(EXCUSED.iter().any(|words| why.contains(words)), "500 to {what}: {why}");
    }
    Response::from_parts(head, Full::new(bytes))
}

/// As much of a body as is there: some go on for ever.
fn at_once(body: Body) -> Bytes {
    let mut body = pin!(body);
    let mut bytes = Vec::new();
    let mut context = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(&mut context) {
        bytes.extend(frame.into_data().unwrap_or_default());
    }
    bytes.into()
}

/// Starts a daemon over maps in memory; its routes, and where it takes requests.
async fn start(folder: &Path) -> (Router, mpsc::Sender<api::Request>) {
    let file = folder.join("lb.toml");
    let at = |name: &str| folder.join(name).display().to_string();
    let text = format!(
        "interfaces = [\"eth0\"]\nseed = \"000102030405060708090a0b0c0d0e0f\"\nsocket = \"{}\"\nstate_file = \"{}\"\n{SERVICES}",
        at("lbd.sock"),
        at("state.json"),
    );
    fs::write(&file, &text).expect("the configuration is written");
    let config = Config::parse(&text).expect("the configuration is valid");
    let mut settings = config.settings(false).expect("the seed is given");
    settings.limits = Limits { services: 8, backends: 16, ..Limits::default() };
    let mut maps = Fake::new(settings.limits);
    maps.set_interface("eth0", None);
    let engine = Engine::adopt(maps, &settings).expect("the maps are empty");
    let (neighbours_to, neighbours) = watch::channel(Neighbourhood::default());
    let (vrrp_to, vrrp) = mpsc::unbounded_channel();
    // Nothing is sent on these.
    let (reports_to, reports) = mpsc::unbounded_channel();
    let (peers_to, peers) = mpsc::unbounded_channel();
    let (signals_to, signals) = mpsc::channel(1);
    let events = Events::new(SystemTime::UNIX_EPOCH);
    let effects = Effects {
        want: Box::new(move |wants| {
            let hops = wants.into_iter().map(|want| (want, Resolution::Resolved(hop()))).collect();
            neighbours_to.send_modify(|neighbourhood| neighbourhood.hops = hops);
        }),
        at_tc: Box::new(|_| {}),
        doubt: Box::new(|_| {}),
        answered: Box::new(|_| {}),
        detach: Box::new(|| Ok(vec!["link-eth0".into()])),
        clocks: Box::new(|| Clocks {
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            boot: Duration::from_secs(1_000),
        }),
        vrrp: Box::new(Neighbour { vrrp: vrrp_to, routers: Mutex::default() }),
        peers: None,
        listeners: Default::default(),
        set_http: Box::new(|_| {}),
        events: events.clone(),
        notifier: Notifier::default(),
    };
    let daemon = Daemon::new(engine, Box::new(Unasked), effects, file, config)
        .expect("there is no state yet");
    let (requests_to, requests) = mpsc::channel(64);
    let (ready_to, ready) = oneshot::channel();
    let inputs = DaemonInputs { requests, signals, neighbours, reports, vrrp, peers };
    tokio::spawn(async move {
        let _open = (reports_to, peers_to, signals_to);
        daemon.run(inputs, ready_to).await.expect("it ends by the signal");
    });
    ready.await.expect("it gets ready");
    let samples = Samples::start(requests_to.clone());
    let router = server::router(requests_to.clone(), events, samples, Arc::new(Tables));
    (router, requests_to)
}

fn hop() -> NextHop {
    NextHop {
        ifindex: 2,
        interface: "eth0".into(),
        mac: [2, 0, 0, 0, 0, 1],
        l2: vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0],
        mtu: 1500,
    }
}

/// Health checks without probes.
struct Unasked;

impl Checks for Unasked {
    fn assign(&self, _: BTreeMap<BackendKey, Assignment>) {}

    fn suspect(&self, _: BackendKey, _: String) {}

    fn status(&self) -> BTreeMap<BackendKey, CheckStatus> {
        BTreeMap::new()
    }

    fn load(&self) -> Load {
        Load::default()
    }
}

/// Virtual routers that are Active, and yield to a neighbour by an order.
struct Neighbour {
    vrrp: mpsc::UnboundedSender<Report>,
    routers: Mutex<Vec<RouterStatus>>,
}

impl Vrrp for Neighbour {
    fn order(&self, order: Order) {
        match order {
            Order::Configure(routers) => {
                let status = routers.routers.into_iter().map(|router| RouterStatus {
                    name: router.name,
                    key: router.key,
                    interface: router.interface,
                    source: Some(IpAddr::from([10, 0, 0, 2])),
                    group: None,
                    state: State::Active,
                    since: SystemTime::UNIX_EPOCH,
                    cause: "no advertisement was received".into(),
                    base_priority: router.priority.get(),
                    priority: router.priority.get(),
                    interval_millis: 1_000,
                    active: None,
                    addresses: router.addresses.iter().map(|a| a.address.to_string()).collect(),
                    problems: Vec::new(),
                    holds_back: None,
                    wants: false,
                    lowered: false,
                    counters: Default::default(),
                });
                *self.routers.lock().expect("nobody panics") = status.collect();
            }
            Order::Yield(router, _) => {
                let by = Ok(IpAddr::from([10, 0, 0, 3]));
                // The daemon may have ended.
                let _ = self.vrrp.send(Report::Yielded { router, by });
            }
            Order::Stop { .. } => {
                let _ = self.vrrp.send(Report::Stopped);
            }
            Order::ExternalState(_) | Order::Take(_) => {}
        }
    }

    fn status(&self) -> Vec<RouterStatus> {
        self.routers.lock().expect("nobody panics").clone()
    }
}

/// Tables with a service and a few flows.
struct Tables;

impl Source for Tables {
    fn services(&self) -> anyhow::Result<BTreeMap<ServiceKey, abi::Service>> {
        let vip = IpAddr::from([10, 0, 0, 100]);
        let key = ServiceKey::new(vip, 80, Protocol::Tcp);
        let service = abi::Service {
            keys: [0; 6],
            slots: 101,
            id: 1,
            udp_policy: 0,
            flags: 0,
            idle_timeout: 900,
            syn_budget: 0,
        };
        Ok([(key, service)].into())
    }

    fn backends(&self) -> anyhow::Result<BTreeMap<u16, abi::Backend>> {
        let backend: abi::Backend = zerocopy::FromZeros::new_zeroed();
        let address = mapped([10, 0, 0, 11]);
        Ok([(1, abi::Backend { address, address_v4: [10, 0, 0, 11], ..backend })].into())
    }

    fn walk(
        &self,
        table: FlowTable,
        visit: &mut dyn FnMut(FlowRef, FlowValue) -> ControlFlow<()>,
    ) -> anyhow::Result<()> {
        if table != FlowTable::Pins {
            return Ok(());
        }
        for number in 0..4_u8 {
            let source = mapped([198, 51, 100, number]);
            let key = FlowKey::new(source, 4_000.into(), 1);
            let value = FlowValue { backend: u16::from(number), flags: 0, seen: 0 };
            if visit(FlowRef::Pin(key), value).is_break() {
                break;
            }
        }
        Ok(())
    }
}
