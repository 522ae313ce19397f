//! The netlink client: requests and their answers, and events.
//!
//! It is synchronous, for a thread that must not wait: the kernel answers a request while it is
//! being sent, so the answer is there to be read when `send` returns, or never comes.
//!
//! What it can wait for is the kernel's lock of all links and addresses (RTNL), inside of `send`:
//! any process that changes a link or an address of the machine, in any network namespace, holds that
//! meanwhile. It takes microseconds for an address, and milliseconds to tens of milliseconds for what
//! waits for other processors: a macvlan device that is made or removed, an interface that is set up
//! or down, an XDP program that is attached to a driver. Reading takes the lock for a moment, too. A
//! virtual router sends its first advertisement before it changes an address, so that others do not take
//! over meanwhile, but its later ones can be that late; this node makes its own devices only when it
//! is configured.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use anyhow::{Context as _, Result, bail};
use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::{
    MulticastGroup,
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer,
        NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
    },
    sys::{Socket, protocols::NETLINK_ROUTE},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Requests of one call of `send`: their answers fit the smallest receive buffer.
const BATCH: usize = 64;
/// Room for what one call of `recv` gives; the kernel makes parts of dumps of 32 KiB at most.
const ROOM: usize = 64 * 1024;
/// Room in the kernel for events that have not been read yet.
const BACKLOG: usize = 4 * 1024 * 1024;

/// How often it is read anew what has changed while it was read.
const ATTEMPTS: u32 = 4;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// What became of one request: `Err` has the positive errno.
pub type Outcome = Result<(), i32>;

/// Why a request has no answer.
#[derive(Debug)]
pub enum Failure {
    /// The kernel refused it, with this positive errno.
    Refused(i32),
    /// The socket is broken.
    Socket(anyhow::Error),
}

impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(errno) => io::Error::from_raw_os_error(errno).into(),
            Failure::Socket(error) => error,
        }
    }
}

/// What a dump has come to.
enum Dump<M> {
    /// It is all that there is.
    Whole(Vec<M>),
    /// Something has changed meanwhile, so that what has not changed may be missing.
    Interrupted(Vec<M>),
}

/// A socket for requests of a protocol of netlink, whose messages are `M`.
pub struct Client<M = RouteNetlinkMessage> {
    socket: Socket,
    sequence: u32,
    out: Vec<u8>,
    buffer: Vec<u8>,
    messages: PhantomData<fn() -> M>,
}

impl Client {
    /// One for rtnetlink (links, addresses, routes, neighbours, traffic control) in the calling thread's network
    /// namespace.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn open() -> Result<Self> {
        Self::of(NETLINK_ROUTE)
    }
}

impl<M: NetlinkSerializable + NetlinkDeserializable + Clone> Client<M> {
    /// One for a protocol (`NETLINK_*` of linux/netlink.h) in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn of(protocol: isize) -> Result<Self> {
        let socket = open(protocol).context("open a netlink socket")?;
        // An error otherwise repeats the whole request.
        socket.set_cap_ack(true).context("set up a netlink socket")?;
        let (out, buffer) = (Vec::new(), Vec::with_capacity(ROOM));
        Ok(Self { socket, sequence: 0, out, buffer, messages: PhantomData })
    }

    /// Makes all requests, with these flags besides those that every request has; the outcome of
    /// each.
    ///
    /// # Errors
    ///
    /// If the socket fails.
    pub fn all(&mut self, requests: Vec<(M, u16)>) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            self.out.clear();
            let first = self.sequence.wrapping_add(1);
            let mut count = 0;
            for (request, flags) in requests.by_ref().take(BATCH) {
                self.push(request, NLM_F_REQUEST | NLM_F_ACK | flags);
                count += 1;
            }
            self.socket.send(&self.out, 0).context("ask netlink")?;
            self.outcomes(first, count, &mut outcomes)?;
        }
        Ok(outcomes)
    }

    /// Makes one request, with these flags besides those that every request has; what the kernel answers with, which is
    /// nothing for a request that changes something.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or the socket fails.
    pub fn request(&mut self, request: M, flags: u16) -> Result<Vec<M>, Failure> {
        self.send(request, NLM_F_ACK | flags).map_err(Failure::Socket)?;
        let mut answers = Vec::new();
        loop {
            self.receive().map_err(Failure::Socket)?;
            for message in messages(&self.buffer) {
                // An answer to a request that was given up is none to this.
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(answers),
                            Some(code) => Err(Failure::Refused(-code.get())),
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    /// Makes one request that has no answer.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or the socket fails.
    pub fn one(&mut self, request: M, flags: u16) -> Result<()> {
        self.request(request, flags)?;
        Ok(())
    }

    /// Everything of a kind.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or the socket fails.
    pub fn dump(&mut self, request: M) -> Result<Vec<M>> {
        for _ in 1..ATTEMPTS {
            if let Dump::Whole(all) = self.dump_once(request.clone())? {
                return Ok(all);
            }
        }
        // It changes all the time: some of it is better than nothing.
        let (Dump::Whole(all) | Dump::Interrupted(all)) = self.dump_once(request)?;
        Ok(all)
    }

    fn dump_once(&mut self, request: M) -> Result<Dump<M>> {
        self.send(request, NLM_F_DUMP)?;
        let mut all = Vec::new();
        let mut interrupted = false;
        loop {
            self.receive()?;
            for message in messages(&self.buffer) {
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    // It has failed on the way.
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code).into());
                    }
                    NetlinkPayload::Done(_) if interrupted => return Ok(Dump::Interrupted(all)),
                    NetlinkPayload::Done(_) => return Ok(Dump::Whole(all)),
                    NetlinkPayload::InnerMessage(inner) => all.push(inner),
                    NetlinkPayload::Error(error) => {
                        if let Some(code) = error.code {
                            return Err(io::Error::from_raw_os_error(-code.get()).into());
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, request: M, flags: u16) -> Result<()> {
        self.out.clear();
        self.push(request, NLM_F_REQUEST | flags);
        self.socket.send(&self.out, 0).context("ask netlink")?;
        Ok(())
    }

    fn push(&mut self, request: M, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let payload = NetlinkPayload::InnerMessage(request);
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = self.out.len();
        // Netlink aligns messages to four bytes.
        let length = message.buffer_len().next_multiple_of(4);
        self.out.resize(start + length, 0);
        message.serialize(&mut self.out[start..]);
    }

    fn outcomes(&mut self, first: u32, count: u32, outcomes: &mut Vec<Outcome>) -> Result<()> {
        let mut left = count;
        while left > 0 {
            self.receive()?;
            for message in messages::<M>(&self.buffer) {
                // An answer to a request that was given up is none to this.
                if message.header.sequence_number.wrapping_sub(first) >= count {
                    continue;
                }
                if let NetlinkPayload::Error(error) = message.payload {
                    outcomes.push(error.code.map_or(Ok(()), |code| Err(-code.get())));
                    left -= 1;
                }
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer, 0) {
            Ok(0) => bail!("netlink's socket is closed"),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bail!("netlink does not answer")
            }
            Err(error) => Err(error).context("read from netlink"),
        }
    }
}

/// A socket that receives changes.
pub struct Events {
    socket: Socket,
    buffer: Vec<u8>,
}

/// What [`Events::read`] has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// There is no more for now.
    All,
    /// Events were lost, and none waits: all is to be read anew.
    Lost,
}

impl Events {
    /// A socket for the events of these groups in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn open(groups: &[MulticastGroup]) -> Result<Self> {
        let open = || -> io::Result<Socket> {
            let socket = open(NETLINK_ROUTE)?;
            // Where that is not allowed, what is lost is read anew.
            let _ = setsockopt(&socket, sockopt::RcvBufForce, &BACKLOG);
            for &group in groups {
                socket.add_membership(group as u32)?;
            }
            Ok(socket)
        };
        let socket = open().context("subscribe to netlink's events")?;
        Ok(Self { socket, buffer: Vec::with_capacity(ROOM) })
    }

    /// Everything that waits. After a loss, what waits is thrown away: it is older than what is then
    /// read anew, and until it is out of the way the kernel drops further events without another report.
    ///
    /// # Errors
    ///
    /// If the socket fails.
    pub fn read(&mut self, mut each: impl FnMut(RouteNetlinkMessage)) -> Result<Read> {
        let mut lost = false;
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(0) => bail!("netlink's socket of events is closed"),
                Ok(_) if lost => {}
                Ok(_) => {
                    for message in messages(&self.buffer) {
                        if let NetlinkPayload::InnerMessage(inner) = message.payload {
                            each(inner);
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(if lost { Read::Lost } else { Read::All });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
                Err(error) => return Err(error).context("read netlink's events"),
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// [`Events`] for a task of a runtime.
pub(crate) struct AsyncEvents(AsyncFd<Events>);

impl AsyncEvents {
    /// As [`Events::open`], in a runtime.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn open(groups: &[MulticastGroup]) -> Result<Self> {
        // That events were lost is an error of the socket until it is read.
        let interest = Interest::READABLE | Interest::ERROR;
        let events = Events::open(groups)?;
        // SAFETY: the `AsyncFd` owns the events, which never replace their socket.
        let events = unsafe { AsyncFd::register_with_interest(events, interest) };
        Ok(Self(events.context("wait for netlink's events")?))
    }

    /// Waits until something can be read. May be dropped and called again.
    ///
    /// # Errors
    ///
    /// If the socket is broken.
    pub async fn ready(&mut self) -> Result<()> {
        let ready = self.0.ready_mut(Interest::READABLE | Interest::ERROR).await;
        // What comes from now on makes it ready again.
        ready.context("wait for netlink's events")?.clear_ready();
        Ok(())
    }

    /// As [`Events::read`].
    ///
    /// # Errors
    ///
    /// If the socket fails.
    pub fn read(&mut self, each: impl FnMut(RouteNetlinkMessage)) -> Result<Read> {
        self.0.get_mut().read(each)
    }
}

fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// The messages that were read at once, without those that can't be understood.
fn messages<M: NetlinkDeserializable>(
    buffer: &[u8],
) -> impl Iterator<Item = NetlinkMessage<M>> + use<'_, M> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let length = NetlinkBuffer::new_checked(rest).ok()?.length() as usize;
        let (message, after) = rest.split_at_checked(length.max(HEADER))?;
        rest = after.get(length.next_multiple_of(4) - length..).unwrap_or_default();
        Some(NetlinkMessage::deserialize(message).ok())
    })
    .flatten()
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    fn message(index: u32) -> Vec<u8> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(link));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn indices(bytes: &[u8]) -> Vec<u32> {
        messages(bytes)
            .filter_map(|message| match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                    Some(link.header.index)
                }
                _ => None,
            })
            .collect()
    }

    #[test]
    fn message_that_cannot_be_read_hides_none_behind_it() {
        let mut bytes = message(1);
        // An attribute that is longer than its message.
        let mut odd = message(2);
        odd.extend([0xff, 0, 3, 0]);
        odd[0] += 4;
        bytes.extend(odd);
        bytes.extend(message(3));
        assert_eq!(indices(&bytes), [1, 3]);
    }

    #[test]
    fn end_that_is_cut_off_is_no_message() {
        let mut bytes = message(1);
        bytes.extend(message(2));
        bytes.truncate(bytes.len() - 1);
        assert_eq!(indices(&bytes), [1]);
        assert!(indices(&[0; 16]).is_empty());
    }
}
