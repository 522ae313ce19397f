//! The client: one connection for each request.

use std::{
    io,
    path::{Path, PathBuf},
};

use http_body_util::{BodyExt as _, Full};
use hyper::{Method, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::Error as Answer;

/// Talks to `lbd`.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why a request was not answered as hoped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket, or nobody listens on it.
    #[error("lbd is not running ({why} {}): start it with 'lbd --config {}'", socket.display(), crate::config::DEFAULT_FILE)]
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
    /// Anything else.
    #[error("talk to lbd on {}: {why}", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What went wrong.
        why: String,
    },
}

fn with_hint(answer: &Answer) -> String {
    match &answer.hint {
        Some(hint) => format!("{}; {hint}", answer.error),
        None => answer.error.clone(),
    }
}

impl Client {
    /// A client of the daemon on this socket.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Asks for something.
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
        let stream =
            UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(error))?;
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
        let status = response.status();
        let body =
            response.into_body().collect().await.map_err(|error| self.broken(error))?.to_bytes();
        connection.abort();
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| self.broken(error));
        }
        match serde_json::from_slice(&body) {
            Ok(answer) => Err(Error::Refused(answer)),
            Err(_) if status == StatusCode::BAD_REQUEST => {
                Err(self.broken(String::from_utf8_lossy(&body)))
            }
            Err(_) => Err(self.broken(status)),
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
                let group =
                    group_of(&socket).unwrap_or_else(|| crate::config::DEFAULT_GROUP.into());
                Error::Permission { socket, group }
            }
            _ => self.broken(error),
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
