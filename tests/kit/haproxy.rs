//! HAProxy in TCP mode on a balancer of the lab, in front of the same web hosts as `lbd`: to compare
//! with.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    command,
    lab::{Host, Lab},
    process::Process,
    wait,
};

/// A running HAProxy; killed when dropped.
#[derive(Debug)]
pub struct Haproxy {
    process: Process,
    socket: PathBuf,
}

/// How it is set up.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Lines of the proxy's section: `option redispatch`.
    pub lines: String,
    /// The options behind the address of every server: `check inter 2s`.
    pub server: String,
    /// The options behind the address that it listens on: `transparent`, if the node may not have it.
    pub bind: String,
}

/// The proxy's name in its configuration.
const PROXY: &str = "web";

impl Haproxy {
    /// Starts it on the lab's balancer with a server for every web host, named as the host, and waits
    /// until all are up.
    ///
    /// # Errors
    ///
    /// If it is not installed, or does not come to that.
    pub fn start(lab: &Lab, target: SocketAddr, settings: &Settings) -> Result<Self> {
        Self::on(lab, &lab.balancer, target, settings)
    }

    /// As [`Self::start`], on any host of the lab.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn on(lab: &Lab, host: &Host, target: SocketAddr, settings: &Settings) -> Result<Self> {
        let program = command::find("haproxy")
            .context("HAProxy is not installed; `apt-get install haproxy` on Debian and Ubuntu")?;
        let folder = lab.folder_of(host)?;
        let (config, socket) = (folder.join("haproxy.cfg"), folder.join("haproxy.sock"));
        let text = configuration(lab, &folder, target, settings);
        fs::write(&config, text).context("write haproxy.cfg")?;
        let config = config.to_string_lossy();
        // In the foreground: its pid is the one that is killed.
        let args = ["-db", "-f", &*config];
        let log = folder.join("haproxy.log");
        let process = Process::start(&host.namespace, &program, &args, &log, lab.orphan())?;
        let mut haproxy = Self { process, socket };
        wait::until(Duration::from_secs(10), "every server of HAProxy is up", || {
            haproxy.process.check()?;
            let states = haproxy.states()?;
            let up = states.values().filter(|state| is_up(state)).count();
            ensure!(up == lab.webs.len(), "{states:?}");
            Ok(())
        })
        .with_context(|| format!("HAProxy wrote:\n{}", haproxy.process.log()))?;
        Ok(haproxy)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// If it has ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.process.signal(signal)
    }

    /// Gives a command to its administrator's socket: `set server web/web1 state drain`. What it
    /// answered.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub fn command(&self, line: &str) -> Result<String> {
        let mut stream = UnixStream::connect(&self.socket).context("connect to HAProxy")?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).context("read timeout")?;
        stream.write_all(format!("{line}\n").as_bytes()).context("write to HAProxy")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("read HAProxy's answer")?;
        Ok(answer)
    }

    /// Lets a web host keep its connections and get no new one.
    ///
    /// # Errors
    ///
    /// If HAProxy refuses.
    pub fn drain(&self, host: &str) -> Result<()> {
        let reply = self.command(&format!("set server {PROXY}/{host} state drain"))?;
        // The reply to a command that succeeds is empty.
        ensure!(reply.trim().is_empty(), "drain {host}: {reply}");
        Ok(())
    }

    /// The state of every server, as HAProxy calls it: `UP`, `DOWN 1/2`, `DRAIN`, `no check`.
    ///
    /// # Errors
    ///
    /// If HAProxy does not answer.
    pub fn states(&self) -> Result<BTreeMap<String, String>> {
        // Type 4 is servers.
        states(&self.command(&format!("show stat {PROXY} 4 -1"))?)
    }
}

/// Whether a server in this state gets connections.
#[must_use]
pub fn is_up(state: &str) -> bool {
    state.starts_with("UP") || state == "no check"
}

fn configuration(lab: &Lab, folder: &Path, target: SocketAddr, settings: &Settings) -> String {
    let (folder, bind) = (folder.display(), &settings.bind);
    let servers = lab.webs.iter().map(|web| {
        let (name, address) = (&web.host.name, web.host.address(target.ip()));
        let address = SocketAddr::new(address, target.port());
        format!("  server {name} {address} {}\n", settings.server)
    });
    let servers: String = servers.collect();
    let lines: String = settings.lines.lines().map(|line| format!("  {}\n", line.trim())).collect();
    // The timeouts are those of Debian's package.
    format!(
        "global\n  maxconn 8000\n  pidfile {folder}/haproxy.pid\n  \
         stats socket {folder}/haproxy.sock mode 600 level admin\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 50s\n  timeout server 50s\n\
         listen {PROXY}\n  bind {target} {bind}\n  balance roundrobin\n{lines}{servers}"
    )
}

fn states(csv: &str) -> Result<BTreeMap<String, String>> {
    let mut lines = csv.lines();
    let names: Vec<_> = lines.next().unwrap_or_default().split(',').collect();
    let column = names.iter().position(|name| *name == "status");
    let column = column.with_context(|| format!("no column of states: {csv}"))?;
    let rows = lines.filter(|line| !line.is_empty()).map(|line| {
        let fields: Vec<_> = line.split(',').collect();
        let (name, state) = (fields.get(1), fields.get(column));
        let both = name.zip(state).with_context(|| format!("a line of states: {line}"))?;
        Ok((both.0.to_string(), both.1.to_string()))
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_by_the_name_of_their_column() -> Result<()> {
        let csv = "# pxname,svname,qcur,status,weight\nweb,web1,0,UP,1\nweb,web2,0,DOWN 1/2,1\n\n";
        let states = states(csv)?;
        assert_eq!(states["web1"], "UP");
        assert_eq!(states["web2"], "DOWN 1/2");
        assert!(is_up(&states["web1"]) && !is_up(&states["web2"]) && !is_up("DRAIN"));
        Ok(())
    }

    #[test]
    fn an_error_instead_of_states_is_told() {
        let error = states("Unknown command\n").expect_err("no states").to_string();
        assert!(error.contains("Unknown command"), "{error}");
    }
}
