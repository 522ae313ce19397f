//! A daemon over maps in memory, with a resolver that finds all addresses.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use lb_api::{
    client::Client,
    event::{Event, Page},
};
use lb_config::Config;
use lb_control::engine::Engine;
use lb_daemon::{
    api::{server, socket},
    clock::Clocks,
    daemon::{Connection, Daemon, DaemonInputs, Effects, Ended, Signal},
};
use lb_health::prober::{Prober, Report};
use lb_model::{
    hop::{Neighbourhood, NextHop, Resolution},
    settings::Limits,
};
use lb_observe::{events::Events, samples::Samples};
use lb_plane::fake::{Fake, Remote};
use lb_threads::systemd::Notifier;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::fakes::{EngineLog, NoFlows, Recorded, Recorder, Script};

/// Two backends on one TCP service.
pub const WEB: &str = r#"
[[service]]
name = "web"
vip = "10.0.0.100"
port = 80
protocol = "tcp"
mode = "dsr"
ring_slots = 1009
backend = [{ address = "10.0.0.11" }, { address = "10.0.0.12", weight = 3 }]
"#;

/// The folder of one test: configuration, state, socket.
pub struct Place {
    dir: tempfile::TempDir,
    /// By how much the time of day is ahead.
    pub skew: Arc<Mutex<Duration>>,
    /// The maps of the daemon that runs here.
    pub remote: Arc<Remote>,
    pub recorder: Recorder,
    /// The interfaces with VLANs whose tags hardware takes off.
    pub trunks: Arc<Mutex<Vec<String>>>,
    /// The limits of the maps.
    pub limits: Limits,
    /// The maps of a predecessor; none: empty ones.
    pub maps: Mutex<Option<Fake>>,
}

impl Place {
    pub fn new(services: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let limits = Limits { services: 8, backends: 16, ..Limits::default() };
        let (skew, remote, maps) = (Arc::default(), Arc::default(), Mutex::default());
        let (trunks, recorder) = (Arc::default(), Recorder::default());
        let place = Self { dir, skew, remote, recorder, trunks, limits, maps };
        place.configure(services);
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("lbd.sock")
    }

    pub fn file(&self) -> PathBuf {
        self.path("lb.toml")
    }

    /// Writes the configuration.
    pub fn configure(&self, services: &str) {
        let at = |name: &str| self.path(name).display().to_string();
        let text = format!(
            "interfaces = [\"eth0\"]\nseed = \"000102030405060708090a0b0c0d0e0f\"\nsocket = \"{}\"\nstate_file = \"{}\"\n{services}",
            at("lbd.sock"),
            at("state.json"),
        );
        fs::write(self.file(), text).expect("it is written");
    }

    /// Starts a daemon here, with empty maps.
    pub async fn start(&self) -> Running {
        // All addresses of its thread are on loopback.
        let (prober, reports) = Prober::start().expect("a thread");
        self.start_with(prober, reports).await
    }

    /// The same, with reports of one's own.
    pub async fn start_with(
        &self,
        prober: Prober,
        reports: mpsc::UnboundedReceiver<Report>,
    ) -> Running {
        let config = Config::load(&self.file()).expect("the configuration is valid");
        let mut settings = config.settings(false).expect("the seed is given");
        settings.limits = self.limits;
        let mut maps = Fake::new(settings.limits);
        maps.set_interface("eth0", None);
        let mut maps = self.maps.lock().expect("nobody panics").take().unwrap_or(maps);
        maps.set_remote(Arc::clone(&self.remote));
        let log_of_engine = tracing::subscriber::set_default(EngineLog(self.recorder.clone()));
        let engine = Engine::adopt(maps, &settings).expect("they are ours");
        let (neighbours_to, neighbours) = watch::channel(Neighbourhood::default());
        let log = Arc::new(Mutex::new(Vec::new()));
        let events = Events::new(SystemTime::now());
        let detached = Arc::clone(&log);
        let recorder = self.recorder.clone();
        let detached_too = recorder.clone();
        let (vrrp_to, vrrp) = mpsc::unbounded_channel();
        let (peers_to, peers) = mpsc::unbounded_channel();
        let script = Script::new(recorder, vrrp_to, peers_to);
        let connection = config.sync.clone().map(|config| Connection {
            peers: script.connect(&config),
            config,
            seed: settings.seed,
        });
        let effects = Effects {
            want: Box::new(move |wants| {
                let hops = wants.into_iter().map(|want| (want, Resolution::Resolved(hop())));
                let hops: BTreeMap<_, _> = hops.collect();
                neighbours_to.send_if_modified(|neighbourhood| {
                    let differs = neighbourhood.hops != hops;
                    neighbourhood.hops = hops;
                    differs
                });
            }),
            at_tc: Box::new(|_| {}),
            doubt: Box::new(|_| {}),
            answered: Box::new(|_| {}),
            detach: Box::new(move || {
                detached.lock().expect("nobody panics").push("detach");
                detached_too.push(Recorded::Detach);
                Ok(vec!["link-eth0".into()])
            }),
            clocks: {
                let skew = Arc::clone(&self.skew);
                Box::new(move || {
                    let Clocks { wall, boot } = Clocks::read();
                    Clocks { wall: wall + *skew.lock().expect("nobody panics"), boot }
                })
            },
            vrrp: Box::new(script.clone()),
            peers: connection,
            set_http: Box::new(|_| {}),
            listeners: Default::default(),
            events: events.clone(),
            notifier: Notifier::default(),
        };
        let (listener, file) = socket::bind(&config.socket, "root").expect("the socket is free");
        let daemon = Daemon::new(engine, Box::new(prober), effects, self.file(), config)
            .expect("the state is fine");
        let trunks = Arc::clone(&self.trunks);
        let daemon =
            daemon.with_trunks(Box::new(move || trunks.lock().expect("nobody panics").clone()));
        let (requests_to, requests) = mpsc::channel(1_024);
        let (signals, signals_of) = mpsc::channel(4);
        let (ready_to, ready) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let samples = Samples::start(requests_to.clone());
        let flows = Arc::new(NoFlows);
        tokio::spawn(server::serve(listener, requests_to, events, samples, flows, stopped));
        let inputs =
            DaemonInputs { requests, signals: signals_of, neighbours, reports, vrrp, peers };
        let task = tokio::spawn(async move {
            let ended = daemon.run(inputs, ready_to).await;
            drop((stop, file));
            ended
        });
        ready.await.expect("it gets ready");
        Running {
            client: Client::new(self.socket()),
            signals,
            task,
            log,
            script,
            _engine: log_of_engine,
        }
    }
}

pub fn hop() -> NextHop {
    NextHop {
        ifindex: 2,
        interface: "eth0".into(),
        mac: [2, 0, 0, 0, 0, 1],
        l2: vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0],
        mtu: 1500,
    }
}

/// A daemon that runs.
pub struct Running {
    pub client: Client,
    pub signals: mpsc::Sender<Signal>,
    pub task: JoinHandle<anyhow::Result<Ended>>,
    pub log: Arc<Mutex<Vec<&'static str>>>,
    pub script: Script,
    _engine: tracing::subscriber::DefaultGuard,
}

impl Running {
    /// Stops it as SIGTERM does.
    pub async fn stop(self) {
        self.signals.send(Signal::Stop).await.expect("it runs");
        assert_eq!(self.task.await.expect("no panic").expect("no error"), Ended::Stopped);
    }
}

/// The events so far.
pub async fn events(client: &Client) -> Vec<Event> {
    client.get::<Page>("/v1/events").await.expect("it answers").events
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The names in a folder.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a folder");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("it is read").file_name();
    entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect()
}
