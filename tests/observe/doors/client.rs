//! A client that sends exactly the given bytes.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};
use kit::namespace::Namespace;

use super::PATIENCE;

/// The response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Status line and fields, in small letters.
    pub head: String,
    pub body: String,
}

/// Sends `text` on a connection of its own, and reads until the other end closes it or sends nothing more.
pub fn request(from: &Namespace, to: SocketAddr, text: &str) -> Result<Answer> {
    from.enter(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("connect")?;
        stream.set_read_timeout(Some(PATIENCE)).context("timeout")?;
        stream.write_all(text.as_bytes()).context("ask")?;
        read(&mut stream)
    })?
}

/// Reads to the end, or until nothing comes.
pub fn read(stream: &mut TcpStream) -> Result<Answer> {
    let mut bytes = Vec::new();
    let ended = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("no answer but {text:?}: {ended:?}"))?;
    let status = head.split(' ').nth(1).context("a status")?.parse().context("a number")?;
    Ok(Answer { status, head: head.to_lowercase(), body: body.to_owned() })
}

/// GETs a path with these fields, each with its line's end.
pub fn get(from: &Namespace, to: SocketAddr, path: &str, fields: &str) -> Result<Answer> {
    let text =
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n");
    request(from, to, &text)
}

/// Opens connections and sends `text` on each, as fast as it goes; those that don't come about are left out.
pub fn open(from: &Namespace, to: SocketAddr, count: usize, text: &str) -> Result<Vec<TcpStream>> {
    from.enter(|| {
        let opened = (0..count).filter_map(|_| {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).ok()?;
            stream.write_all(text.as_bytes()).ok()?;
            Some(stream)
        });
        opened.collect()
    })
}
