//! `lbd`: the load balancer's daemon.

use std::{
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use lb_cli::cli::{self, Lbd};
use lb_config::Config;
use lb_control::engine::Engine;
use lb_daemon::{
    api::{server, socket},
    clock::Clocks,
    daemon::{Connection, Daemon, DaemonInputs, Effects, Signal},
    egress::Checker,
    logs,
    web::HttpServer,
};
use lb_datapath::{TxErrors, Xdp};
use lb_health::prober::Prober;
use lb_model::settings::XdpModes;
use lb_netlink::{Resolver, path_mtu, striding::empty_first_buffers, trunks};
use lb_observe::{events::Events, samples::Samples};
use lb_sync::thread::SyncThread;
use lb_threads::systemd::Notifier;
use lb_vrrp::{release::NOT_STARTED, thread::Thread};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
};

/// The exit status for a mistake in the configuration, which trying again does not mend.
const MISTAKEN: u8 = 2;

fn main() -> ExitCode {
    let args = Lbd::parse();
    if let Some(file) = &args.check {
        return cli::check_config(file);
    }
    if let Some(pin_dir) = &args.prepare {
        return prepare(pin_dir);
    }
    if args.release {
        return release();
    }
    // Before anything that takes time: a stop that kills lbd leaves the addresses of virtual routers that one before
    // has left, though no node serves them.
    let (runtime, signals) = match begin() {
        Ok(begun) => begun,
        Err(error) => {
            eprintln!("lbd: {error:#}");
            return ExitCode::from(NOT_STARTED);
        }
    };
    let config = match Config::load_to_start(&args.config) {
        Ok(config) => config,
        Err(lb_config::Error::Invalid(invalid)) => {
            eprintln!("{invalid}");
            return ExitCode::from(if invalid.is_mistaken() { MISTAKEN } else { NOT_STARTED });
        }
        Err(error) => {
            eprintln!("lbd: {:#}; name another with --config", anyhow::Error::from(error));
            return ExitCode::from(NOT_STARTED);
        }
    };
    if let Err(error) = logs::start(&config.log) {
        eprintln!("lbd: {error:#}");
        return ExitCode::from(MISTAKEN);
    }
    let is_starting = AtomicBool::new(false);
    warn_of(&args.config, &config);
    match runtime.block_on(serve(&args.config, config, args.force, signals, &is_starting)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lbd: {error:#}");
            if is_starting.into_inner() { ExitCode::from(NOT_STARTED) } else { ExitCode::FAILURE }
        }
    }
}

fn release() -> ExitCode {
    match lb_vrrp::release::after_end(&lb_vrrp::release::End::from_env()) {
        Ok(done) => {
            done.iter().for_each(|line| println!("{line}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("lbd: release addresses: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn prepare(pin_dir: &Path) -> ExitCode {
    match lb_datapath::prepare(pin_dir) {
        Ok(done) => {
            done.iter().for_each(|line| println!("{line}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("lbd: prepare {}: {error:#}", pin_dir.display());
            ExitCode::FAILURE
        }
    }
}

/// Starts the runtime, and receives signals from then on.
fn begin() -> Result<(Runtime, mpsc::Receiver<Signal>)> {
    // The engine has one thread while it writes maps; the other answers meanwhile.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let signals = {
        let _inside = runtime.enter();
        listen_to_signals()?
    };
    Ok((runtime, signals))
}

fn warn_of(file: &Path, config: &Config) {
    for warning in &config.warnings {
        tracing::warn!("{}:{warning}", file.display());
    }
    if let Some(lacks) = &config.http_lacks {
        let why = lacks.why();
        tracing::warn!("HTTP requests are not answered: {why}; trying again each second");
    }
}

async fn serve(
    file: &Path,
    config: Config,
    force: bool,
    signals: mpsc::Receiver<Signal>,
    is_starting: &AtomicBool,
) -> Result<()> {
    // Only the process that has the socket may write the maps.
    let (listener, _file) = socket::bind(&config.socket, &config.group)?;
    is_starting.store(true, Ordering::Relaxed);
    let settings = config.settings(force)?;
    let pin_dir = config.pin_dir.clone();
    let mut xdp = Xdp::open(&settings)?;
    if let Some(log) = xdp.take_log() {
        tokio::spawn(log.run());
    }
    let flows = Arc::new(xdp.flow_reader()?);
    let tx_errors = TxErrors::attach().inspect_err(|error| {
        tracing::warn!("frames that are lost after XDP has sent them are not counted: {error:#}");
    });
    for name in trunks::stripped(&config.interfaces) {
        tracing::warn!(
            "{name} takes VLAN tags off in hardware (rxvlan): ICMP errors for packets of its VLANs \
             leave untagged, and path MTU discovery fails there; ethtool -K {name} rxvlan off"
        );
    }
    for name in config.interfaces.iter().filter(|_| settings.xdp != XdpModes::Generic) {
        for found in empty_first_buffers(name, lb_datapath::pulls_data()) {
            let (fix, largest) = (found.fix(), found.largest);
            tracing::warn!(
                "{found}: no frame is balanced, they pass to this host as truncated; {fix}, or an MTU of {largest}"
            );
        }
    }
    let named = config.interfaces.clone();
    let egress = Checker::start(xdp.live_program()?, config.interfaces.clone(), tx_errors.ok())?;
    let engine = Engine::adopt(xdp, &settings).context("adopt the maps")?;
    let (resolver, neighbours) = Resolver::start(config.interfaces.clone())
        .await
        .context("follow the kernel's neighbours")?;
    let (vrrp_to, vrrp) = mpsc::unbounded_channel();
    let routers = Thread::start(vrrp_to).context("start the virtual routers")?;
    let (peers_to, peers) = mpsc::unbounded_channel();
    let connection = config.sync.clone().map(|config| {
        let link = SyncThread::start(config.clone(), peers_to)
            .context("open the connection to the peers")?;
        anyhow::Ok(Connection { peers: Box::new(link), config, seed: settings.seed })
    });
    let events = Events::new(SystemTime::now());
    // As many changes at once are written together.
    let (requests_to, requests) = mpsc::channel(1_024);
    let samples = Samples::start(requests_to.clone());
    let http = HttpServer::start(requests_to.clone(), events.clone(), samples.clone())?;
    let resolver = Arc::new(resolver);
    let doubter = Arc::clone(&resolver);
    let narrower = Arc::clone(&resolver);
    let hooked = Arc::clone(&resolver);
    let prober_of_answered = Arc::clone(&resolver);
    let paths = path_mtu::Listener::start(config.tunnel, move |backend, mtu| {
        narrower.narrow(backend, mtu);
    });
    let effects = Effects {
        want: Box::new(move |wants| {
            paths.want(&wants);
            resolver.want(wants);
        }),
        at_tc: Box::new(move |interfaces| hooked.set_at_tc(interfaces)),
        doubt: Box::new(move |backend| doubter.doubt(backend)),
        answered: Box::new(move |stations| prober_of_answered.probe(stations)),
        detach: Box::new(move || lb_datapath::detach(&pin_dir)),
        clocks: Box::new(Clocks::read),
        vrrp: Box::new(routers),
        peers: connection.transpose()?,
        listeners: http.listeners(),
        set_http: Box::new(move |config| http.set(config)),
        events: events.clone(),
        notifier: Notifier::from_env(),
    };
    let (prober, reports) = Prober::start().context("start the health checks")?;
    // `lbctl` names it from other folders.
    let file = std::path::absolute(file).context("find the configuration's file")?;
    let daemon = Daemon::new(engine, Box::new(prober), effects, file, config)?
        .with_egress(Box::new(egress))
        .with_trunks(Box::new(move || trunks::stripped(&named)));

    let (ready_to, _ready) = oneshot::channel();
    let (stop, stopped) = oneshot::channel();
    let server =
        tokio::spawn(server::serve(listener, requests_to, events, samples, flows, stopped));
    let inputs = DaemonInputs { requests, signals, neighbours, reports, vrrp, peers };
    is_starting.store(false, Ordering::Relaxed);
    let ended = tokio::spawn(daemon.run(inputs, ready_to)).await?;
    // The last answer goes out before the process ends; a client that hangs does not hold it up.
    drop(stop);
    let _ = tokio::time::timeout(Duration::from_secs(1), server).await;
    ended.map(drop)
}

fn listen_to_signals() -> Result<mpsc::Receiver<Signal>> {
    let (to, signals) = mpsc::channel(4);
    for (kind, meaning) in [
        (SignalKind::hangup(), Signal::Reload),
        (SignalKind::terminate(), Signal::Stop),
        (SignalKind::interrupt(), Signal::Stop),
    ] {
        let mut stream = signal(kind).context("listen to signals")?;
        let to = to.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() && to.send(meaning).await.is_ok() {}
        });
    }
    Ok(signals)
}
