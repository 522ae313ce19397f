//! Paths to backends that are narrower than the balancer's link: a router that can't forward a tunnelled
//! packet reports that in an ICMP error to the packet's outer source (RFC 2003, 5.1; RFC 2473, 8). Where the
//! network routes that source to this node, the error is read here and lowers what the backend is sent.
//! Clients whose packets don't fit any more are answered by the program.
//!
//! The error comes by a packet socket: the outer source varies with the flow, and need not be an address
//! of the node's. Any host that can send to the node can forge one, so an error counts only if it quotes a
//! packet from an outer source of ours to a backend that has a tunnel, names no less than every link
//! takes ([`MIN`]), and only for ten minutes.
//!
//! The program passes these errors, since they are for no service. At most 100 a second of each family are read.
//! `netlink/task.rs` lowers the MTU of the tunnelled backend's next hop, and the program then answers clients as it
//! does for a link that is too narrow. The balancer does not translate the error for the client whose packet caused
//! it: the client sends the packet again and is answered then (soft state, RFC 2003, 5.1).

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use lb_model::{desired::Mode, hop::Want, settings::Tunnel};
use lb_threads::lasting;
use tokio::{sync::watch, time::sleep};
use tracing::{debug, warn};

mod quoted;
mod socket;

use self::{quoted::TooBig, socket::Receiver};

/// How long a path counts as narrow (RFC 1191, 6.3; RFC 8201, 5.3).
pub(crate) const KEPT: Duration = Duration::from_mins(10);
/// No path is taken for narrower, in bytes. No link of IPv6 is (RFC 8200, 5; RFC 8201, 4), and one of IPv4
/// between a balancer and its backends is a forgery sooner than a link.
pub(crate) const MIN: u16 = 1280;
/// At most this often an error is looked at, for each family; what the kernel has no room for meanwhile
/// is lost. A path that is too narrow causes another one.
const PACE: Duration = Duration::from_millis(10);

/// The paths that are known to be narrow, by backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PathMtus(BTreeMap<IpAddr, (u16, Instant)>);

impl PathMtus {
    /// What a path to a backend takes, in bytes; none if nothing is known of it.
    pub(crate) fn get(&self, backend: IpAddr) -> Option<u16> {
        self.0.get(&backend).map(|(mtu, _)| *mtu)
    }

    /// All that is known.
    pub(crate) fn all(&self) -> BTreeMap<IpAddr, u16> {
        self.0.iter().map(|(backend, (mtu, _))| (*backend, *mtu)).collect()
    }

    /// Takes over that a path takes so many bytes at `now`. What is less than was known holds, the same
    /// holds for longer, and more is ignored: an error reports only a size that does not fit (RFC 8201, 4).
    pub(crate) fn learn(&mut self, backend: IpAddr, mtu: u16, now: Instant) {
        if self.get(backend).is_none_or(|known| mtu <= known) {
            self.0.insert(backend, (mtu, now + KEPT));
        }
    }

    /// Forgets what is too old at `now`, and all of backends that are none any more.
    pub(crate) fn retain(&mut self, now: Instant, is_backend: impl Fn(IpAddr) -> bool) {
        self.0.retain(|backend, (_, until)| *until > now && is_backend(*backend));
    }
}

/// Reads the errors while there are tunnels; dropping it ends that.
#[derive(Debug)]
pub struct Listener(watch::Sender<Families>);

/// The families of tunnels that there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Families {
    v4: bool,
    v6: bool,
}

impl Listener {
    /// Reads in tasks of the current runtime, and calls `narrow` for each error that quotes a packet of
    /// `tunnel`: the backend, and the bytes that the path takes.
    pub fn start(
        tunnel: Tunnel,
        narrow: impl Fn(IpAddr, u16) + Clone + Send + Sync + 'static,
    ) -> Self {
        let (families, _) = watch::channel(Families::default());
        for v6 in [false, true] {
            let follow = follow(families.subscribe(), v6, tunnel, narrow.clone());
            tokio::spawn(lasting("path MTU", follow));
        }
        Self(families)
    }

    /// Replaces the set of the backends.
    pub fn want(&self, wants: &BTreeSet<Want>) {
        let has =
            |v6| wants.iter().any(|want| want.mode == Mode::Ipip && want.address.is_ipv6() == v6);
        let families = Families { v4: has(false), v6: has(true) };
        self.0.send_if_modified(|old| std::mem::replace(old, families) != families);
    }
}

/// Reads the errors of a family whenever there are tunnels of it.
async fn follow(
    mut families: watch::Receiver<Families>,
    v6: bool,
    tunnel: Tunnel,
    narrow: impl Fn(IpAddr, u16),
) {
    let has = |families: &Families| if v6 { families.v6 } else { families.v4 };
    while families.wait_for(has).await.is_ok() {
        let failed = tokio::select! {
            ended = families.wait_for(|families| !has(families)) => match ended {
                Ok(_) => continue,
                Err(_) => return,
            },
            Err(error) = read(v6, tunnel, &narrow) => error,
        };
        warn!(
            "ICMP errors about tunnelled packets are not read, so that a narrow path to a backend is \
             not noticed: {failed:#}"
        );
        // What the kernel refuses it refuses again, until something is another.
        if families.changed().await.is_err() {
            return;
        }
    }
}

/// Reads until it fails.
async fn read(v6: bool, tunnel: Tunnel, narrow: impl Fn(IpAddr, u16)) -> Result<Infallible> {
    let receiver = Receiver::open(v6)?;
    // A longer error can't be verified: routers quote 576 or 1,280 bytes at most.
    let mut buffer = [0; 2048];
    loop {
        let length = receiver.receive(&mut buffer).await?;
        if let Some(TooBig { source, backend, mtu }) = quoted::parse(&buffer[..length])
            && is_of(tunnel, source)
        {
            debug!(%backend, %source, mtu, "a router reports that a tunnelled packet was too big");
            narrow(backend, mtu);
        }
        sleep(PACE).await;
    }
}

/// Whether an address is an outer source of this node's packets.
fn is_of(tunnel: Tunnel, source: IpAddr) -> bool {
    match source {
        IpAddr::V4(source) => {
            let (prefix, length) = tunnel.source_v4;
            (source.to_bits() ^ prefix.to_bits()).leading_zeros() >= length.into()
        }
        IpAddr::V6(source) => {
            let (prefix, length) = tunnel.source_v6;
            // The low 32 bits at most vary, whatever the prefix leaves free.
            let fixed = u32::from(length.max(96));
            (source.to_bits() ^ prefix.to_bits()).leading_zeros() >= fixed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_path_is_narrow_for_ten_minutes_after_the_last_error_and_never_wider_by_one() {
        let (a, b, start) = (ip("10.2.0.3"), ip("fd00:2::3"), Instant::now());
        let mut known = PathMtus::default();
        known.learn(a, 1400, start);
        known.learn(b, 1300, start);
        known.learn(a, 1450, start + KEPT / 2);
        assert_eq!(known.all(), [(a, 1400), (b, 1300)].into());
        known.learn(b, 1300, start + KEPT / 2);
        known.retain(start + KEPT, |_| true);
        assert_eq!(known.all(), [(b, 1300)].into(), "an error with a larger size keeps nothing");
        known.learn(b, 1280, start + KEPT);
        assert_eq!(known.get(b), Some(1280));
        known.retain(start + KEPT * 2 - Duration::from_nanos(1), |_| true);
        assert_eq!(known.get(b), Some(1280));
        known.retain(start + KEPT, |backend| backend == a);
        assert_eq!(known.all(), [].into(), "it is no backend any more");
    }

    #[test]
    fn only_outer_sources_of_the_tunnel_count() {
        let tunnel = Tunnel {
            source_v4: ([10, 9, 0, 0].into(), 16),
            source_v6: ("fd00:9::".parse().expect("a prefix"), 64),
        };
        for (source, expected) in [
            ("10.9.0.0", true),
            ("10.9.255.255", true),
            ("10.10.0.0", false),
            ("fd00:9::", true),
            ("fd00:9::ffff:ffff", true),
            ("fd00:9::1:0:0", false),
            ("fd00:a::1", false),
        ] {
            assert_eq!(is_of(tunnel, ip(source)), expected, "{source}");
        }
        let one = Tunnel { source_v4: ([10, 9, 0, 5].into(), 32), ..tunnel };
        assert!(is_of(one, ip("10.9.0.5")) && !is_of(one, ip("10.9.0.4")));
        assert!(is_of(Tunnel::default(), ip("172.16.3.4")));
    }
}
