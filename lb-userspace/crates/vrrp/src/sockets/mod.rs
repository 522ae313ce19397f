//! The sockets of virtual routers: advertisements as raw IP, and frames that announce addresses or
//! show their owners.
//!
//! All are non-blocking and belong to one interface, by its index. When that interface is deleted
//! they stay, but nothing comes and nothing can be sent (`ENODEV`, for IPv6 `ENETUNREACH`): an
//! interface of the same name later is another one, and its sockets are opened anew. An interface that
//! only goes down and up again, or loses and gets addresses, keeps them; a [`Sender`] over IPv4 sends
//! nothing while the node has not its source address.

mod filter;
mod link;
mod receiver;
mod sender;

pub use self::{
    link::{Announcer, Watch},
    receiver::{BUFFER, Received, Receiver},
    sender::Sender,
};

/// The interface that a socket belongs to: another one of the same name later has another index.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketInterface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
}
