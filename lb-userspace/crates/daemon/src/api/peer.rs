//! Credentials of the peer of the Unix socket (SO_PEERCRED), and its permission to use the socket.
//!
//! The socket's mode permits the same; this holds when an operator changes that, or a process passes a connection on.

use std::{io, mem::size_of, os::fd::AsRawFd as _, sync::Arc};

use axum::{
    Json,
    extract::{ConnectInfo, Request, State, connect_info::Connected},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse as _, Response},
    serve::IncomingStream,
};
use lb_model::refusal::Error;
use tokio::net::{UnixListener, UnixStream};

use super::socket::group_id;

/// A process is in so many groups at most (`NGROUPS_MAX`).
const MOST_GROUPS: usize = 65_536;

/// The credentials of a client, at the time of its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    user: u32,
    group: u32,
    /// The supplementary ones.
    groups: Arc<[u32]>,
}

impl Peer {
    fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let (user, group) = (credentials.uid(), credentials.gid());
        Ok(Self { user, group, groups: groups_of(stream)?.into() })
    }

    /// Root, the user that `lbd` runs as, and the members of the group of the socket.
    fn may(&self, own: u32, given_to: impl FnOnce() -> Option<u32>) -> bool {
        if self.user == 0 || self.user == own {
            return true;
        }
        given_to().is_some_and(|group| self.group == group || self.groups.contains(&group))
    }
}

/// The supplementary groups of a peer (`SO_PEERGROUPS`, Linux 4.13).
fn groups_of(stream: &UnixStream) -> io::Result<Vec<u32>> {
    let mut room = 32;
    while room <= MOST_GROUPS {
        let mut groups = vec![0_u32; room];
        let mut bytes = (room * size_of::<u32>()) as libc::socklen_t;
        // SAFETY: the kernel writes at most `bytes` bytes, which `groups` has, any of which make a
        // number; and how many they are into `bytes`.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let error = io::Error::last_os_error();
        if result == 0 {
            groups.truncate(bytes as usize / size_of::<u32>());
            return Ok(groups);
        }
        // `bytes` is now their size; but they may have become more.
        match error.raw_os_error() {
            Some(libc::ERANGE) => room = (bytes as usize / size_of::<u32>()).max(room * 2),
            _ => return Err(error),
        }
    }
    Err(io::Error::other("in more groups than the kernel allows"))
}

/// The credentials of a connection's client; none if they could not be read.
#[derive(Clone, Debug)]
pub(super) struct ConnectedPeer(Option<Peer>);

impl Connected<IncomingStream<'_, UnixListener>> for ConnectedPeer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let peer = Peer::of(stream.io());
        Self(
            peer.inspect_err(|error| {
                tracing::warn!("read the credentials of a client of the socket: {error}")
            })
            .ok(),
        )
    }
}

/// Answers only permitted clients. `group` is the name of the group that is permitted.
pub(super) async fn check(
    State(group): State<Arc<str>>,
    ConnectInfo(ConnectedPeer(peer)): ConnectInfo<ConnectedPeer>,
    request: Request,
    next: Next,
) -> Response {
    let own = nix::unistd::geteuid().as_raw();
    match peer {
        Some(peer) if peer.may(own, || group_id(&group)) => next.run(request).await,
        peer => {
            let user =
                peer.map_or_else(|| "an unknown user".into(), |peer| format!("user {}", peer.user));
            tracing::warn!("{user} is not in group {group}, and tried to use the socket");
            let error = Error {
                error: format!("{user} may not use lbd"),
                hint: Some(format!(
                    "be root, or of its group {group} ('usermod -aG {group} USER', then log in again)"
                )),
                unconfirmed: None,
            };
            (StatusCode::FORBIDDEN, Json(error)).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(user: u32, group: u32, groups: &[u32]) -> Peer {
        Peer { user, group, groups: groups.into() }
    }

    #[test]
    fn root_the_own_user_and_members_of_the_group_may() {
        const LB: u32 = 990;
        for (peer, may) in [
            (peer(0, 0, &[]), true),
            (peer(77, 77, &[]), true),
            (peer(1000, LB, &[]), true),
            (peer(1000, 1000, &[4, LB, 27]), true),
            (peer(1000, 1000, &[4, 27]), false),
            (peer(LB, 1000, &[]), false),
            (peer(65_534, 65_534, &[0]), false),
        ] {
            assert_eq!(peer.may(77, || Some(LB)), may, "{peer:?}");
            assert_eq!(peer.may(77, || None), peer.user == 0 || peer.user == 77, "{peer:?}");
        }
    }

    #[tokio::test]
    async fn the_kernel_tells_who_is_there() {
        let (here, _there) = UnixStream::pair().expect("a pair of sockets");
        let seen = Peer::of(&here).expect("the kernel knows");
        assert_eq!(seen.user, nix::unistd::geteuid().as_raw());
        let status = std::fs::read_to_string("/proc/self/status").expect("it is there");
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).expect("a line");
        let mut groups: Vec<u32> =
            line.split_whitespace().map(|id| id.parse().expect("a number")).collect();
        let mut reported = seen.groups.to_vec();
        groups.sort_unstable();
        reported.sort_unstable();
        assert_eq!(reported, groups);
    }
}
