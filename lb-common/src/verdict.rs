//! Every way in which a packet can end, and the counter of each.
//!
//! A packet ends in one counter: `VERDICTS` counts passes and drops by reason, `BACKEND_COUNTERS` counts forwarded
//! packets by backend. Both have a stretch for each CPU, so the program needs no atomic operation, and the daemon
//! reads them through mapped memory.

use core::ops::Deref;

use crate::abi::{Backend, BackendCounter, ReturnCounter, Unanswered};

/// What happens to a packet. `B` is how the tables hand out a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<B> {
    /// It is not the balancer's: the node's own network stack gets it untouched.
    Pass(Pass),
    /// It was the balancer's, and can't be sent on.
    Drop(Drop),
    /// It goes to a backend.
    Forward(Forward<B>),
    /// It can't be sent on, and its sender gets an ICMP error.
    Reply(Reply),
    /// It is the answer of a backend in mode `nat`, and goes to the client. Only [`crate::returns`] decides it.
    Return(Return<B>),
}

/// The answer of a backend in mode `nat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Return<B> {
    /// The backend's id.
    pub id: u16,
    /// The backend.
    pub backend: B,
    /// Offset of the IP header in the frame, in bytes.
    pub l3: usize,
    /// Whether the packet is IPv6.
    pub v6: bool,
    /// Bytes of the IP packet.
    pub len: u16,
    /// Packets that leave for it, as [`Forward::packets`].
    pub packets: u32,
    /// Bytes of their IP packets.
    pub bytes: u32,
}

/// Where a packet goes, and what is to be counted for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward<B> {
    /// The backend's id.
    pub id: u16,
    /// The backend.
    pub backend: B,
    /// Offset of the IP header in the frame, in bytes.
    pub l3: usize,
    /// Whether the packet, as it came, is IPv6.
    pub v6: bool,
    /// Bytes of the IP packet.
    pub len: u16,
    /// Packets that leave for it: 1, or as many as it has segments ([`crate::gso`]).
    pub packets: u32,
    /// Bytes of their IP packets.
    pub bytes: u32,
    /// The bits of the flow's hash that vary the outer source of a tunnel.
    pub entropy: u32,
    /// Bits of [`events`].
    pub events: u32,
}

impl<B: Deref<Target = Backend>> Verdict<B> {
    /// The same with a copy of the backend.
    pub fn owned(self) -> Verdict<Backend> {
        match self {
            Self::Pass(reason) => Verdict::Pass(reason),
            Self::Drop(reason) => Verdict::Drop(reason),
            Self::Reply(reply) => Verdict::Reply(reply),
            Self::Forward(Forward {
                id,
                backend,
                l3,
                v6,
                len,
                packets,
                bytes,
                entropy,
                events,
            }) => {
                let backend = *backend;
                Verdict::Forward(Forward {
                    id,
                    backend,
                    l3,
                    v6,
                    len,
                    packets,
                    bytes,
                    entropy,
                    events,
                })
            }
            Self::Return(Return { id, backend, l3, v6, len, packets, bytes }) => {
                let backend = *backend;
                Verdict::Return(Return { id, backend, l3, v6, len, packets, bytes })
            }
        }
    }
}

/// What else is counted for a forwarded packet.
pub mod events {
    /// It opens a flow.
    pub const NEW_FLOW: u32 = 1;
    /// It went to the slot's base owner, without a pin.
    pub const UNPINNED: u32 = 2;
    /// It is a SYN that was seen before.
    pub const SYN_RETRANSMISSION: u32 = 4;
    /// It is a SYN that goes to its second choice, where it has been pinned.
    pub const SECOND_CHOICE: u32 = 8;
    /// It is a bare ACK: its sender has just received from the backend. Data proves nothing,
    /// as a client repeats it for minutes to a backend that is dead; nor does a FIN or RST, by which
    /// clients give up; nor a later fragment or an ICMP error, which any host may send at any time.
    pub const BARE_ACK: u32 = 16;
    /// There is no backend for it because it can't be pinned: [`super::Drop::Unpinnable`].
    pub const UNPINNABLE: u32 = 32;
    /// Another balancer has forwarded it to the backend on this node ([`crate::deliver`]).
    pub const DELIVERED: u32 = 64;
}

impl BackendCounter {
    /// Counts what is forwarded. Of [`events::BARE_ACK`], `is_bare_ack` decides: it is called only if it makes a
    /// difference.
    #[inline(always)]
    pub fn count<B>(
        &self,
        to: &Forward<B>,
        is_bare_ack: impl FnOnce() -> bool,
        now_nanos: impl FnOnce() -> u64,
    ) {
        let events = to.events;
        self.packets.bump(u64::from(to.packets));
        self.bytes.bump(u64::from(to.bytes));
        if self.unanswered.load() != 0 && is_bare_ack() {
            self.unanswered.store(0);
        }
        if events & !events::BARE_ACK == 0 {
            return;
        }
        if events & events::UNPINNED != 0 {
            self.unpinned.bump(1);
        }
        if events & events::NEW_FLOW == 0 {
            return;
        }
        self.new_flows.bump(1);
        let unanswered = Unanswered(self.unanswered.load());
        self.unanswered.store(unanswered.with_syn(now_nanos).0);
        if events & events::SYN_RETRANSMISSION != 0 {
            self.syn_retransmissions.bump(1);
        }
        if events & events::SECOND_CHOICE != 0 {
            self.second_choices.bump(1);
        }
    }

    /// Takes back what [`Self::count`] counted, but for [`events::BARE_ACK`]: the ACK was received.
    #[inline(always)]
    pub fn take_back<B>(&self, to: &Forward<B>) {
        // Two's complement: adding this takes one away.
        const LESS: u64 = u64::MAX;
        let events = to.events;
        self.packets.bump(u64::from(to.packets).wrapping_neg());
        self.bytes.bump(u64::from(to.bytes).wrapping_neg());
        if events & events::UNPINNED != 0 {
            self.unpinned.bump(LESS);
        }
        if events & events::NEW_FLOW != 0 {
            self.new_flows.bump(LESS);
            self.unanswered.bump(LESS);
        }
        if events & events::SYN_RETRANSMISSION != 0 {
            self.syn_retransmissions.bump(LESS);
        }
        if events & events::SECOND_CHOICE != 0 {
            self.second_choices.bump(LESS);
        }
    }
}

/// What a TCP answer says about its backend in mode `nat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Noted {
    /// Nothing.
    Other,
    /// It accepts a connection.
    Accepted,
    /// It refuses one.
    Refused,
}

impl ReturnCounter {
    /// Counts an answer, of which `noted` is a [`Noted`].
    #[inline(always)]
    pub fn count<B>(&self, answer: &Return<B>, noted: u64) {
        self.packets.bump(u64::from(answer.packets));
        self.bytes.bump(u64::from(answer.bytes));
        if noted == Noted::Accepted as u64 {
            self.accepted.bump(1);
        }
        if noted == Noted::Refused as u64 {
            self.refused.bump(1);
        }
    }
}

/// An ICMP error for the sender of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Its ICMP type.
    pub kind: ReplyKind,
    /// Offset of the IP header in the frame, in bytes.
    pub l3: usize,
    /// Whether the packet is IPv6.
    pub v6: bool,
    /// Bytes of the IP packet.
    pub len: u16,
    /// [`ReplyKind::TooBig`]: the largest packet that would do, in bytes; otherwise 0.
    pub mtu: u16,
}

/// The ICMP errors that the balancer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyKind {
    /// IPv4: fragmentation needed (RFC 1191, 4); IPv6: packet too big (RFC 4443, 3.2).
    TooBig,
    /// Time to live / hop limit exceeded in transit (RFC 792; RFC 4443, 3.3).
    TtlExceeded,
}

macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident from $first:literal { $($(#[$doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $name { $($(#[$doc])* $variant),+ }

        impl $name {
            /// All of them, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Index of the counter in `VERDICTS`.
            #[must_use]
            #[inline(always)]
            pub const fn index(self) -> u32 {
                $first + self as u32
            }

            /// The reason whose counter has this index.
            #[must_use]
            #[inline(always)]
            pub const fn from_index(index: u32) -> Option<Self> {
                $(if index == Self::$variant.index() {
                    return Some(Self::$variant);
                })+
                None
            }

            /// The word used in metrics and messages.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

/// Counters per CPU in `VERDICTS`.
pub const REASONS: u32 = 48;

reasons! {
    /// Why a packet was left to the node's own network stack.
    Pass from 0 {
        /// Its destination, port and protocol are no service.
        NotAService = "not_a_service",
        /// Neither IPv4 nor IPv6: ARP and the like.
        NotIp = "not_ip",
        /// Neither TCP nor UDP nor an ICMP error.
        Protocol = "protocol",
        /// The frame is for another MAC address.
        OtherHost = "other_host",
        /// More than two VLAN tags.
        VlanDepth = "vlan_depth",
        /// The frame ends before its headers do.
        Truncated = "truncated",
        /// A header contradicts itself: version, lengths.
        Malformed = "malformed",
        /// More IPv6 extension headers than are followed, or one that can't be followed.
        ExtensionHeaders = "extension_headers",
        /// A fragment of a packet that is for the node itself.
        Fragment = "fragment",
        /// The answer of a backend in mode `nat` for which the kernel has no route, or whose time to live has run out.
        ReturnUntranslated = "return_untranslated",
    }
}

reasons! {
    /// Why a packet of a service was dropped, or answered instead of forwarded.
    Drop from 16 {
        /// The service has no backend that can take it.
        NoBackend = "no_backend",
        /// A fragment whose first fragment was not seen.
        FragmentWithoutFirst = "fragment_without_first",
        /// Too big for the way to the backend, and no error may be sent for it.
        TooBig = "too_big",
        /// Its time to live has run out, and no error may be sent for it.
        TtlExceeded = "ttl_exceeded",
        /// Too big for the way to the backend; its sender was sent an error (fragmentation needed
        /// or packet too big).
        TooBigReplied = "too_big_replied",
        /// Its time to live has run out; its sender was sent an error.
        TtlExceededReplied = "ttl_exceeded_replied",
        /// The frame has no room for the new headers.
        NoHeadroom = "no_headroom",
        /// Too big, or its time to live has run out; its sender got no error, as no more ICMP errors
        /// may be sent at this moment.
        IcmpRateLimited = "icmp_rate_limited",
        /// The same; its source is no address that an ICMP error may go to.
        IcmpBadSource = "icmp_bad_source",
        /// It opens a flow in a slot in flux whose base owner is soft down, and no pin can be made: the
        /// service's SYN budget is spent, `PINS` is full, or pinning is paused for a handover. Or an older connection of its client's address and
        /// port is pinned to a backend that is soft down, and may live. The client sends it again.
        Unpinnable = "unpinnable",
        /// Mode `nat`: its client is the backend that it would go to, which would take it for a packet of its own.
        Hairpin = "hairpin",
    }
}

impl Pass {
    /// Whether such packets are rare in a network that is well, so that one is worth a word.
    #[inline(always)]
    #[must_use]
    pub const fn is_odd(self) -> bool {
        matches!(self, Self::VlanDepth | Self::Truncated | Self::Malformed | Self::ExtensionHeaders)
    }
}

const _: () = {
    assert!(Pass::ALL.len() <= 16);
    assert!(Drop::ALL.len() <= (REASONS - 16) as usize);
};
