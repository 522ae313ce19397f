//! QUIC: real servers behind a service with `udp = "quic"`, real clients, and changes of every
//! backend in turn: no handshake under way and no connection breaks.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use kit::{
    balancer::{Balancer, Service},
    can_run,
    lab::{Lab, Options, Web},
    namespace::Namespace,
    ways::Way,
};
use quinn::{
    ClientConfig, Endpoint, EndpointConfig, Incoming, ServerConfig, TokioRuntime,
    rustls::{RootCertStore, pki_types::PrivatePkcs8KeyDer},
};
use tokio::{
    runtime::Runtime,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

const PORT: u16 = 443;
const TICK: Duration = Duration::from_millis(20);
const NAME: &str = "lb.test";
/// Clients at once; each opens one connection after the other.
const CLIENTS: u64 = 40;
/// How long a server takes for each step of a handshake, so that changes come between them.
const STEP: Duration = Duration::from_millis(40);
/// Between two changes.
const BEAT: Duration = Duration::from_millis(300);
/// How long a step of a connection, or the end of all connections of a server, may take at most.
const LIMIT: Duration = Duration::from_secs(60);

/// The shared state of servers and clients.
struct Keys {
    /// By host. Each has a key of its own for the tokens of Retry packets, and keeps it when its server
    /// is restarted, so a client that has one from one host is taken by no other.
    servers: BTreeMap<String, ServerConfig>,
    client: ClientConfig,
}

impl Keys {
    fn new(lab: &Lab) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let certificate = made.cert.der();
        let server = |web: &Web| -> Result<_> {
            let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
            let config = ServerConfig::with_single_cert(vec![certificate.clone()], key.into())?;
            Ok((web.host.name.clone(), config))
        };
        let servers = lab.webs.iter().map(server).collect::<Result<_>>()?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone())?;
        Ok(Self { servers, client: ClientConfig::with_root_certificates(Arc::new(roots))? })
    }
}

/// A server on a web host, which answers each stream with the host's name.
struct Server {
    endpoint: Endpoint,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Starts it on the VIP, on the runtime that this is called in.
    fn start(web: &Web, at: SocketAddr, keys: &Keys) -> Result<Self> {
        let socket = socket(&web.host.namespace, at)?;
        let name = web.host.name.clone();
        let config = keys.servers.get(&name).cloned();
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new(EndpointConfig::default(), config, socket, runtime)?;
        let server = endpoint.clone();
        let accepting = tokio::spawn(async move {
            while let Some(incoming) = server.accept().await {
                // A client whose connection breaks prints an error.
                tokio::spawn(serve(incoming, name.clone()));
            }
        });
        Ok(Self { endpoint, accepting })
    }

    /// Waits until the last connection has ended, and ends without a message.
    async fn finish(self) -> Result<()> {
        let idle = async {
            while self.endpoint.open_connections() > 0 {
                sleep(TICK).await;
            }
        };
        let left = || format!("{} connections are left", self.endpoint.open_connections());
        timeout(LIMIT, idle).await.with_context(left)?;
        self.accepting.abort();
        Ok(())
    }
}

fn socket(namespace: &Namespace, at: SocketAddr) -> Result<UdpSocket> {
    namespace.enter(|| UdpSocket::bind(at))?.with_context(|| format!("bind {at}"))
}

/// Has the client prove its address first (Retry), so that the handshake has one round trip more and
/// a second Initial packet that no other server takes.
async fn serve(incoming: Incoming, name: String) -> Result<()> {
    sleep(STEP).await;
    if !incoming.remote_address_validated() {
        return Ok(incoming.retry()?);
    }
    let connection = incoming.await?;
    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
        let payload = receive.read_to_end(64 << 10).await?;
        send.write_all(name.as_bytes()).await?;
        send.write_all(&payload).await?;
        send.finish()?;
    }
    Ok(())
}

/// The results of the connections.
#[derive(Debug, Default)]
struct Report {
    /// Connections that ended well, by host.
    by_host: BTreeMap<String, u64>,
    /// When handshakes began and ended.
    handshakes: Vec<(Instant, Instant)>,
    /// The broken connections, and when they had begun.
    failures: Vec<(Instant, String)>,
}

/// Clients at work.
struct Clients {
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<Report>>,
    tasks: JoinSet<()>,
}

impl Clients {
    fn start(from: &Namespace, to: SocketAddr, config: &ClientConfig) -> Self {
        let (stop, report) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Report>>::default());
        let mut tasks = JoinSet::new();
        for n in 0..CLIENTS {
            let (stop, report) = (Arc::clone(&stop), Arc::clone(&report));
            let (path, config) = (from.path(), config.clone());
            tasks.spawn(async move {
                for turn in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let begun = Instant::now();
                    // From 1 to 13 requests: connections of every age at every moment.
                    let requests = 1 + (n * 7 + turn * 5) % 13;
                    let ended = connection(&path, to, &config, requests).await;
                    let mut report = report.lock().expect("no holder panics");
                    match ended {
                        Ok((host, there)) => {
                            *report.by_host.entry(host).or_default() += 1;
                            report.handshakes.push((begun, there));
                        }
                        Err(err) => report.failures.push((begun, format!("{err:#}"))),
                    }
                }
            });
        }
        Self { stop, report, tasks }
    }

    async fn finish(mut self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a client panicked")?;
        }
        let mut report = self.report.lock().expect("no holder panics");
        Ok(std::mem::take(&mut report))
    }
}

/// A connection from a port of its own with so many requests; which host it was on, and when its
/// handshake was over.
async fn connection(
    from: &std::path::Path,
    to: SocketAddr,
    config: &ClientConfig,
    requests: u64,
) -> Result<(String, Instant)> {
    let from = from.to_owned();
    let opened = tokio::task::spawn_blocking(move || {
        std::thread::spawn(move || {
            kit::namespace::join(&from)?;
            Ok::<_, anyhow::Error>(UdpSocket::bind(("0.0.0.0", 0))?)
        })
        .join()
    });
    let socket = opened.await?.map_err(|_| anyhow!("the thread of a socket panicked"))??;
    let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))?;
    let connecting = endpoint.connect_with(config.clone(), to, NAME)?;
    let connection = timeout(LIMIT, connecting).await.context("handshake")?.context("handshake")?;
    let (there, mut host) = (Instant::now(), None);
    for n in 0..requests {
        let answer = timeout(LIMIT, request(&connection, n)).await;
        let answer = answer.with_context(|| format!("request {n}"))?;
        let answer = answer.with_context(|| format!("request {n}, on {host:?}"))?;
        ensure!(host.get_or_insert(answer.clone()) == &answer, "on {host:?}, then on {answer}");
        sleep(Duration::from_millis(100)).await;
    }
    connection.close(0_u32.into(), b"");
    endpoint.wait_idle().await;
    Ok((host.context("there is a request at least")?, there))
}

/// Which host answers.
async fn request(connection: &quinn::Connection, n: u64) -> Result<String> {
    let payload = vec![b'0' + (n % 10) as u8; 4_000];
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(&payload).await?;
    send.finish()?;
    let mut answer = receive.read_to_end(64 << 10).await?;
    ensure!(answer.ends_with(&payload), "another answer: {} bytes", answer.len());
    answer.truncate(answer.len() - payload.len());
    Ok(String::from_utf8(answer)?)
}

/// Changes of every backend in turn; returns when they were made.
async fn change_all(
    lab: &Lab,
    balancer: &Balancer,
    servers: &mut Vec<Server>,
    start: impl Fn(&Web) -> Result<Server>,
) -> Result<Vec<Instant>> {
    let mut changes = Vec::new();
    for web in &lab.webs {
        let address = Way::DsrV4.backend(web).to_string();
        let mut change = async |what: &[&str]| -> Result<()> {
            balancer.lbctl(&[&["backend", what[0], "quic", &address], &what[1..]].concat())?;
            changes.push(Instant::now());
            sleep(BEAT).await;
            Ok(())
        };
        for what in [&["weight", "5"][..], &["weight", "1"], &["disable"], &["enable"]] {
            change(what).await?;
        }
        // Removed with connections on it, it stays until they end; added again, it takes new ones.
        change(&["remove"]).await?;
        change(&["add"]).await?;
        // As an operator restarts a server: drained, until the last connection has ended.
        change(&["drain"]).await?;
        servers.remove(0).finish().await.with_context(|| format!("drain of {address}"))?;
        let again = async {
            loop {
                // The port is free when the old server's task has ended.
                match start(web) {
                    Ok(server) => break server,
                    Err(_) => sleep(TICK).await,
                }
            }
        };
        servers.push(timeout(LIMIT, again).await.context("start the server again")?);
        change(&["enable"]).await?;
    }
    Ok(changes)
}

#[test]
fn no_quic_handshake_or_connection_breaks_while_every_backend_is_changed() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    let at = SocketAddr::new(Way::DsrV4.vip(), PORT);
    let service = Service {
        name: "quic".into(),
        port: PORT,
        protocol: "udp",
        ..Way::DsrV4.service(&lab).with("udp = \"quic\"")
    };
    let balancer = Balancer::start(&lab, &[service])?;
    let keys = Keys::new(&lab)?;
    Runtime::new()?.block_on(async {
        let start = |web: &Web| Server::start(web, at, &keys);
        let mut servers = lab.webs.iter().map(start).collect::<Result<Vec<_>>>()?;
        let clients = Clients::start(&lab.client.namespace, at, &keys.client);
        sleep(BEAT).await;
        let changes = change_all(&lab, &balancer, &mut servers, start).await;
        let report = clients.finish().await?;
        let changes = changes?;
        let total: u64 = report.by_host.values().sum();
        let spans = |&&(begun, there): &&(Instant, Instant)| {
            changes.iter().any(|change| (begun..there).contains(change))
        };
        let under_way = report.handshakes.iter().filter(spans).count();
        println!(
            "{total} connections, {:?}; {} changes, {under_way} handshakes under way in one; {} broke",
            report.by_host,
            changes.len(),
            report.failures.len()
        );
        ensure!(report.failures.is_empty(), "{:?}", report.failures);
        ensure!(report.by_host.len() == lab.webs.len(), "{:?}", report.by_host);
        ensure!(under_way > 0, "no handshake was under way in a change");
        Ok(())
    })
}
