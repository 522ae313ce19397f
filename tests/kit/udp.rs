//! UDP through the balancer: hosts that echo, and a probe that counts losses.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{
    lab::{Lab, Web},
    namespace::Namespace,
};

/// How long a socket waits before it looks whether to stop.
const TICK: Duration = Duration::from_millis(50);
/// How long the last answers are waited for.
const GRACE: Duration = Duration::from_secs(1);

/// Echo on every web host: each answers a packet with the host's name and the packet. Stopped when
/// dropped.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    /// Starts it on the VIP itself, so that answers come from there.
    ///
    /// # Errors
    ///
    /// If the port is taken.
    pub fn start(lab: &Lab, vip: impl Into<IpAddr>, port: u16) -> Result<Self> {
        let address = SocketAddr::new(vip.into(), port);
        Self::start_at(lab, |_| address)
    }

    /// The same at an address of each host.
    ///
    /// # Errors
    ///
    /// If the port is taken.
    pub fn start_at(lab: &Lab, address: impl Fn(&Web) -> SocketAddr) -> Result<Self> {
        let mut echo = Self { stop: Arc::default(), threads: Vec::new() };
        for web in &lab.webs {
            let socket = bind(&web.host.namespace, address(web))?;
            let (stop, name) = (Arc::clone(&echo.stop), web.host.name.clone());
            echo.threads.push(thread::spawn(move || serve(&socket, &name, &stop)));
        }
        Ok(echo)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has printed so.
            let _ = thread.join();
        }
    }
}

fn bind(namespace: &Namespace, address: SocketAddr) -> Result<UdpSocket> {
    let socket = namespace.enter(|| UdpSocket::bind(address))?;
    let socket = socket.with_context(|| format!("bind {address} in {}", namespace.name()))?;
    socket.set_read_timeout(Some(TICK)).context("read timeout")?;
    Ok(socket)
}

fn serve(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut packet = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut packet) else { continue };
        let answer = [name.as_bytes(), b" ", &packet[..length]].concat();
        // An answer that can't be sent is missed by the probe.
        let _ = socket.send_to(&answer, from);
    }
}

/// Flows that send numbered packets all the time.
#[derive(Debug)]
pub struct Probe {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Tally>>,
}

/// The results of the probe's packets.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Packets sent.
    pub sent: u64,
    /// Packets not answered, by flow and number.
    pub lost: Vec<(usize, u64)>,
    /// Flows that were answered by more than one host: the hosts.
    pub moved: Vec<Vec<String>>,
}

impl Probe {
    /// Sends from `flows` ports in turn, a packet every `pause`.
    ///
    /// # Errors
    ///
    /// If there are no sockets.
    pub fn start(
        from: &Namespace,
        target: SocketAddr,
        flows: usize,
        pause: Duration,
    ) -> Result<Self> {
        Self::start_of_size(from, target, flows, pause, 0)
    }

    /// The same with packets of at least so many bytes, 2,000 at most: what no frame has room for comes in
    /// fragments.
    ///
    /// # Errors
    ///
    /// If there are no sockets.
    pub fn start_of_size(
        from: &Namespace,
        target: SocketAddr,
        flows: usize,
        pause: Duration,
        bytes: usize,
    ) -> Result<Self> {
        let any: SocketAddr =
            if target.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
        let sockets = (0..flows).map(|_| {
            let socket = bind(from, any)?;
            socket.connect(target).with_context(|| format!("route to {target}"))?;
            socket.set_nonblocking(true).context("non-blocking")?;
            Ok(Flow { socket, bytes, next: 0, answers: BTreeMap::new() })
        });
        let mut flows = sockets.collect::<Result<Vec<_>>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for flow in &mut flows {
                    flow.send()?;
                    flow.receive()?;
                    thread::sleep(pause);
                }
            }
            let end = Instant::now() + GRACE;
            while Instant::now() < end && flows.iter().any(Flow::awaits) {
                for flow in &mut flows {
                    flow.receive()?;
                }
                thread::sleep(TICK);
            }
            Ok(tally(&flows))
        });
        Ok(Self { stop, thread })
    }

    /// Ends it and waits for the last answers. Returns the results.
    ///
    /// # Errors
    ///
    /// If a socket failed.
    pub fn finish(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the probe panicked"))?
    }
}

impl Tally {
    /// That every packet was answered, and every flow by one host.
    ///
    /// # Errors
    ///
    /// If not.
    pub fn check(&self) -> Result<()> {
        let (lost, sent) = (self.lost.len(), self.sent);
        let first = &self.lost[..lost.min(5)];
        ensure!(sent > 0, "nothing was sent");
        ensure!(lost == 0, "{lost} of {sent} packets were lost, first (flow, number) {first:?}");
        ensure!(self.moved.is_empty(), "flows moved: {:?}", self.moved);
        Ok(())
    }
}

#[derive(Debug)]
struct Flow {
    socket: UdpSocket,
    bytes: usize,
    next: u64,
    /// The hosts that answered, by number.
    answers: BTreeMap<u64, String>,
}

impl Flow {
    fn send(&mut self) -> Result<()> {
        let packet = format!("{:<width$}", self.next, width = self.bytes);
        self.socket.send(packet.as_bytes()).context("send a packet")?;
        self.next += 1;
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        let mut packet = [0; 64];
        loop {
            let length = match self.socket.recv(&mut packet) {
                Ok(length) => length,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(err) => return Err(err).context("receive an answer"),
            };
            let answer = String::from_utf8_lossy(&packet[..length]);
            let (host, number) = answer.split_once(' ').context("an answer of someone else's")?;
            self.answers.insert(number.trim_end().parse().context("a number")?, host.to_owned());
        }
    }

    fn awaits(&self) -> bool {
        self.answers.len() as u64 != self.next
    }
}

fn tally(flows: &[Flow]) -> Tally {
    let mut tally = Tally::default();
    for (n, flow) in flows.iter().enumerate() {
        tally.sent += flow.next;
        let lost = (0..flow.next).filter(|number| !flow.answers.contains_key(number));
        tally.lost.extend(lost.map(|number| (n, number)));
        let mut hosts: Vec<_> = flow.answers.values().cloned().collect();
        hosts.sort();
        hosts.dedup();
        if hosts.len() > 1 {
            tally.moved.push(hosts);
        }
    }
    tally
}
