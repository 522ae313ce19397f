//! The TCP sockets of this network namespace, as `ss` reads them (`sock_diag`, Linux 3.3).

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;

use super::client::Client;

/// The cookies (`SO_COOKIE`) of the TCP sockets that have a connection or open one, in the network namespace of the calling
/// thread.
///
/// # Errors
///
/// If the kernel has no `sock_diag`.
pub fn connected_cookies() -> Result<BTreeSet<u64>> {
    let mut client = Client::of(NETLINK_SOCK_DIAG)?;
    let mut cookies = BTreeSet::new();
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all()
                - (StateFlags::TIME_WAIT | StateFlags::CLOSE | StateFlags::LISTEN),
            socket_id,
        };
        let answers = client.dump(SockDiagMessage::InetRequest(request));
        let answers = answers.context("read the TCP sockets by netlink (sock_diag)")?;
        cookies.extend(answers.iter().filter_map(|answer| match answer {
            SockDiagMessage::InetResponse(socket) => {
                Some(u64::from_ne_bytes(socket.header.socket_id.cookie))
            }
            _ => None,
        }));
    }
    Ok(cookies)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use nix::{getsockopt_impl, sockopt_impl, sys::socket::getsockopt};

    use super::*;

    sockopt_impl!(Cookie, GetOnly, libc::SOL_SOCKET, libc::SO_COOKIE, u64);

    #[test]
    fn a_socket_is_found_from_its_connection_on_until_it_is_closed() -> Result<()> {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address)?;
            let stream = TcpStream::connect(listener.local_addr()?)?;
            let [listening, connected] =
                [getsockopt(&listener, Cookie)?, getsockopt(&stream, Cookie)?];
            let found = connected_cookies()?;
            assert!(found.contains(&connected) && !found.contains(&listening), "{address}");
            let (accepted, _) = listener.accept()?;
            drop(accepted);
            drop(stream);
            assert!(!connected_cookies()?.contains(&connected), "{address}");
        }
        Ok(())
    }
}
