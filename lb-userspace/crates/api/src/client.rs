//! The client: one connection for each request.

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use lb_model::{defaults, refusal::Error as Answer};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, task::JoinHandle};

/// How long a daemon may take to take a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long if the kernel verifies a program for it: a second, or many of them where all CPUs are busy.
const LOADED: Duration = Duration::from_secs(180);

/// A client of `lbd`.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

/// Why a request was not answered as hoped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket, or no process listens on it.
    #[error("lbd is not running ({why} {})", socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// `no socket`, or `nobody listens on`.
        why: &'static str,
    },
    /// The socket is not for this user.
    #[error("no permission to use {}: be root, or of its group {group} ('usermod -aG {group} USER', then log in again)", socket.display())]
    Permission {
        /// The socket.
        socket: PathBuf,
        /// The group that may use it.
        group: String,
    },
    /// The daemon refused.
    #[error("{}", with_hint(.0))]
    Refused(Answer),
    /// The daemon ends.
    #[error("lbd is stopping")]
    Stopping,
    /// The daemon does not answer.
    #[error("lbd does not answer on {} within {} s: it hangs, or its machine does; its log has more", socket.display(), after.as_secs())]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// For how long.
        after: Duration,
    },
    /// Anything else.
    #[error("connect to lbd on {}: {why}", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// The error.
        why: String,
    },
}

fn with_hint(answer: &Answer) -> String {
    match &answer.hint {
        Some(hint) => format!("{}; {hint}", answer.error),
        None => answer.error.clone(),
    }
}

impl Error {
    /// Whether the daemon may be there again in a moment.
    #[must_use]
    pub const fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::NotRunning { .. } | Self::Stopping | Self::Silent { .. } | Self::Broken { .. }
        )
    }
}

impl Client {
    /// A client of the daemon on this socket.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), patience: ANSWER }
    }

    /// The same for questions for which a program is loaded.
    #[must_use]
    pub fn for_a_program(&self) -> Self {
        Self { patience: LOADED, ..self.clone() }
    }

    /// Requests a value.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// Sends a value.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub async fn send_json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(error))?;
        self.send(method, path, body.into()).await
    }

    /// Sends bytes.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, Error> {
        self.within(self.patience, async {
            let (response, connection) = self.exchange(method, path, body).await?;
            let status = response.status();
            let body = response.into_body().collect().await;
            let body = body.map_err(|error| self.broken(error))?.to_bytes();
            connection.abort();
            self.check(status, &body)?;
            serde_json::from_slice(&body).map_err(|error| self.broken(error))
        })
        .await
    }

    /// Requests lines that come one after the other, for as long as the daemon runs.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub async fn lines(&self, path: &str) -> Result<Lines, Error> {
        self.within(self.patience, async {
            let (response, connection) = self.exchange(Method::GET, path, Bytes::new()).await?;
            let status = response.status();
            let mut body = response.into_body();
            if !status.is_success() {
                let body = (&mut body).collect().await.map_err(|error| self.broken(error))?;
                self.check(status, &body.to_bytes())?;
            }
            Ok(Lines { client: self.clone(), body, connection, read: Vec::new() })
        })
        .await
    }

    /// Sends a value; the answer's bytes as they come, for as long as the daemon has some.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub async fn stream(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Pieces, Error> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(error))?;
        self.within(self.patience, async {
            let (response, connection) = self.exchange(method, path, body.into()).await?;
            let status = response.status();
            let mut body = response.into_body();
            if !status.is_success() {
                let body = (&mut body).collect().await.map_err(|error| self.broken(error))?;
                self.check(status, &body.to_bytes())?;
            }
            Ok(Pieces { client: self.clone(), body, connection })
        })
        .await
    }

    /// Sends a request; the answer's head.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(Response<Incoming>, JoinHandle<hyper::Result<()>>), Error> {
        let stream = self.within(CONNECT, self.connect()).await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        let connection = tokio::spawn(connection);
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "lbd")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(error))?;
        let response = sender.send_request(request).await.map_err(|error| self.broken(error))?;
        Ok((response, connection))
    }

    async fn connect(&self) -> Result<UnixStream, Error> {
        loop {
            match UnixStream::connect(&self.socket).await {
                // Too many wait to be taken in.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(CONNECT / 100).await;
                }
                stream => return stream.map_err(|error| self.unreachable(error)),
            }
        }
    }

    async fn within<T>(
        &self,
        after: Duration,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let silent = |_| Error::Silent { socket: self.socket.clone(), after };
        tokio::time::timeout(after, answer).await.map_err(silent)?
    }

    /// Whether an answer has the requested type.
    fn check(&self, status: StatusCode, body: &[u8]) -> Result<(), Error> {
        match status {
            _ if status.is_success() => Ok(()),
            StatusCode::SERVICE_UNAVAILABLE => Err(Error::Stopping),
            _ => Err(match serde_json::from_slice(body) {
                Ok(answer) => Error::Refused(answer),
                Err(_) if status == StatusCode::BAD_REQUEST => {
                    self.broken(String::from_utf8_lossy(body))
                }
                Err(_) => self.broken(status),
            }),
        }
    }

    fn broken(&self, why: impl std::fmt::Display) -> Error {
        Error::Broken { socket: self.socket.clone(), why: why.to_string() }
    }

    fn unreachable(&self, error: io::Error) -> Error {
        let socket = self.socket.clone();
        match error.kind() {
            io::ErrorKind::NotFound => Error::NotRunning { socket, why: "no socket" },
            io::ErrorKind::ConnectionRefused => {
                Error::NotRunning { socket, why: "nobody listens on" }
            }
            io::ErrorKind::PermissionDenied => {
                let group = group_of(&socket).unwrap_or_else(|| defaults::GROUP.into());
                Error::Permission { socket, group }
            }
            _ => self.broken(error),
        }
    }
}

/// Bytes that come piece by piece.
#[derive(Debug)]
pub struct Pieces {
    client: Client,
    body: Incoming,
    connection: JoinHandle<hyper::Result<()>>,
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Pieces {
    /// The next piece; none when the daemon has sent all.
    ///
    /// # Errors
    ///
    /// The connection has broken.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(piece) = frame.into_data() {
                        return Ok(Some(piece));
                    }
                }
                Some(Err(error)) => return Err(self.client.broken(error)),
            }
        }
    }
}

/// Lines that come one after the other.
#[derive(Debug)]
pub struct Lines {
    client: Client,
    body: Incoming,
    connection: JoinHandle<hyper::Result<()>>,
    read: Vec<u8>,
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Lines {
    /// The next line; none when the daemon has sent all.
    ///
    /// # Errors
    ///
    /// The connection has broken.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        loop {
            if let Some(end) = self.read.iter().position(|&byte| byte == b'\n') {
                let rest = self.read.split_off(end + 1);
                let line = std::mem::replace(&mut self.read, rest);
                return Ok(Some(line));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    self.read.extend(frame.into_data().unwrap_or_default());
                }
                Some(Err(error)) => return Err(self.client.broken(error)),
            }
        }
    }
}

/// The name of the group that a file belongs to.
fn group_of(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    let id = std::fs::metadata(path).ok()?.gid().to_string();
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1) == Some(&id)).then(|| name.to_owned())
    })
}
