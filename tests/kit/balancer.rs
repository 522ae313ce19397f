//! The balancer under test: `lbd` and `lbctl` as they were built, on the lab's balancer host.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_api::status::{Pair, Status};

use crate::{
    command,
    lab::{Host, INTERFACE, Lab},
    namespace::Namespace,
    process::{self, Orphan, Process},
    wait,
};

/// How long `lbd` may take for anything that it does at once.
const SOON: Duration = Duration::from_secs(10);

/// How long a start may take: on a machine that emulates its CPUs the verifier alone takes eight seconds.
const START: Duration = Duration::from_secs(30);

/// A service of the configuration.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// The VIP.
    pub vip: IpAddr,
    /// The port, or the first one.
    pub port: u16,
    /// How many ports follow it.
    pub more_ports: u16,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// `dsr`, `ipip` or `nat`.
    pub mode: &'static str,
    /// The backends' addresses.
    pub backends: Vec<IpAddr>,
    /// More lines of the configuration: `idle_timeout = "3s"`.
    pub settings: String,
}

/// `lbd` on the lab's balancer. When dropped, it is killed and its pins are removed, unless the lab
/// stays.
#[derive(Debug)]
pub struct Balancer {
    process: Option<Process>,
    namespace: Namespace,
    folder: PathBuf,
    pins: PathBuf,
    binaries: PathBuf,
    orphan: Orphan,
    /// Whether `lbd` lacks what the unit does not give it.
    is_confined: bool,
    attach: &'static str,
    interfaces: Vec<String>,
    more: String,
}

impl Balancer {
    /// Writes the configuration of these services. `lbd` is not started.
    ///
    /// # Errors
    ///
    /// If the file can't be written, or the binaries are not built.
    pub fn new(lab: &Lab, services: &[Service]) -> Result<Self> {
        Self::made(lab, &lab.balancer, lab.folder().to_owned(), services, "")
    }

    /// The same for a node of a pair, with a folder of its own, and with more tables in the
    /// configuration: its virtual routers, its synchronisation.
    ///
    /// # Errors
    ///
    /// If the file can't be written, or the binaries are not built.
    pub fn on(lab: &Lab, node: &Host, services: &[Service], more: &str) -> Result<Self> {
        Self::made(lab, node, lab.folder_of(node)?, services, more)
    }

    fn made(
        lab: &Lab,
        node: &Host,
        folder: PathBuf,
        services: &[Service],
        more: &str,
    ) -> Result<Self> {
        let balancer = Self {
            process: None,
            namespace: Namespace::existing(node.namespace.name()),
            folder,
            pins: lab.pins().join(&node.name),
            binaries: binaries()?,
            orphan: lab.orphan(),
            is_confined: false,
            attach: lab.attach,
            interfaces: vec![INTERFACE.to_owned()],
            more: more.to_owned(),
        };
        balancer.configure(services)?;
        Ok(balancer)
    }

    /// As [`Self::new`], and starts `lbd` and waits until it can send to every backend.
    ///
    /// # Errors
    ///
    /// If it does not come to that.
    pub fn start(lab: &Lab, services: &[Service]) -> Result<Self> {
        let mut balancer = Self::new(lab, services)?;
        balancer.launch()?;
        balancer.wait_usable()?;
        Ok(balancer)
    }

    /// Writes the configuration.
    ///
    /// # Errors
    ///
    /// If the file can't be written.
    pub fn configure(&self, services: &[Service]) -> Result<()> {
        let (folder, pins, attach) = (self.folder.display(), self.pins.display(), self.attach);
        let mut config = format!(
            "interfaces = {:?}\nattach = \"{attach}\"\ngroup = \"root\"\n\
             seed = \"000102030405060708090a0b0c0d0e0f\"\npin_dir = \"{pins}\"\n\
             socket = \"{folder}/lbd.sock\"\nstate_file = \"{folder}/state.json\"\n",
            self.interfaces
        );
        for service in services {
            config.push_str(&service.toml());
        }
        config.push_str(&self.more);
        fs::write(self.config(), config).context("write lbd.toml")
    }

    /// From the next [`Self::configure`] on, this is the hook, in place of the lab's.
    pub fn set_attach(&mut self, attach: &'static str) {
        self.attach = attach;
    }

    /// From the next [`Self::configure`] on, these are the interfaces of the program.
    pub fn set_interfaces(&mut self, interfaces: &[&str]) {
        self.interfaces = interfaces.iter().map(|&interface| interface.to_owned()).collect();
    }

    /// From the next [`Self::configure`] on, these are the tables beside those of services.
    pub fn set_more(&mut self, more: &str) {
        more.clone_into(&mut self.more);
    }

    /// Path of the configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.join("lbd.toml")
    }

    /// Path of the socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("lbd.sock")
    }

    /// The folder in which maps and links are pinned.
    #[must_use]
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// From now on, `lbd` and `lbctl` of another folder are run: an upgrade.
    pub fn use_binaries(&mut self, folder: &Path) {
        folder.clone_into(&mut self.binaries);
    }

    /// Starts `lbd` and waits until it answers.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub fn launch(&mut self) -> Result<()> {
        self.begin()?;
        self.wait_answers()
    }

    /// Has `lbd` run without CAP_SYS_ADMIN from its next start on, which the kernel wants for much that is about BPF, and which
    /// the unit does not give it.
    pub const fn confine(&mut self) {
        self.is_confined = true;
    }

    /// Starts `lbd` and waits for nothing.
    ///
    /// # Errors
    ///
    /// If it does not start, or runs already.
    pub fn begin(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "lbd runs already");
        let lbd = self.binaries.join("lbd");
        let config = self.config();
        let config = config.to_string_lossy();
        let log = self.folder.join("lbd.log");
        let args = ["--config", &config];
        let name = lbd.to_string_lossy();
        let confined = ["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--", &name];
        let (program, args) = match self.is_confined {
            true => (Path::new("setpriv"), [&confined[..], &args].concat()),
            false => (&*lbd, args.to_vec()),
        };
        let process = Process::start(&self.namespace, program, &args, &log, self.orphan)?;
        self.process = Some(process);
        Ok(())
    }

    /// Waits until `lbd` answers.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub fn wait_answers(&mut self) -> Result<()> {
        let answers = wait::until(START, "lbd answers", || {
            self.check()?;
            self.status()
        });
        answers.map(drop).with_context(|| format!("lbd wrote:\n{}", self.log()))
    }

    /// Waits until every backend of every service can be sent to.
    ///
    /// # Errors
    ///
    /// If that does not come to pass.
    pub fn wait_usable(&self) -> Result<Status> {
        wait::until(SOON, "every backend is usable", || {
            let status = self.status()?;
            for (name, service) in &status.services {
                for (address, backend) in &service.backends {
                    if let Some(why) = &backend.unusable {
                        bail!("{name} {address}: {why}");
                    }
                }
            }
            ensure!(status.last_error.is_none(), "last error: {:?}", status.last_error);
            Ok(status)
        })
        .with_context(|| format!("lbd wrote:\n{}", self.log()))
    }

    /// The log of `lbd` so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("lbd.log")).unwrap_or_default()
    }

    /// Stops `lbd` (SIGTERM); forwarding goes on.
    ///
    /// # Errors
    ///
    /// If it does not end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.take().context("lbd does not run")?.stop()
    }

    /// Kills `lbd` (SIGKILL); forwarding goes on.
    ///
    /// # Errors
    ///
    /// If it can't be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("lbd does not run")?.kill()
    }

    /// Sends `lbd` a signal.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.process.as_ref().context("lbd does not run")?.signal(signal)
    }

    /// The id of `lbd`'s process.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn pid(&self) -> Result<u32> {
        self.process.as_ref().map(Process::pid).context("lbd does not run")
    }

    /// Whether it was started and neither stopped nor killed.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Whether `lbd` runs and is not stopped (SIGSTOP).
    #[must_use]
    pub fn is_answering(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process::state(process.pid()) != Some('T'))
    }

    /// That `lbd` still runs.
    ///
    /// # Errors
    ///
    /// If it does not; the error has its output.
    pub fn check(&mut self) -> Result<()> {
        self.process.as_mut().context("lbd does not run")?.check()
    }

    /// Runs `lbctl` with these arguments; returns its output.
    ///
    /// # Errors
    ///
    /// If it fails.
    pub fn lbctl(&self, args: &[&str]) -> Result<String> {
        let mut lbctl = self.lbctl_command();
        command::run(lbctl.args(args))
    }

    /// Runs `lbctl` with these arguments, however it ends.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub fn lbctl_output(&self, args: &[&str]) -> Result<Output> {
        let mut lbctl = self.lbctl_command();
        command::output(lbctl.args(args), "")
    }

    /// A command for `lbctl` on the balancer's host, against this `lbd`.
    #[must_use]
    pub fn lbctl_command(&self) -> Command {
        let mut lbctl = self.namespace.command(self.binaries.join("lbctl"));
        lbctl.arg("--socket").arg(self.socket());
        lbctl
    }

    /// The host that it runs on.
    #[must_use]
    pub fn namespace(&self) -> Namespace {
        Namespace::existing(self.namespace.name())
    }

    /// The output of `lbctl status`, from `lbd`'s socket: without a process for the request, and so cheap enough to read
    /// often.
    ///
    /// # Errors
    ///
    /// If `lbd` does not answer.
    pub fn status(&self) -> Result<Status> {
        serde_json::from_str(&self.get("/v1/status")?).context("/v1/status")
    }

    /// The output of `lbctl vrrp status`, from `lbd`'s socket.
    ///
    /// # Errors
    ///
    /// If `lbd` does not answer.
    pub fn poll_pair(&self) -> Result<Pair> {
        serde_json::from_str(&self.get("/v1/vrrp")?).context("/v1/vrrp")
    }

    /// A client's flows in a table (`pin`, `tracked`) that neither side has ended: port and backend.
    ///
    /// # Errors
    ///
    /// If `lbctl` fails.
    pub fn open_flows(&self, client: Ipv4Addr, kind: &str) -> Result<BTreeSet<(u16, String)>> {
        let client = client.to_string();
        let lines = self.lbctl(&["-o", "json", "flows", "--client", &client, "--kind", kind])?;
        let flows = lines.lines().map(|line| {
            let flow: serde_json::Value = serde_json::from_str(line).context("a flow of lbctl")?;
            let port = flow["port"].as_u64().and_then(|port| port.try_into().ok());
            let backend = flow["backend"].as_str().unwrap_or("gone").to_owned();
            let open = flow["closing"] != true;
            Ok(open.then_some((port.context("a flow without a port")?, backend)))
        });
        flows.filter_map(Result::transpose).collect()
    }

    /// Its metrics for Prometheus, as lines of text.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub fn metrics(&self) -> Result<String> {
        self.get("/metrics")
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut stream = UnixStream::connect(self.socket()).context("connect to lbd")?;
        stream.set_read_timeout(Some(SOON)).context("read timeout")?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: lbd\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).context("send to lbd")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("read lbd's answer")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a head")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "lbd answered: {head}");
        Ok(body.to_owned())
    }

    /// Lets `lbd` run on when this is dropped.
    pub fn keep(&mut self) {
        if let Some(process) = &mut self.process {
            process.keep();
        }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        if self.orphan == Orphan::Stays {
            return;
        }
        if let Some(process) = self.process.take() {
            let _ = process.kill();
        }
        let _ = fs::remove_dir_all(&self.pins);
    }
}

impl Service {
    /// A TCP service without more settings.
    #[must_use]
    pub fn tcp(
        name: &str,
        vip: impl Into<IpAddr>,
        port: u16,
        mode: &'static str,
        backends: Vec<IpAddr>,
    ) -> Self {
        let (name, vip, settings) = (name.to_owned(), vip.into(), String::new());
        Self { name, vip, port, more_ports: 0, protocol: "tcp", mode, backends, settings }
    }

    /// With more lines of configuration.
    #[must_use]
    pub fn with(mut self, settings: &str) -> Self {
        self.settings.push_str(settings);
        self.settings.push('\n');
        self
    }

    /// Its part of a configuration.
    #[must_use]
    pub fn toml(&self) -> String {
        let Self { name, vip, port, protocol, mode, settings, .. } = self;
        let port = match self.more_ports {
            0 => port.to_string(),
            more => format!("\"{port}-{}\"", port + more),
        };
        let backends = self
            .backends
            .iter()
            .map(|address| format!("  [[service.backend]]\n  address = \"{address}\"\n"));
        format!(
            "\n[[service]]\nname = \"{name}\"\nvip = \"{vip}\"\nport = {port}\n\
             protocol = \"{protocol}\"\nmode = \"{mode}\"\n{settings}{}",
            backends.collect::<String>()
        )
    }
}

/// `lbd` or `lbctl`, as they were built, in this namespace: beside [`Balancer`] the one way in which tests start
/// them, so that none attaches to an interface of this machine.
///
/// # Errors
///
/// If they are not built.
pub fn program(namespace: &Namespace, name: &str) -> Result<Command> {
    Ok(namespace.command(binaries()?.join(name)))
}

/// The folder of the built binaries: `LB_BIN_DIR`, or that of this program. It is for who copies them; [`program`]
/// starts them.
///
/// # Errors
///
/// If `lbd` and `lbctl` are not there.
pub fn binaries() -> Result<PathBuf> {
    let folder = match env::var_os("LB_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let program = env::current_exe().context("path of this program")?;
            let folder = program.parent().context("folder of this program")?;
            // Tests are in `deps`, beside the binaries' folder.
            let tests = folder.ends_with("deps");
            if tests { folder.parent().context("target folder")? } else { folder }.to_owned()
        }
    };
    for program in ["lbd", "lbctl"] {
        let path = folder.join(program);
        ensure!(path.is_file(), "{} is not built; `cargo xtask build` does it", path.display());
    }
    Ok(folder)
}
