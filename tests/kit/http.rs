//! As much of an HTTP client as the tests need: one connection, requests one after another, the
//! body in full.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use socket2::{Domain, Socket, Type};

use crate::namespace::Namespace;

/// A connection to a web host.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

struct Head {
    status: u16,
    backend: Option<String>,
    length: Length,
}

/// How long a body is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Length {
    Known(usize),
    /// The lengths are in its chunks (RFC 9112, 7.1).
    Chunked,
}

const UNNAMED: &str = "an answer without X-Backend";

/// The host that answered, for messages.
fn name(backend: Option<&str>) -> &str {
    backend.unwrap_or("a host that does not send its name")
}

/// The response of a web host.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The host's name, if it sends one: the header `X-Backend`, which every web host of the lab sends.
    pub backend: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Connection {
    /// Connects from a namespace; `timeout` is also how long any later read or write may take.
    ///
    /// # Errors
    ///
    /// If no host answers.
    pub fn open(from: &Namespace, to: SocketAddr, timeout: Duration) -> Result<Self> {
        from.enter(|| Self::open_here(to, timeout))?
    }

    /// A connection from a namespace is refused.
    ///
    /// # Errors
    ///
    /// If it is not.
    pub fn refused(from: &Namespace, to: SocketAddr, timeout: Duration) -> Result<()> {
        let error = Self::open(from, to, timeout).map(drop).err();
        let error = error.with_context(|| format!("{to} is connected"))?;
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        ensure!(kind == Some(io::ErrorKind::ConnectionRefused), "{error:#}");
        Ok(())
    }

    /// Connects from the namespace of this thread.
    ///
    /// # Errors
    ///
    /// If no host answers.
    pub fn open_here(to: SocketAddr, timeout: Duration) -> Result<Self> {
        Self::open_here_by(to, timeout, &mut 0)
    }

    /// The same; `port` is the client's, whether a host answers or not.
    ///
    /// # Errors
    ///
    /// If no host answers.
    pub fn open_here_by(to: SocketAddr, timeout: Duration, port: &mut u16) -> Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).context("socket")?;
        Self::connect(&socket, to, timeout, port)?;
        Self::of(socket, timeout)
    }

    /// Connects by this port, which may have connections to other destinations.
    ///
    /// # Errors
    ///
    /// If no host answers, or the port has a connection to this one.
    pub fn open_here_from(port: u16, to: SocketAddr, timeout: Duration) -> Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).context("socket")?;
        socket.set_reuse_address(true).context("SO_REUSEADDR")?;
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let bound = socket.bind(&SocketAddr::new(any, port).into());
        bound.with_context(|| format!("bind to port {port}"))?;
        Self::connect(&socket, to, timeout, &mut 0)?;
        Self::of(socket, timeout)
    }

    fn connect(socket: &Socket, to: SocketAddr, timeout: Duration, port: &mut u16) -> Result<()> {
        let connected = socket.connect_timeout(&to.into(), timeout);
        let local = socket.local_addr().context("address of the socket")?;
        *port = local.as_socket().map_or(0, |local| local.port());
        connected.with_context(|| format!("connect to {to}"))
    }

    fn of(socket: Socket, timeout: Duration) -> Result<Self> {
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        let connection = Self { stream: BufReader::new(stream) };
        connection.set_timeout(timeout)?;
        Ok(connection)
    }

    /// How long any later read or write may take.
    ///
    /// # Errors
    ///
    /// If it is zero.
    pub fn set_timeout(&self, timeout: Duration) -> Result<()> {
        let stream = self.stream.get_ref();
        stream.set_read_timeout(Some(timeout)).context("read timeout")?;
        stream.set_write_timeout(Some(timeout)).context("write timeout")
    }

    /// The client's end.
    ///
    /// # Errors
    ///
    /// If the socket has none.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        self.stream.get_ref().local_addr().context("address of the socket")
    }

    /// The other end, as the socket has it.
    ///
    /// # Errors
    ///
    /// If the socket has none.
    pub fn peer_addr(&self) -> Result<SocketAddr> {
        self.stream.get_ref().peer_addr().context("address of the peer")
    }

    /// Sends a GET and reads the answer.
    ///
    /// # Errors
    ///
    /// If the connection breaks, or the answer is not HTTP.
    pub fn get(&mut self, path: &str) -> Result<Response> {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: vip\r\n\r\n"), &[])?;
        self.receive()
    }

    /// Sends `body` by POST and reads the answer.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub fn post(&mut self, path: &str, body: &[u8]) -> Result<Response> {
        let length = body.len();
        self.send(
            &format!("POST {path} HTTP/1.1\r\nHost: vip\r\nContent-Length: {length}\r\n\r\n"),
            body,
        )?;
        self.receive()
    }

    /// Sends a GET for as much of a page as `body` is long, and compares the answer with it, piece by
    /// piece, calling `go_on` after each; returns the host's name.
    ///
    /// # Errors
    ///
    /// If the connection breaks, or the answer differs.
    pub fn get_expecting(
        &mut self,
        path: &str,
        body: &[u8],
        mut go_on: impl FnMut() -> bool,
    ) -> Result<String> {
        let last = body.len().checked_sub(1).context("nothing is expected")?;
        let range = format!("Range: bytes=0-{last}");
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: vip\r\n{range}\r\n\r\n"), &[])?;
        let head = self.head()?;
        ensure!(
            head.status == 206,
            "status {} from {}",
            head.status,
            name(head.backend.as_deref())
        );
        ensure!(head.length == Length::Known(body.len()), "another length is to come");
        let mut piece = vec![0; 64 << 10];
        let mut rest = body;
        while !rest.is_empty() {
            let room = piece.len().min(rest.len());
            let read = match self.stream.read(&mut piece[..room]) {
                // A signal to this process is no error of the connection.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read,
            };
            let come = body.len() - rest.len();
            let read = read.with_context(|| format!("after {come} bytes of the body"))?;
            if read == 0 {
                bail!(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed"));
            }
            let (expected, left) = rest.split_at(read);
            ensure!(piece[..read] == *expected, "other bytes after {come}");
            rest = left;
            if !go_on() {
                break;
            }
        }
        head.backend.context(UNNAMED)
    }

    fn send(&mut self, head: &str, body: &[u8]) -> Result<()> {
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes()).context("send the request")?;
        stream.write_all(body).context("send the body")
    }

    fn receive(&mut self) -> Result<Response> {
        let Head { status, backend, length } = self.head()?;
        let mut body = Vec::new();
        match length {
            Length::Known(length) => self.read_on(&mut body, length)?,
            Length::Chunked => loop {
                let line = self.line()?;
                let size = line.split(';').next().unwrap_or_default();
                let size = usize::from_str_radix(size, 16).context("the size of a chunk")?;
                self.read_on(&mut body, size)?;
                ensure!(self.line()?.is_empty(), "a chunk is longer than its length");
                if size == 0 {
                    break;
                }
            },
        }
        Ok(Response { status, backend, body })
    }

    /// Reads so much more of a body.
    fn read_on(&mut self, body: &mut Vec<u8>, more: usize) -> Result<()> {
        let begin = body.len();
        body.resize(begin + more, 0);
        self.stream.read_exact(&mut body[begin..]).context("read the body")
    }

    fn head(&mut self) -> Result<Head> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.context("not an HTTP status line")?;
        let (mut length, mut backend) = (None, None);
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    length = Some(Length::Known(value.trim().parse().context("length")?));
                }
                "transfer-encoding" if value.trim() == "chunked" => length = Some(Length::Chunked),
                "x-backend" => backend = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        let length = length.context("an answer without its length")?;
        Ok(Head { status, backend, length })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).context("read the answer")?;
        if read == 0 {
            bail!(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed"));
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Response {
    /// That the request succeeded.
    ///
    /// # Errors
    ///
    /// If the status is not 200.
    pub fn ok(self) -> Result<Self> {
        ensure!(
            self.status == 200,
            "status {} from {}",
            self.status,
            name(self.backend.as_deref())
        );
        Ok(self)
    }

    /// The web host that answered.
    ///
    /// # Errors
    ///
    /// If it does not send its name.
    pub fn backend(self) -> Result<String> {
        self.backend.context(UNNAMED)
    }

    /// The body as text, without the line end.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim_end().to_owned()
    }
}
