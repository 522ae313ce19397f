//! The source address of probes: an address of this node that the backend can answer to.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr, UdpSocket},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Result;
use lb_netlink::{
    client::Client,
    interfaces::{AddressState, Interfaces, Key},
};
use netlink_packet_route::address::AddressScope;
use tokio::{sync::Notify, task::JoinHandle, time::timeout};
use tracing::debug;

use super::{Error, ProbePath, demux::lock};

/// How long netlink's answer about the addresses is used.
const FRESH: Duration = Duration::from_secs(1);
/// How long the first callers wait for it: less than the shortest timeout of a check.
const FIRST: Duration = Duration::from_millis(20);
/// How long the source address that the kernel would choose is believed, if the addresses stay the same.
const STEADY: Duration = Duration::from_secs(60);
/// How long those callers wait that may: the kernel answers at once, unless its lock of addresses is held.
const ANSWER: Duration = Duration::from_secs(2);

/// An address of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Own {
    address: IpAddr,
    prefix: u8,
    ifindex: u32,
    deprecated: bool,
}

impl Own {
    /// Whether it has no subnet.
    fn is_lone(&self) -> bool {
        self.prefix == if self.address.is_ipv4() { 32 } else { 128 }
    }
}

/// The addresses of this node, read again as long as there are probes.
#[derive(Debug, Default)]
pub(super) struct Sources {
    state: Arc<Mutex<State>>,
    /// The first reading has ended.
    known: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    own: Option<Vec<Own>>,
    /// Why they could not be read.
    failure: String,
    /// What reads them, and since when.
    reading: Option<(Instant, JoinHandle<()>)>,
    vips: Arc<BTreeSet<IpAddr>>,
    chosen: HashMap<Want, Option<IpAddr>>,
    /// For probes to backends' own addresses, and since when.
    instead: HashMap<IpAddr, Option<IpAddr>>,
    instead_since: Option<Instant>,
}

/// What a choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Want {
    v4: bool,
    backend: IpAddr,
    ifindex: u32,
}

impl Want {
    fn of(path: &ProbePath) -> Self {
        Self { v4: path.vip.is_ipv4(), backend: path.backend, ifindex: path.hop.ifindex }
    }
}

impl Sources {
    /// The source address for this path, none of `vips`. `forget` is called, at times, with a test for
    /// the addresses that this node has.
    ///
    /// Only the first callers wait for netlink, and they not for long: their caller would
    /// take it for the backend's silence, and "not known yet" shows nothing of the backend.
    ///
    /// # Errors
    ///
    /// If there is none, or the addresses are not known.
    pub(super) async fn of(
        &self,
        path: &ProbePath,
        vips: &Arc<BTreeSet<IpAddr>>,
        forget: impl FnOnce(&dyn Fn(IpAddr) -> bool),
    ) -> Result<IpAddr, Error> {
        self.refresh(forget, FIRST).await;
        lock(&self.state).choose(path, vips)
    }

    /// The source address for probes of this address of a backend, where the kernel would take a VIP. `forget`
    /// as for [`Self::of`]. The first callers wait for netlink: a probe from a VIP has no answer at all.
    pub(super) async fn instead(
        &self,
        backend: IpAddr,
        vips: &Arc<BTreeSet<IpAddr>>,
        forget: impl FnOnce(&dyn Fn(IpAddr) -> bool),
    ) -> Option<IpAddr> {
        self.refresh(forget, ANSWER).await;
        lock(&self.state).instead(backend, vips)
    }

    /// Has the addresses read again if it is time to; waits for it if nothing was read before.
    async fn refresh(&self, forget: impl FnOnce(&dyn Fn(IpAddr) -> bool), most: Duration) {
        let known = self.known.notified();
        let mut known = std::pin::pin!(known);
        known.as_mut().enable();
        let unknown = {
            let mut state = lock(&self.state);
            if state.is_stale() {
                if let Some(own) = &state.own {
                    forget(&|address| own.iter().any(|own| own.address == address));
                }
                let reader =
                    tokio::spawn(read_into(Arc::clone(&self.state), Arc::clone(&self.known)));
                state.reading = Some((Instant::now(), reader));
            }
            state.own.is_none()
        };
        if unknown {
            let _ = timeout(most, known).await;
        }
    }
}

impl State {
    fn is_stale(&self) -> bool {
        let reading = self.reading.as_ref();
        reading.is_none_or(|(since, reader)| reader.is_finished() && since.elapsed() >= FRESH)
    }

    fn choose(&mut self, path: &ProbePath, vips: &Arc<BTreeSet<IpAddr>>) -> Result<IpAddr, Error> {
        if !Arc::ptr_eq(&self.vips, vips) {
            self.forget();
            self.vips = Arc::clone(vips);
        }
        let Some(own) = &self.own else {
            let failure = &self.failure;
            return Err(Error::Local(format!("this node's addresses are not known yet{failure}")));
        };
        let want = Want::of(path);
        let chosen = self.chosen.entry(want).or_insert_with(|| choose(own, want, vips));
        chosen.ok_or_else(|| none(path))
    }

    fn instead(&mut self, backend: IpAddr, vips: &Arc<BTreeSet<IpAddr>>) -> Option<IpAddr> {
        if !Arc::ptr_eq(&self.vips, vips) {
            self.forget();
            self.vips = Arc::clone(vips);
        }
        if self.instead_since.is_none_or(|since| since.elapsed() >= STEADY) {
            self.instead.clear();
            self.instead_since = Some(Instant::now());
        }
        let own = self.own.as_ref()?;
        let choose = || instead_of(kernels_choice(backend)?, own, backend, vips);
        *self.instead.entry(backend).or_insert_with(choose)
    }

    /// What was chosen of other addresses.
    fn forget(&mut self) {
        self.chosen.clear();
        self.instead.clear();
    }
}

/// Reads the addresses; what was known stays if that fails.
async fn read_into(state: Arc<Mutex<State>>, known: Arc<Notify>) {
    let read = read();
    {
        let mut state = lock(&state);
        match read {
            Ok(own) => {
                if state.own.as_ref() != Some(&own) {
                    state.forget();
                }
                state.own = Some(own);
            }
            Err(error) => {
                debug!("read this node's addresses by netlink: {error:#}");
                state.failure = format!(": netlink: {error:#}");
            }
        }
    }
    known.notify_waiters();
}

fn none(path: &ProbePath) -> Error {
    let family = if path.vip.is_ipv4() { "IPv4" } else { "IPv6" };
    let interface = &path.hop.interface;
    Error::Local(format!(
        "this node has no {family} address of its own on {interface} to check from; use via = \
         \"backend\""
    ))
}

/// On the backend's own subnet if there is one, else of the interface that frames leave by, else
/// any. An address without a subnet is the last choice: it may be a VIP of someone else's.
fn choose(own: &[Own], want: Want, vips: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let usable = own.iter().filter(|own| {
        own.address.is_ipv4() == want.v4
            && own.address != want.backend
            && !vips.contains(&own.address)
    });
    let rank = |own: &&Own| {
        let elsewhere = own.ifindex != want.ifindex;
        (!covers(own, want.backend), elsewhere, own.deprecated, own.is_lone())
    };
    usable.min_by_key(rank).map(|own| own.address)
}

/// The source address to use if the kernel would choose a VIP, or from an address without a subnet (which
/// may be a VIP of someone else's) though there is one on the backend's.
fn instead_of(
    kernels: IpAddr,
    own: &[Own],
    backend: IpAddr,
    vips: &BTreeSet<IpAddr>,
) -> Option<IpAddr> {
    let is_vip = vips.contains(&kernels);
    let kernels = own.iter().find(|own| own.address == kernels)?;
    let want = Want { v4: backend.is_ipv4(), backend, ifindex: kernels.ifindex };
    let chosen = choose(own, want, vips)?;
    let near =
        own.iter().any(|own| own.address == chosen && !own.is_lone() && covers(own, backend));
    (is_vip || (kernels.is_lone() && near)).then_some(chosen)
}

/// The source address that the kernel would choose; to connect a datagram socket sends nothing.
fn kernels_choice(backend: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((backend, 9)).ok()?;
    socket.local_addr().ok().map(|local| local.ip())
}

/// Whether an address is in the subnet of one of ours.
fn covers(own: &Own, address: IpAddr) -> bool {
    let differ = match (own.address, address) {
        (IpAddr::V4(own), IpAddr::V4(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros(),
        (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros(),
        _ => return false,
    };
    differ >= u32::from(own.prefix)
}

/// The addresses of this node that have global scope.
fn read() -> Result<Vec<Own>> {
    let read = Interfaces::read_addresses(&mut Client::open()?)?;
    Ok(read.addresses.iter().filter_map(own_of).collect())
}

fn own_of((&(ifindex, address, prefix), seen): (&Key, &AddressState)) -> Option<Own> {
    let unusable = (seen.tentative && !seen.optimistic) || seen.duplicate;
    let own = Own { address, prefix, ifindex, deprecated: seen.deprecated };
    (seen.scope == AddressScope::Universe && !unusable).then_some(own)
}

#[cfg(test)]
mod tests {
    use lb_model::{desired::Mode, hop::NextHop, settings::Tunnel};

    use super::*;

    fn own(text: &str, ifindex: u32) -> Own {
        let (address, prefix) = text.split_once('/').unwrap();
        Own {
            address: address.parse().unwrap(),
            prefix: prefix.parse().unwrap(),
            ifindex,
            deprecated: false,
        }
    }

    fn path(vip: &str, backend: &str) -> ProbePath {
        ProbePath {
            vip: vip.parse().unwrap(),
            backend: backend.parse().unwrap(),
            mode: Mode::Ipip,
            hop: NextHop {
                ifindex: 2,
                interface: "eth0".into(),
                mac: [2; 6],
                l2: vec![0; 14],
                mtu: 1500,
            },
            tunnel: Tunnel::default(),
        }
    }

    fn chosen(own: &[Own], path: &ProbePath) -> Option<String> {
        let vips = ["10.0.0.100", "10.0.0.101", "fd00::100"].map(|vip| vip.parse().unwrap());
        choose(own, Want::of(path), &BTreeSet::from(vips)).map(|address| address.to_string())
    }

    #[test]
    fn asks_from_the_backends_subnet_then_from_the_interface_then_from_any() {
        let path = path("10.0.0.100", "10.1.0.9");
        let (lone, any) = (own("10.9.9.9/32", 1), own("192.168.0.1/24", 3));
        let (vlan, egress) = (own("10.1.0.5/24", 7), own("10.0.0.5/24", 2));
        let near = own("10.1.0.6/24", 2);
        assert_eq!(chosen(&[lone, any, egress, vlan, near], &path).unwrap(), "10.1.0.6");
        assert_eq!(chosen(&[lone, any, egress, vlan], &path).unwrap(), "10.1.0.5");
        assert_eq!(chosen(&[lone, any, egress], &path).unwrap(), "10.0.0.5");
        assert_eq!(chosen(&[lone, any], &path).unwrap(), "192.168.0.1");
        assert_eq!(chosen(&[lone], &path).unwrap(), "10.9.9.9");
        assert_eq!(chosen(&[], &path), None);
    }

    #[test]
    fn never_asks_from_a_vip_or_in_another_family() {
        let all = [own("10.0.0.100/24", 2), own("10.0.0.101/32", 2), own("fd00::5/64", 2)];
        assert_eq!(chosen(&all, &path("10.0.0.100", "fd00::11")), None);
        assert_eq!(chosen(&all, &path("fd00::100", "fd00::11")).unwrap(), "fd00::5");
        let message = none(&path("10.0.0.100", "fd00::11")).to_string();
        assert_eq!(
            message,
            "this node has no IPv4 address of its own on eth0 to check from; use via = \"backend\""
        );
    }

    #[test]
    fn a_deprecated_address_asks_only_if_it_must() {
        let (old, new) = (own("fd00::5/64", 2), own("fd00::6/64", 2));
        let old = Own { deprecated: true, ..old };
        let path = path("fd00::100", "fd00::11");
        assert_eq!(chosen(&[old, new], &path).unwrap(), "fd00::6");
        assert_eq!(chosen(&[old], &path).unwrap(), "fd00::5");
    }

    #[test]
    fn only_a_vip_or_what_may_be_one_is_replaced_as_the_kernels_choice() {
        let all = [
            own("fd00::100/128", 2),
            own("fd00::101/128", 2),
            own("fd00:1::5/64", 3),
            own("fd00::5/64", 2),
        ];
        let vips = BTreeSet::from(["fd00::100".parse().unwrap()]);
        let instead = |kernels: &str, backend: &str| {
            instead_of(kernels.parse().unwrap(), &all, backend.parse().unwrap(), &vips)
                .map(|address| address.to_string())
        };
        assert_eq!(instead("fd00::100", "fd00::11").unwrap(), "fd00::5");
        assert_eq!(instead("fd00::101", "fd00::11").unwrap(), "fd00::5");
        assert_eq!(instead("fd00::100", "fd00:1::11").unwrap(), "fd00:1::5");
        assert_eq!(instead("fd00:1::5", "fd00::11"), None);
        // Behind a router: an address of the interface by which the kernel goes.
        assert_eq!(instead("fd00::100", "fd00:9::11").unwrap(), "fd00::5");
        assert_eq!(instead("fd00::101", "fd00:9::11"), None);
        assert_eq!(
            instead_of("fd00::7".parse().unwrap(), &[], "fd00::11".parse().unwrap(), &vips),
            None
        );
    }
}
