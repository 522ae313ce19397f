//! The prober on the balancer, its ways to the web hosts, and the connections and resets that it leaves there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    lab::{Host, Lab, VIPS_V4, VIPS_V6},
    namespace::Namespace,
    wait,
    ways::Way,
};
use lb_health::vip::{self, Error, Network, Stream};
use lb_model::{
    desired::Mode,
    hop::{NextHop, Resolution, Want},
    settings::Tunnel,
};
use lb_netlink::Resolver;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

/// How long anything may take that happens at once.
pub const SOON: Duration = Duration::from_secs(5);
/// How long silence is waited for.
pub const SILENCE: Duration = Duration::from_millis(300);

/// The prober, on the balancer.
pub struct Prober {
    pub network: Network,
    hops: BTreeMap<Want, NextHop>,
}

/// The result of a probe: `None` is silence.
pub type Answer<T> = Option<Result<T, Error>>;

impl Prober {
    /// Runs `work` on the balancer, in one thread.
    pub fn run<T: Send>(lab: &Lab, work: impl AsyncFnOnce(&Self) -> Result<T> + Send) -> Result<T> {
        lab.balancer.namespace.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let prober = Self { network: Network::new(), hops: hops(lab).await? };
                prober.network.set_vips(vips());
                first(&prober.network, &prober.path(lab, Way::DsrV4, 0)).await?;
                work(&prober).await
            })
        })?
    }

    /// The path to one web host.
    pub fn path(&self, lab: &Lab, way: Way, web: usize) -> vip::ProbePath {
        let want = want(lab, way, web);
        vip::ProbePath {
            vip: way.vip(),
            backend: want.address,
            mode: want.mode,
            hop: self.hops[&want].clone(),
            tunnel: Tunnel::default(),
        }
    }

    pub async fn handshake(&self, path: &vip::ProbePath) -> Result<(), Error> {
        let shaken = timeout(SOON, self.network.handshake(path, 80)).await;
        shaken.unwrap_or_else(|_| panic!("{} is silent at {}", path.vip, path.backend))
    }

    /// The result of a handshake within [`SILENCE`].
    pub async fn brief(&self, path: &vip::ProbePath) -> Answer<()> {
        timeout(SILENCE, self.network.handshake(path, 80)).await.ok()
    }

    /// The answer to `GET uri`, to its end.
    pub async fn get(&self, path: &vip::ProbePath, uri: &str) -> Result<Vec<u8>> {
        let mut stream = self.network.connect(path, 80).await?;
        request(&mut stream, uri).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.context("read the answer")?;
        Ok(answer)
    }
}

/// The result of the first handshake. On a busy machine it takes a while until the node's addresses are
/// known, and no probe waits for that.
pub async fn first(network: &Network, path: &vip::ProbePath) -> Result<Answer<()>> {
    let attempt = timeout(2 * SOON, async {
        loop {
            let answer = timeout(SILENCE, network.handshake(path, 80)).await.ok();
            let Some(Err(Error::Local(text))) = &answer else { return answer };
            if !text.contains("addresses are not known yet") {
                return answer;
            }
        }
    });
    attempt.await.context("the node's addresses stay unknown")
}

pub async fn request(stream: &mut Stream, path: &str) -> Result<()> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context("write the request")
}

pub fn vips() -> BTreeSet<IpAddr> {
    VIPS_V4.map(IpAddr::from).into_iter().chain(VIPS_V6.map(IpAddr::from)).collect()
}

pub fn want(lab: &Lab, way: Way, web: usize) -> Want {
    let mode = if way.overhead() == 0 { Mode::Dsr } else { Mode::Ipip };
    Want { address: way.backend(&lab.webs[web]), mode }
}

/// The next hops of all web hosts.
pub async fn hops(lab: &Lab) -> Result<BTreeMap<Want, NextHop>> {
    let (resolver, mut neighbourhood) = Resolver::start(vec!["eth0".into()]).await?;
    let webs = 0..lab.webs.len();
    let wants: BTreeSet<_> =
        webs.flat_map(|web| Way::DIRECT_RETURN.map(|way| want(lab, way, web))).collect();
    resolver.want(wants.clone());
    let all = neighbourhood.wait_for(|now| {
        let resolved = |want| matches!(now.hops.get(want), Some(Resolution::Resolved(_)));
        wants.iter().all(resolved)
    });
    let all = timeout(2 * SOON, all).await.context("the web hosts are not found")??;
    let resolved = all.hops.iter().filter_map(|(want, resolution)| match resolution {
        Resolution::Resolved(hop) => Some((*want, hop.clone())),
        _ => None,
    });
    Ok(resolved.collect())
}

/// Takes the VIPs from the balancer, as on a node that is the backup.
pub fn become_backup(host: &Host) -> Result<()> {
    let lines: String = vips().iter().map(|vip| format!("addr del {vip} dev eth0\n")).collect();
    host.namespace.ip(&lines).map(drop)
}

/// How many RSTs the kernel of a host has sent.
pub fn resets(host: &Host) -> Result<u64> {
    let snmp = host.namespace.enter(|| fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = snmp.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(name, _)| *name == "OutRsts").context("OutRsts")?;
    value.parse().context("a number")
}

/// How many connections of port 80 a host has in a state, as /proc/net/tcp numbers it.
pub fn connections(namespace: &Namespace, state: &str) -> Result<usize> {
    let tables = namespace.enter(|| -> std::io::Result<String> {
        let v4 = fs::read_to_string("/proc/thread-self/net/tcp")?;
        Ok(v4 + &fs::read_to_string("/proc/thread-self/net/tcp6")?)
    })??;
    let of = tables.lines().filter(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().is_some_and(|local| local.ends_with(":0050"));
        local && fields.nth(1) == Some(state)
    });
    Ok(of.count())
}

pub const ESTABLISHED: &str = "01";
pub const SYN_RECEIVED: &str = "03";

/// Bytes that a host's open IPv4 connections have sent and not been acknowledged, and those that
/// have come and are not read.
pub fn queues(namespace: &Namespace) -> Result<(u64, u64)> {
    let table = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/tcp"))??;
    let mut queues = (0, 0);
    for line in table.lines() {
        let mut fields = line.split_whitespace().skip(3);
        if fields.next() == Some(ESTABLISHED) {
            let (sent, received) =
                fields.next().and_then(|both| both.split_once(':')).context("queues")?;
            queues.0 += u64::from_str_radix(sent, 16)?;
            queues.1 += u64::from_str_radix(received, 16)?;
        }
    }
    Ok(queues)
}

/// Waits until no web host has a connection that is open or half open.
pub fn all_closed(lab: &Lab) -> Result<()> {
    wait::until(SOON, "all connections are closed", || {
        for web in &lab.webs {
            for state in [ESTABLISHED, SYN_RECEIVED] {
                let left = connections(&web.host.namespace, state)?;
                ensure!(left == 0, "{}: {left} in state {state}", web.host.name);
            }
        }
        Ok(())
    })
}
