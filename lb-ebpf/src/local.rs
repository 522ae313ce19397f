//! Clients on the balancer's own node: a socket that is to send to a VIP gets the address of a backend in mode `nat`
//! when it connects, or for each datagram if it does not.
//!
//! A packet of the node itself for its VIP would go to its own loopback and never to an interface. So the destination
//! changes before there is a packet, in hooks of the control group (`BPF_PROG_TYPE_CGROUP_SOCK_ADDR`), and neither a
//! packet nor an answer has to be translated: the backend answers the node's own address.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the macro `cgroup_sock_addr` makes public functions of its own")]

#[path = "local/choice.rs"]
mod choice;
mod service_maps;
mod trie_key;
#[expect(dead_code, reason = "no packet is looked at")]
mod wide;

use core::mem::offset_of;

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::{BPF_ANY, bpf_sock_addr},
    btf_maps::LruHashMap,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::{btf_map, cgroup_sock_addr},
    programs::SockAddrContext,
};
use lb_common::{
    abi::{
        local::{LOCAL_PEERS as PEERS, LocalPeer, LocalPeerKey, direction},
        mapped, proto,
    },
    nat,
};
use zerocopy::network_endian::U16;

/// The cookie of the network namespace (`SO_NETNS_COOKIE`) whose sockets these programs are for.
#[unsafe(no_mangle)]
static NETNS_COOKIE: Global<u64> = Global::new(0);

/// What sockets were given, in both directions.
#[btf_map]
static LOCAL_PEERS: LruHashMap<LocalPeerKey, LocalPeer, { PEERS as usize }> = LruHashMap::new();

/// A socket at a hook, with the address that it deals with.
struct Socket(SockAddrContext);

impl Socket {
    /// None of another network namespace, where the VIP may be another host's.
    #[inline(always)]
    fn of(ctx: SockAddrContext) -> Option<Self> {
        // SAFETY: the context is the program's own.
        let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
        (cookie == NETNS_COOKIE.load()).then_some(Self(ctx))
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context is the program's own.
        unsafe { bpf_get_socket_cookie(self.0.as_ptr()) }
    }

    /// A word of the context, by its offset.
    #[inline(always)]
    fn load(&self, at: usize) -> u32 {
        let word = self.0.sock_addr.wrapping_byte_add(at).cast::<u32>();
        // SAFETY: the kernel allows the load of such a field.
        unsafe { word.read_volatile() }
    }

    #[inline(always)]
    fn store(&self, at: usize, value: u32) {
        let word = self.0.sock_addr.wrapping_byte_add(at).cast::<u32>();
        // SAFETY: the kernel allows the store to such a field.
        unsafe { word.write_volatile(value) }
    }

    /// The protocol, if services have it.
    #[inline(always)]
    fn proto(&self) -> Option<u8> {
        let number = self.load(offset_of!(bpf_sock_addr, protocol)) as u8;
        matches!(number, proto::TCP | proto::UDP).then_some(number)
    }

    /// The address, IPv4 as an IPv4-mapped IPv6 address, and the port.
    #[inline(always)]
    fn address(&self, v6: bool) -> ([u8; 16], U16) {
        let port = self.load(offset_of!(bpf_sock_addr, user_port)) as u16;
        let port = U16::from_bytes(port.to_ne_bytes());
        if !v6 {
            let address = self.load(offset_of!(bpf_sock_addr, user_ip4));
            return (mapped(address.to_ne_bytes()), port);
        }
        let mut address = [0; 16];
        let word = |n: usize| self.load(USER_IP6 + n).to_ne_bytes();
        address[..4].copy_from_slice(&word(0));
        address[4..8].copy_from_slice(&word(4));
        address[8..12].copy_from_slice(&word(8));
        address[12..].copy_from_slice(&word(12));
        (address, port)
    }

    /// Replaces both.
    #[inline(always)]
    fn set_address(&self, v6: bool, address: &[u8; 16], port: U16) {
        let word = |n: usize| {
            u32::from_ne_bytes([address[n], address[n + 1], address[n + 2], address[n + 3]])
        };
        let port = u32::from(u16::from_ne_bytes(port.to_bytes()));
        self.store(offset_of!(bpf_sock_addr, user_port), port);
        if !v6 {
            return self.store(offset_of!(bpf_sock_addr, user_ip4), word(12));
        }
        self.store(USER_IP6, word(0));
        self.store(USER_IP6 + 4, word(4));
        self.store(USER_IP6 + 8, word(8));
        self.store(USER_IP6 + 12, word(12));
    }
}

/// Where the four words of an IPv6 address are.
const USER_IP6: usize = offset_of!(bpf_sock_addr, user_ip6);

/// Gives a socket that is to send to a VIP a backend. One that sends without a connection keeps its backend as long as
/// that can be sent to.
#[inline(always)]
fn to_backend(ctx: SockAddrContext, v6: bool, is_connection: bool) -> Option<()> {
    let socket = Socket::of(ctx)?;
    let proto = socket.proto()?;
    let (vip, port) = socket.address(v6);
    let service = choice::service(&vip, port, proto)?;
    let cookie = socket.cookie();
    let to = LocalPeerKey { cookie, address: vip, port, direction: direction::TO, reserved: 0 };
    if !is_connection
        // SAFETY: the entry's memory stays mapped while the program runs, and any bytes will do.
        && let Some(known) = unsafe { LOCAL_PEERS.get(to) }
        && choice::is_still(known, &vip)
    {
        socket.set_address(v6, &known.address, known.port);
        return Some(());
    }
    let (backend, value) = choice::backend(service)?;
    let at = match nat::port_of(value) {
        own if own.get() != 0 => own,
        _ => port,
    };
    let address = value.address;
    let from = LocalPeerKey { cookie, address, port: at, direction: direction::FROM, reserved: 0 };
    let vip = LocalPeer { address: vip, port, backend };
    let _ = LOCAL_PEERS.insert(from, vip, BPF_ANY.into());
    if !is_connection {
        let peer = LocalPeer { address, port: at, backend };
        let _ = LOCAL_PEERS.insert(to, peer, BPF_ANY.into());
    }
    choice::count(backend);
    socket.set_address(v6, &address, at);
    Some(())
}

/// Shows a socket the VIP in place of the backend that it was given.
#[inline(always)]
fn to_vip(ctx: SockAddrContext, v6: bool) -> Option<()> {
    let socket = Socket::of(ctx)?;
    let (address, port) = socket.address(v6);
    let cookie = socket.cookie();
    let key = LocalPeerKey { cookie, address, port, direction: direction::FROM, reserved: 0 };
    // SAFETY: as above.
    let vip = unsafe { LOCAL_PEERS.get(key) }?;
    socket.set_address(v6, &vip.address, vip.port);
    Some(())
}

/// What every program returns: the call goes on.
const ALLOW: i32 = 1;

/// `connect` of a socket of IPv4.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    to_backend(ctx, false, true);
    ALLOW
}

/// The same of IPv6, and of IPv4 by an IPv4-mapped address.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    to_backend(ctx, true, true);
    ALLOW
}

/// `sendto` and `sendmsg` of UDP.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    to_backend(ctx, false, false);
    ALLOW
}

/// The same of IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    to_backend(ctx, true, false);
    ALLOW
}

/// `recvfrom` and `recvmsg` of UDP.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    to_vip(ctx, false);
    ALLOW
}

/// The same of IPv6.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    to_vip(ctx, true);
    ALLOW
}

/// `getpeername` of a connected socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    to_vip(ctx, false);
    ALLOW
}

/// The same of IPv6.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    to_vip(ctx, true);
    ALLOW
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
