//! nginx on a web host, with a configuration, files and a log of its own.
//!
//! | path | |
//! |---|---|
//! | `/` | the host's name |
//! | `/connection` | the host's name, the client's address and port, and the port that nginx got the request at |
//! | `/health` | `ok` and the host's name |
//! | `/big?rate=100k` | [`BIG_BYTES`] bytes, the same on every host; `rate` (bytes a second) is optional |
//! | `/upload` | takes a body of any size; answers with its length once all of it has come |
//!
//! Every answer names the host in the header `X-Backend`.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    command,
    http::Connection,
    namespace::Namespace,
    process::{Orphan, Process},
    wait,
};

/// The ports that nginx listens on, IPv4 and IPv6.
pub const PORTS: [u16; 2] = [80, 8080];

/// Size of `/big`.
pub const BIG_BYTES: usize = 8 << 20;

/// A running nginx.
#[derive(Debug)]
pub struct Nginx {
    process: Option<Process>,
    /// Those that got the signal to [quit](Self::quit), and their remaining processes.
    quitting: Vec<Process>,
    host: String,
    folder: PathBuf,
    big: PathBuf,
    /// How often it was started.
    starts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Processes {
    /// One without a master, so that one pid is all of nginx.
    One,
    /// A master and a worker, as a distribution runs it: only so does it end gracefully.
    MasterAndWorker,
}

impl Nginx {
    /// Starts nginx in the namespace, and waits until it answers. `folder` becomes its
    /// own; `big` is the file behind `/big`.
    ///
    /// # Errors
    ///
    /// If it is not installed or does not start.
    pub fn start(
        namespace: &Namespace,
        host: &str,
        folder: &Path,
        big: &Path,
        orphan: Orphan,
    ) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let mut nginx = Self {
            process: None,
            quitting: Vec::new(),
            host: host.to_owned(),
            folder: folder.to_owned(),
            big: big.to_owned(),
            starts: 0,
        };
        nginx.restart(namespace, orphan)?;
        Ok(nginx)
    }

    /// Starts nginx, after [`Self::kill`] or for the first time.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub fn restart(&mut self, namespace: &Namespace, orphan: Orphan) -> Result<()> {
        self.launch(namespace, orphan, Processes::One)
    }

    /// Starts nginx with a master and a worker, in the place of one that runs.
    ///
    /// # Errors
    ///
    /// If that does not end, or this does not start.
    pub fn serve(&mut self, namespace: &Namespace, orphan: Orphan) -> Result<()> {
        self.stop()?;
        self.launch(namespace, orphan, Processes::MasterAndWorker)
    }

    fn launch(
        &mut self,
        namespace: &Namespace,
        orphan: Orphan,
        processes: Processes,
    ) -> Result<()> {
        self.starts += 1;
        let text = configuration(&self.host, &self.folder, &self.big, self.starts, processes);
        fs::write(self.folder.join("nginx.conf"), text).context("write nginx.conf")?;
        let program = command::find("nginx").context(
            "nginx is not installed; `apt-get install nginx-light` on Debian and Ubuntu",
        )?;
        let folder = self.folder.to_string_lossy();
        let config = self.folder.join("nginx.conf");
        let config = config.to_string_lossy();
        let args = ["-p", &*folder, "-c", &*config, "-e", "stderr"];
        let log = self.folder.join("nginx.log");
        let mut process = Process::start(namespace, &program, &args, &log, orphan)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORTS[0]));
        wait::until(Duration::from_secs(10), &format!("nginx on {} answers", self.host), || {
            process.check()?;
            // The kernel takes connections before nginx is ready to answer any.
            Connection::open(namespace, address, Duration::from_secs(1))?.get("/")?.ok()
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills nginx; its connections are reset.
    ///
    /// # Errors
    ///
    /// If it can't be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), Process::kill)
    }

    /// Stops nginx (SIGTERM) and waits for its end; its connections are closed.
    ///
    /// # Errors
    ///
    /// If it does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |process| process.stop().map(drop))
    }

    /// Has an nginx with a master end when it has served the requests that it has (SIGQUIT, `nginx
    /// -s quit`), and does not wait for that. From then on it takes no connection.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn quit(&mut self) -> Result<()> {
        let process = self.process.take();
        let process = process.with_context(|| format!("nginx on {} does not run", self.host))?;
        process.signal(libc::SIGQUIT)?;
        self.quitting.push(process);
        Ok(())
    }

    /// Stops nginx where it is (SIGSTOP): the kernel takes its connections, and does not answer.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn freeze(&self) -> Result<()> {
        self.running()?.signal(libc::SIGSTOP)
    }

    /// Lets nginx go on that was [frozen](Self::freeze).
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn thaw(&self) -> Result<()> {
        self.running()?.signal(libc::SIGCONT)
    }

    fn running(&self) -> Result<&Process> {
        self.process.as_ref().with_context(|| format!("nginx on {} does not run", self.host))
    }

    /// Lets nginx run on when this is dropped.
    pub fn keep(&mut self) {
        if let Some(process) = &mut self.process {
            process.keep();
        }
    }
}

/// The content of `/big`: numbers that don't repeat, so that a piece that is missing, doubled or
/// out of place shows.
#[must_use]
pub fn big() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        // xorshift64, Marsaglia 2003.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(BIG_BYTES / 8).flatten().collect()
}

/// The configuration of the `start`-th start: one that is ending removes its socket when it is gone.
fn configuration(
    host: &str,
    folder: &Path,
    big: &Path,
    start: u32,
    processes: Processes,
) -> String {
    let (folder, big) = (folder.display(), big.display());
    let master = match processes {
        Processes::One => "off",
        Processes::MasterAndWorker => "on",
    };
    let listen: String = PORTS
        .iter()
        .map(|port| format!("    listen {port} backlog=4096;\n    listen [::]:{port} ipv6only=on backlog=4096;\n"))
        .collect();
    format!(
        r#"daemon off;
user root;
master_process {master};
worker_rlimit_nofile 65536;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  default_type text/plain;
  sendfile on;
  # A download with a rate comes in pieces of this size, and is at work all the time.
  sendfile_max_chunk 32k;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  client_max_body_size 0;
  map $arg_rate $rate {{ "" 0; default $arg_rate; }}
  server {{
{listen}    add_header X-Backend {host} always;
    location = / {{ return 200 "{host}\n"; }}
    location = /connection {{ return 200 "{host} $remote_addr $remote_port $server_port\n"; }}
    location = /health {{ return 200 "ok {host}\n"; }}
    location = /big {{ alias {big}; limit_rate $rate; }}
    # A request is passed on when all of its body is here; so the answer shows that it is.
    location = /upload {{ proxy_pass http://unix:{folder}/length-{start}.sock; }}
  }}
  server {{
    listen unix:{folder}/length-{start}.sock;
    location / {{ return 200 "$http_content_length\n"; }}
  }}
}}
"#
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn big_does_not_repeat() {
        let big = big();
        assert_eq!(big.len(), BIG_BYTES);
        let words: HashSet<&[u8]> = big.chunks_exact(8).collect();
        assert_eq!(words.len(), BIG_BYTES / 8);
    }
}
