//! PostgreSQL on a host of the lab behind several PgBouncers, and pgbench as their client.
//!
//! ```text
//!  client: pgbench ── VIP:5432 ──┬── :6432 PgBouncer ──┐
//!                                ├── :6433 PgBouncer ──┼── 127.0.0.1:5432 PostgreSQL
//!                                └── :6434 PgBouncer ──┘
//! ```
//!
//! PostgreSQL and PgBouncer refuse to run as root: they run as Debian's user `postgres`, with the capability to read the
//! lab's folder, which is root's.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    command,
    lab::Lab,
    namespace::Namespace,
    process::{Orphan, Process},
    wait,
};

/// The port of PostgreSQL, and that of its service.
pub const PORT: u16 = 5432;

/// The ports of the PgBouncers.
pub const BOUNCERS: [u16; 3] = [6432, 6433, 6434];

/// The system's user of all servers here, and the name by which clients log in.
const USER: &str = "postgres";

/// How long a server may take to start.
const START: Duration = Duration::from_secs(30);

/// PostgreSQL and its PgBouncers.
#[derive(Debug)]
pub struct Database {
    bouncers: Vec<Bouncer>,
    // Its clients end first.
    _postgres: Postgres,
}

/// A running PostgreSQL; shut down when dropped.
#[derive(Debug)]
struct Postgres {
    process: Option<Process>,
}

/// A PgBouncer.
#[derive(Debug)]
pub struct Bouncer {
    /// Its port.
    pub port: u16,
    process: Option<Process>,
    config: PathBuf,
    log: PathBuf,
}

impl Database {
    /// Starts PostgreSQL with the tables of pgbench, and a PgBouncer at each of [`BOUNCERS`], with files in this folder.
    ///
    /// # Errors
    ///
    /// If they are not installed or do not start.
    pub fn start(namespace: &Namespace, folder: &Path) -> Result<Self> {
        let postgres = Postgres::start(namespace, folder)?;
        let bouncer = |port| Bouncer::start(namespace, folder, port);
        let bouncers = BOUNCERS.into_iter().map(bouncer).collect::<Result<_>>()?;
        Ok(Self { bouncers, _postgres: postgres })
    }

    /// The PgBouncer at this port.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn bouncer(&self, port: u16) -> Result<&Bouncer> {
        self.bouncers.iter().find(|one| one.port == port).context("a PgBouncer's port")
    }

    /// The same, to kill or start it.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn bouncer_mut(&mut self, port: u16) -> Result<&mut Bouncer> {
        self.bouncers.iter_mut().find(|one| one.port == port).context("a PgBouncer's port")
    }

    /// How many clients have logged in at each PgBouncer, in the order of [`BOUNCERS`].
    ///
    /// # Errors
    ///
    /// If a log can't be read.
    pub fn logins(&self) -> Result<Vec<usize>> {
        self.bouncers.iter().map(Bouncer::logins).collect()
    }

    /// Waits until each of these PgBouncers has so many more logins than before.
    ///
    /// # Errors
    ///
    /// If that does not come to pass.
    pub fn wait_logins(&self, ports: &[u16], more: usize) -> Result<()> {
        let before = self.logins()?;
        wait::until(START, "PgBouncers get connections", || {
            let now = self.logins()?;
            for ((port, now), before) in BOUNCERS.iter().zip(&now).zip(&before) {
                let new = now - before;
                ensure!(!ports.contains(port) || new >= more, "{port} has {new} of {more} logins");
            }
            Ok(())
        })
    }
}

impl Postgres {
    fn start(namespace: &Namespace, folder: &Path) -> Result<Self> {
        let data = folder.join("postgres");
        let data_text = data.to_string_lossy();
        command::run(
            command::command("install")
                .args(["-d", "-m", "700", "-o", USER, "-g", USER])
                .arg(&data),
        )?;
        let init = ["-A", "trust", "-U", USER, "--no-sync", "--no-locale", "-E", "UTF8", "-D"];
        let mut initdb = namespace.command("setpriv");
        initdb.args(as_user()).arg(program("initdb")?).args(init).arg(&data);
        command::run(&mut initdb)?;
        let port = format!("port={PORT}");
        let settings = [
            port.as_str(),
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "shared_buffers=16MB",
            "max_connections=60",
            "autovacuum=off",
            "log_min_messages=fatal",
        ];
        let server = program("postgres")?;
        let settings = settings.iter().flat_map(|setting| ["-c", setting]);
        let arguments: Vec<_> = ["-D", &*data_text].into_iter().chain(settings).collect();
        let log = folder.join("postgres.log");
        let process = serve(namespace, &server, &arguments, &log)?;
        let mut postgres = Self { process: Some(process) };
        let address = SocketAddr::from(([127, 0, 0, 1], PORT));
        wait::until(START, "PostgreSQL has its tables", || {
            postgres.process.as_mut().context("it was started")?.check()?;
            let mut pgbench = pgbench(namespace, address)?;
            command::run(pgbench.args(["-i", "-q", "-n"]))
        })?;
        Ok(postgres)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let Some(process) = self.process.take() else { return };
        // A shutdown that waits for no client; a server that is killed leaves its shared memory behind.
        let ended = process.signal(libc::SIGINT).and_then(|()| process.stop());
        if let Err(err) = ended {
            eprintln!("PostgreSQL: {err:#}");
        }
    }
}

impl Bouncer {
    fn start(namespace: &Namespace, folder: &Path, port: u16) -> Result<Self> {
        let config = folder.join(format!("pgbouncer-{port}.ini"));
        fs::write(&config, configuration(port)).context("write pgbouncer.ini")?;
        let log = folder.join(format!("pgbouncer-{port}.log"));
        let mut bouncer = Self { port, process: None, config, log };
        bouncer.restart(namespace)?;
        Ok(bouncer)
    }

    /// Starts it after [`Self::kill`], or for the first time, and waits until it serves.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub fn restart(&mut self, namespace: &Namespace) -> Result<()> {
        let server = command::find("pgbouncer")
            .context("PgBouncer is not installed; `apt-get install pgbouncer` on Debian")?;
        let config = self.config.to_string_lossy();
        let mut process = serve(namespace, &server, &[&*config], &self.log)?;
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        wait::until(START, &format!("PgBouncer at {} serves", self.port), || {
            process.check()?;
            let mut pgbench = pgbench(namespace, address)?;
            command::run(pgbench.args(["-n", "-S", "-t", "1"]))
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it (SIGKILL); its connections are reset.
    ///
    /// # Errors
    ///
    /// If it can't be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), Process::kill)
    }

    /// How many clients have logged in so far.
    ///
    /// # Errors
    ///
    /// If its log can't be read.
    pub fn logins(&self) -> Result<usize> {
        Ok(self.log()?.matches("login attempt").count())
    }

    /// Its log.
    ///
    /// # Errors
    ///
    /// If it can't be read.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("read {}", self.log.display()))
    }
}

/// The configuration of the PgBouncer at a port: each login is a line of the log.
fn configuration(port: u16) -> String {
    format!(
        "[databases]\n* = host=127.0.0.1 port={PORT} user={USER}\n\n[pgbouncer]\n\
         listen_addr = 0.0.0.0,::\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
         pool_mode = transaction\ndefault_pool_size = 4\nmax_client_conn = 1000\n\
         log_connections = 1\nlog_disconnections = 0\nlog_stats = 0\n"
    )
}

/// The arguments of setpriv for a server.
fn as_user() -> Vec<&'static str> {
    let capability = "+dac_read_search";
    let user = ["--reuid", USER, "--regid", USER, "--init-groups"];
    let rest = ["--inh-caps", capability, "--ambient-caps", capability];
    // The kernel forgets the signal when the user changes, so it is set here and not by the caller alone.
    [&user[..], &rest[..], &["--pdeathsig", "KILL", "--"]].concat()
}

/// Starts a server as [`USER`].
fn serve(namespace: &Namespace, server: &Path, args: &[&str], log: &Path) -> Result<Process> {
    let setpriv = command::find("setpriv").context("setpriv is not installed (util-linux)")?;
    let server = server.to_string_lossy();
    let args = [&as_user()[..], &[&*server], args].concat();
    Process::start(namespace, &setpriv, &args, log, Orphan::Dies)
}

/// A program of PostgreSQL: Debian keeps them by version, and most of them out of `PATH`.
fn program(name: &str) -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let programs = versions.map(|version| version.path().join("bin").join(name));
    let found = programs.filter(|path| path.is_file()).max();
    found.context("PostgreSQL is not installed; `apt-get install postgresql` on Debian")
}

/// A command for pgbench as a client of this address, in plain text.
fn pgbench(namespace: &Namespace, target: SocketAddr) -> Result<Command> {
    let mut setpriv = namespace.command("setpriv");
    setpriv.args(["--pdeathsig", "KILL", "--"]).arg(program("pgbench")?);
    setpriv.args(["-h", &target.ip().to_string(), "-p", &target.port().to_string(), "-U", USER]);
    setpriv.env("PGDATABASE", USER).env("PGSSLMODE", "disable").env("PGGSSENCMODE", "disable");
    Ok(setpriv)
}

/// Whether a client of pgbench uses one connection for all of its transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// One, from the beginning to the end.
    Long,
    /// One for each transaction (`pgbench -C`).
    Short,
}

/// The load of a pgbench.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Its connections.
    pub connections: Connections,
    /// How many clients it has.
    pub clients: u16,
    /// How many transactions it begins in a second, by all clients.
    pub rate: u16,
    /// How long it runs.
    pub time: Duration,
}

/// A running pgbench; killed when dropped.
#[derive(Debug)]
pub struct Pgbench {
    child: Option<Child>,
}

/// The result of a pgbench.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Transactions that succeeded.
    pub transactions: u64,
    /// Clients that ended with a failed transaction, or without a connection: pgbench goes on without them.
    pub aborted: BTreeSet<u16>,
    /// Its messages.
    pub messages: String,
}

impl Pgbench {
    /// Starts pgbench on the lab's client, or on any other host.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub fn start(namespace: &Namespace, target: SocketAddr, load: Load) -> Result<Self> {
        let mut pgbench = pgbench(namespace, target)?;
        // Each client has a thread: pgbench waits for a connection with all clients of the thread.
        let clients = load.clients.to_string();
        pgbench.args(["-n", "-S", "-c", &clients, "-j", &clients, "-R", &load.rate.to_string()]);
        pgbench.args(["-T", &load.time.as_secs().to_string()]);
        if load.connections == Connections::Short {
            pgbench.arg("-C");
        }
        pgbench.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = pgbench.spawn().with_context(|| command::line(&pgbench))?;
        Ok(Self { child: Some(child) })
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// If it has no result.
    pub fn finish(mut self) -> Result<Tally> {
        let child = self.child.take().context("it was started")?;
        let output = child.wait_with_output().context("wait for pgbench")?;
        let [result, messages] =
            [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        let tally = Tally::read(&result, &messages).with_context(|| format!("{output:?}"))?;
        ensure!(output.status.success() == tally.aborted.is_empty(), "{output:?}");
        Ok(tally)
    }
}

impl Drop for Pgbench {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Tally {
    fn read(result: &str, messages: &str) -> Result<Self> {
        let transactions = number(result, "number of transactions actually processed: ")?;
        let failed = number(result, "number of failed transactions: ")?;
        ensure!(failed == 0, "{failed} failed transactions");
        let aborted = messages.lines().filter(|line| line.contains(" aborted"));
        let client = |line: &str| {
            let (_, rest) = line.split_once("client ")?;
            rest.split(' ').next()?.parse().ok()
        };
        let aborted = aborted.filter_map(client).collect();
        Ok(Self { transactions, aborted, messages: messages.to_owned() })
    }

    /// That every transaction of every client has succeeded.
    ///
    /// # Errors
    ///
    /// If not.
    pub fn check(&self) -> Result<()> {
        ensure!(self.aborted.is_empty() && self.transactions > 0, "{self:?}");
        Ok(())
    }
}

/// The number behind a text.
fn number(result: &str, text: &str) -> Result<u64> {
    let (_, rest) = result.split_once(text).with_context(|| format!("pgbench has no {text}"))?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().with_context(|| format!("{text}{rest}"))
}

impl Lab {
    /// Starts PostgreSQL and PgBouncers on a web host.
    ///
    /// # Errors
    ///
    /// If they do not start.
    pub fn start_database(&self, web: usize) -> Result<Database> {
        let host = &self.webs[web].host;
        Database::start(&host.namespace, &self.folder_of(host)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULT: &str = "number of clients: 2\nnumber of transactions actually processed: 41\n\
                          number of failed transactions: 0 (0.000%)\n";

    #[test]
    fn clients_that_pgbench_goes_on_without_are_read() -> Result<()> {
        let messages = "pgbench: error: client 3 aborted while establishing connection\n\
                        pgbench: error: client 7 aborted in command 1 (SQL) of script 0; died\n";
        let tally = Tally::read(RESULT, messages)?;
        assert_eq!((tally.transactions, tally.aborted.len()), (41, 2));
        assert!(tally.check().is_err());
        Tally::read(RESULT, "")?.check()
    }

    #[test]
    fn a_failed_transaction_is_an_error() {
        let failed = RESULT.replace("transactions: 0", "transactions: 2");
        assert!(Tally::read(&failed, "").is_err());
    }
}
