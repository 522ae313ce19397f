//! Floods: a host of the lab that sends the frames of an attacker.

mod frames;

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use self::frames::ATTACKER;
pub use self::frames::{ACK, Aim, FIN, Kind, SYN, frame, stranger, tcp_frame, udp_frame};
use crate::{
    command,
    lab::{INTERFACE, Lab},
    namespace::{self, Namespace},
};

/// Between two looks at the clock.
const TURN: Duration = Duration::from_millis(1);
/// The longest delay that a sender makes up for.
const DEBT: Duration = Duration::from_millis(50);

/// The MAC address of an interface, as bytes.
///
/// # Errors
///
/// If there is no such interface.
pub fn mac(namespace: &Namespace, interface: &str) -> Result<[u8; 6]> {
    let text = namespace.mac(interface)?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<_> = bytes.collect::<Result<_, _>>().with_context(|| text.clone())?;
    bytes.try_into().map_err(|_| anyhow!("{text} is no MAC address"))
}

/// A host on the lab's switch that sends floods.
#[derive(Debug)]
pub struct Attacker {
    namespace: Namespace,
}

/// How much to send.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The kind of frames.
    pub kind: Kind,
    /// For whom.
    pub aim: Aim,
    /// Frames in a second; a machine that is too busy sends fewer.
    pub per_second: u32,
    /// How long.
    pub time: Duration,
}

/// A flood under way; it ends when this is dropped.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Sent>>>,
}

/// The frames that were sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Frames that the kernel took.
    pub frames: u64,
    /// Frames that it had no room for.
    pub refused: u64,
    /// For how long.
    pub time: Duration,
}

impl Attacker {
    /// Connects one to a lab, whose web hosts drop its packets: the balancer is flooded.
    ///
    /// # Errors
    ///
    /// If there is one already, or the kernel refuses.
    pub fn new(lab: &Lab) -> Result<Self> {
        let namespace = Namespace::new("attacker")?;
        namespace.sysctl(&[("ipv6/conf/all/disable_ipv6", "1")])?;
        let filters = || Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists();
        if lab.switch().enter(filters)? {
            // A bridge that shows packets to netfilter drops the malformed ones itself.
            lab.switch().sysctl(&[("bridge/bridge-nf-call-iptables", "0")])?;
        }
        lab.switch().ip(&format!(
            "link add attacker type veth peer name {INTERFACE} netns {}\n\
             link set attacker master br0\nlink set attacker up",
            namespace.name()
        ))?;
        let mac = ATTACKER.map(|byte| format!("{byte:02x}")).join(":");
        namespace.ip(&format!("link set {INTERFACE} address {mac}\nlink set {INTERFACE} up"))?;
        // Before fragments are put together.
        let table = "table ip flood {\nchain prerouting {\ntype filter hook prerouting priority -500\n\
                    ip saddr 198.18.0.0/15 drop\n}\n}\n";
        for web in &lab.webs {
            let mut nft = web.host.namespace.command("nft");
            command::run_with_input(nft.args(["-f", "-"]), table)?;
        }
        Ok(Self { namespace })
    }

    /// An address that the switch sends back to the port it came from, and so drops: a flood for it
    /// costs this machine the sender's time, and the balancer nothing.
    ///
    /// # Errors
    ///
    /// If the switch refuses.
    pub fn nowhere(&self, lab: &Lab) -> Result<[u8; 6]> {
        let mac = [2, 0, 0, 0, 0x66, 0x67];
        let text = mac.map(|byte| format!("{byte:02x}")).join(":");
        let mut bridge = lab.switch().command("bridge");
        command::run(bridge.args(["fdb", "add", &text, "dev", "attacker", "master", "static"]))?;
        Ok(mac)
    }

    /// Begins a flood.
    ///
    /// # Errors
    ///
    /// If there is no socket for it.
    pub fn flood(&self, plan: Plan) -> Result<Flood> {
        let socket = self.namespace.enter(|| open(INTERFACE))??;
        let stop = Arc::new(AtomicBool::new(false));
        let (path, stopped) = (self.namespace.path(), Arc::clone(&stop));
        let thread = thread::Builder::new().spawn(move || {
            namespace::join(&path)?;
            send(&socket, plan, &stopped)
        });
        Ok(Flood { stop, thread: Some(thread.context("start a thread")?) })
    }
}

impl Flood {
    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// If it could not be sent.
    pub fn finish(mut self) -> Result<Sent> {
        let thread = self.thread.take().context("a flood ends once")?;
        thread.join().map_err(|_| anyhow!("the flood's thread panicked"))?
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Without a receiver the result is not needed.
            let _ = thread.join();
        }
    }
}

/// A socket for whole frames that is given none.
fn open(interface: &str) -> Result<Socket> {
    let index = nix::net::if_::if_nametoindex(interface).context(interface.to_owned())?;
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)));
    let socket = socket.context("packet socket")?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the type is an address, which fits and may have any bytes.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_ifindex = index.cast_signed();
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the storage holds an address of the family that it names, of this length.
    let address = unsafe { SockAddr::new(storage, length) };
    socket.bind(&address).context("bind a packet socket")?;
    Ok(socket)
}

fn send(socket: &Socket, plan: Plan, stop: &AtomicBool) -> Result<Sent> {
    let mut sent = Sent::default();
    let mut number = 0;
    let (start, mut due) = (Instant::now(), Instant::now());
    let each = Duration::from_secs(1) / plan.per_second.max(1);
    while start.elapsed() < plan.time && !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        due = due.max(now.checked_sub(DEBT).unwrap_or(now));
        while due <= now {
            match socket.send(&frame(plan.kind, &plan.aim, number)) {
                Ok(_) => sent.frames += 1,
                Err(err) if err.raw_os_error() == Some(libc::ENOBUFS) => sent.refused += 1,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err).context("send a frame"),
            }
            number += 1;
            due += each;
        }
        thread::sleep(TURN);
    }
    sent.time = start.elapsed();
    Ok(sent)
}
