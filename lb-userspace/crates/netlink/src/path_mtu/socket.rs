//! The packet sockets: the kernel shows them the ICMP errors that quote a tunnelled packet, and nothing
//! else.

use std::io::{self, Read as _};

use anyhow::{Context as _, Result};
use lb_common::packet::{ethernet, icmp, ipv6, number};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::{Interest, unix::AsyncFd};

/// Where the kernel shows what the link layer thinks of a packet (`SKF_AD_OFF + SKF_AD_PKTTYPE`), and what
/// it thinks of one for this host. A switch may flood those of others.
const PACKET_TYPE: u32 = (-0x1000_i32 + 4).cast_unsigned();
const TO_THIS_HOST: u32 = 0;
/// Room for errors that are not read yet, in bytes; more are lost.
const RECEIVE_BUFFER: usize = 256 << 10;

// linux/bpf_common.h and linux/filter.h.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF_AT: u16 = 0x48;
const LOAD_BYTE_AT: u16 = 0x50;
/// Four times the low half of a byte, into the index: the length of an IPv4 header.
const LOAD_INDEX: u16 = 0xb1;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Receives the errors of one family.
#[derive(Debug)]
pub(super) struct Receiver(AsyncFd<Socket>);

impl Receiver {
    /// Opens it in the network namespace of the calling thread, for the current runtime.
    ///
    /// # Errors
    ///
    /// The kernel refuses: it takes `CAP_NET_RAW`.
    pub(super) fn open(v6: bool) -> Result<Self> {
        let ethertype = if v6 { ethernet::IPV6 } else { ethernet::IPV4 };
        // Without a protocol the kernel gives it no packet before it has its filter.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))
            .context("open a packet socket")?;
        socket.attach_filter(&filter(v6)).context("attach a filter to a packet socket")?;
        socket.set_nonblocking(true).context("make a packet socket not block")?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER).context("bound a packet socket's buffer")?;
        bind(&socket, ethertype).context("bind a packet socket")?;
        // SAFETY: the `AsyncFd` owns the socket, which is never replaced.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Self(socket.context("watch a packet socket")?))
    }

    /// Waits for the next one, from its IP header on; what `buffer` has no room for is cut off.
    ///
    /// # Errors
    ///
    /// The socket is broken.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|socket| socket.get_ref().read(buffer)) {
                // A link that went down reports that to every packet socket, once.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(read) => return read,
                Err(_would_block) => {}
            }
        }
    }
}

/// Has a packet socket get the packets of an EtherType, of all interfaces.
fn bind(socket: &Socket, ethertype: u16) -> io::Result<()> {
    let mut storage = socket2::SockAddrStorage::zeroed();
    // SAFETY: the type is an address, which fits and may have any bytes.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = ethertype.to_be();
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the storage holds an address of the family that it names, of this length.
    socket.bind(&unsafe { socket2::SockAddr::new(storage, length) })
}

/// Takes what [`super::quoted::parse`] may find something in.
fn filter(v6: bool) -> Vec<SockFilter> {
    let op = |code, value| SockFilter::new(code, 0, 0, value);
    // Goes on if it holds, else skips one: to the refusal that follows.
    let need = |value| [SockFilter::new(JUMP_EQUAL, 1, 0, value), op(RETURN, 0)];
    let mut program = vec![op(LOAD_WORD, PACKET_TYPE)];
    program.extend(need(TO_THIS_HOST));
    if v6 {
        let message = ipv6::LEN as u32;
        program.push(op(LOAD_BYTE, 6));
        program.extend(need(number::ICMPV6.into()));
        program.push(op(LOAD_HALF, message));
        program.extend(need(u32::from(icmp::V6_TOO_BIG) << 8));
        program.push(op(LOAD_BYTE, message + icmp::LEN as u32 + 6));
        program.push(SockFilter::new(JUMP_EQUAL, 2, 0, number::IPV4.into()));
        program.extend(need(number::IPV6.into()));
    } else {
        program.push(op(LOAD_BYTE, 9));
        program.extend(need(number::ICMP.into()));
        // More fragments, or an offset.
        program.extend([op(LOAD_HALF, 6), SockFilter::new(JUMP_SET, 0, 1, 0x3fff), op(RETURN, 0)]);
        program.extend([op(LOAD_INDEX, 0), op(LOAD_HALF_AT, 0)]);
        program.extend(need(
            u32::from(icmp::UNREACHABLE) << 8 | u32::from(icmp::FRAGMENTATION_NEEDED),
        ));
        program.push(op(LOAD_BYTE_AT, icmp::LEN as u32 + 9));
        program.extend(need(number::IPV4.into()));
    }
    program.push(op(RETURN, u32::MAX));
    program
}
