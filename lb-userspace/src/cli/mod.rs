//! What `lbctl` understands, and how it ends: 0 for done, 1 for failed, 2 for misused.

mod decap;
mod drain;
mod status;
mod table;

use std::{
    io::{self, Write as _},
    net::IpAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use hyper::{Method, body::Bytes};
use serde::Serialize;

use crate::{
    api::{
        Done,
        client::{self, Client},
    },
    config::{self, Config},
    datapath,
    desired::{Mode, Protocol, UdpPolicy, Weight},
    edit::{AdminChange, BackendChange},
    spec::{BackendSpec, ServiceSpec},
    status::{Service, Status},
    units::parse_duration,
};

/// Operates the load balancer: talks to lbd over its socket.
#[derive(Debug, Parser)]
#[command(name = "lbctl", version, arg_required_else_help = true)]
pub struct Cli {
    /// The socket that lbd listens on.
    #[arg(long, global = true, env = "LB_SOCKET", default_value = config::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// How to print: for people, or for programs.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Output,
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Tables.
    #[default]
    Text,
    /// JSON.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Command {
    /// Show interfaces, services, backends and what was dropped.
    Status,
    /// List, show, add and remove services.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// List, show, add, drain, enable, disable, weigh and remove backends.
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Check and reload the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Stop forwarding: remove the program from the interfaces, and all that is pinned.
    Detach {
        /// Where links and maps are pinned, for when lbd is not running.
        #[arg(long, default_value = config::DEFAULT_PIN_DIR)]
        pin_dir: PathBuf,
    },
    /// On a backend: take packets out of their tunnel without a tunnel device.
    #[command(subcommand)]
    Decap(decap::DecapCommand),
}

/// What to do with services.
#[derive(Debug, Subcommand)]
enum ServiceCommand {
    /// List all services.
    List,
    /// Show one service and its backends.
    Show {
        /// The service's name.
        service: String,
    },
    /// Add a service.
    Add(ServiceAdd),
    /// Remove a service.
    Remove {
        /// The service's name.
        service: String,
        /// Even if it has backends; their flows break.
        #[arg(long)]
        force: bool,
    },
}

/// A service to add.
#[derive(Debug, Args)]
struct ServiceAdd {
    /// The service's name.
    service: String,
    /// The virtual IP.
    #[arg(long)]
    vip: IpAddr,
    /// The port that clients connect to.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// tcp or udp.
    #[arg(long, default_value = "tcp", value_parser = word::<Protocol>)]
    protocol: Protocol,
    /// dsr (the backends are on the link) or ipip (they may be behind routers).
    #[arg(long, default_value = "dsr", value_parser = word::<Mode>)]
    mode: Mode,
    /// For UDP: oneshot, tracked or quic.
    #[arg(long, value_parser = word::<UdpPolicy>)]
    udp: Option<UdpPolicy>,
    /// How long a silent flow is kept, as 15m.
    #[arg(long, value_parser = parse_duration)]
    idle_timeout: Option<Duration>,
    /// Slots of the ring, a prime.
    #[arg(long)]
    ring_slots: Option<NonZeroU32>,
    /// Flows per second that may be pinned while backends change.
    #[arg(long)]
    syn_budget: Option<u32>,
    /// How long a drain may take, as 1h; without it, as long as flows last.
    #[arg(long, value_parser = parse_duration)]
    drain_deadline: Option<Duration>,
}

/// What to do with backends.
#[derive(Debug, Subcommand)]
enum BackendCommand {
    /// List the backends of a service, or of all.
    List {
        /// The service's name.
        service: Option<String>,
    },
    /// Show one backend.
    Show(Target),
    /// Add a backend; it gets new flows at once.
    Add {
        #[command(flatten)]
        target: Target,
        /// Its share, against the other backends' weights.
        #[arg(long, default_value = "1")]
        weight: Weight,
    },
    /// Give a backend no new flows, and let the ones that it has end.
    Drain {
        #[command(flatten)]
        target: Target,
        /// Return when no flow is left.
        #[arg(long)]
        wait: bool,
        /// Move flows that are left after this time, as 10m.
        #[arg(long, value_parser = parse_duration)]
        deadline: Option<Duration>,
        /// Wait no longer than this, as 15m; then say what is left, and exit with 1.
        #[arg(long, value_parser = parse_duration, requires = "wait")]
        timeout: Option<Duration>,
    },
    /// Give a backend new flows again.
    Enable(Target),
    /// Give a backend no new flows.
    Disable {
        #[command(flatten)]
        target: Target,
        /// And move the flows that it has, at once.
        #[arg(long)]
        force: bool,
    },
    /// Change a backend's share.
    Weight {
        #[command(flatten)]
        target: Target,
        /// 1 to 65535, against the other backends' weights.
        weight: Weight,
    },
    /// Remove a backend when its last flow has ended.
    Remove {
        #[command(flatten)]
        target: Target,
        /// At once; its flows move.
        #[arg(long)]
        force: bool,
    },
}

/// A backend of a service.
#[derive(Clone, Debug, Args)]
struct Target {
    /// The service's name.
    service: String,
    /// The backend's address.
    address: IpAddr,
}

impl Target {
    fn path(&self) -> String {
        format!("/v1/services/{}/backends/{}", encoded(&self.service), self.address)
    }
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Tell every mistake in a file; exit with 2 if there is one.
    Check {
        /// The file.
        #[arg(default_value = config::DEFAULT_FILE)]
        file: PathBuf,
    },
    /// Have lbd apply what has changed in its file.
    Reload,
}

/// A word of an enum, as JSON has it.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| {
        let error = error.to_string();
        error.replace("unknown variant ", "unknown word ")
    })
}

/// A name as a part of a path.
fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    name.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

impl Cli {
    /// Does it; what went wrong is printed.
    pub async fn run(self) -> ExitCode {
        if let Command::Config(ConfigCommand::Check { file }) = &self.command {
            return check_config(file);
        }
        match self.execute().await {
            Ok(code) => code,
            Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("lbctl: {error:#}");
                ExitCode::FAILURE
            }
        }
    }

    async fn execute(&self) -> Result<ExitCode> {
        let client = Client::new(&self.socket);
        let printer = Printer { output: self.output };
        match &self.command {
            Command::Status => {
                let status: Status = client.get("/v1/status").await?;
                printer.print(&status, || status::overview(&status))?;
            }
            Command::Service(command) => service(command, &client, printer).await?,
            Command::Backend(command) => return backend(command, &client, printer).await,
            Command::Config(ConfigCommand::Check { .. }) => {}
            Command::Config(ConfigCommand::Reload) => {
                printer.done(&client.send(Method::POST, "/v1/reload", Bytes::new()).await?)?;
            }
            Command::Detach { pin_dir } => printer.done(&detach(&client, pin_dir).await?)?,
            Command::Decap(command) => decap::run(command, printer)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<io::Error>();
    cause.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Tells every mistake of a file: 0 for none, 2 for some, 1 if it can't be read.
pub fn check_config(file: &Path) -> ExitCode {
    match Config::load(file) {
        Ok(config) => {
            for warning in &config.warnings {
                eprintln!("{}:{warning}", file.display());
            }
            println!("{}: ok: {}", file.display(), config.summary());
            ExitCode::SUCCESS
        }
        Err(config::Error::Invalid(invalid)) => {
            eprintln!("{invalid}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("{:#}", anyhow::Error::from(error));
            ExitCode::FAILURE
        }
    }
}

/// Prints for people or for programs.
#[derive(Clone, Copy, Debug)]
struct Printer {
    output: Output,
}

impl Printer {
    fn print<T: Serialize>(self, value: &T, text: impl FnOnce() -> String) -> Result<()> {
        let text = match self.output {
            Output::Json => serde_json::to_string_pretty(value)? + "\n",
            Output::Text => text(),
        };
        io::stdout().lock().write_all(text.as_bytes())?;
        Ok(())
    }

    fn done(self, done: &Done) -> Result<()> {
        self.print(done, || {
            let notes = done.notes.iter().map(|note| format!("  {note}\n"));
            format!("{}\n{}", done.message, notes.collect::<String>())
        })
    }
}

async fn service(command: &ServiceCommand, client: &Client, printer: Printer) -> Result<()> {
    match command {
        ServiceCommand::List => {
            let services = client.get::<Status>("/v1/status").await?.services;
            printer.print(&services, || status::services(&services))
        }
        ServiceCommand::Show { service: name } => {
            let service: Service = client.get(&format!("/v1/services/{}", encoded(name))).await?;
            printer.print(&service, || status::service(name, &service))
        }
        ServiceCommand::Add(add) => {
            let path = format!("/v1/services/{}", encoded(&add.service));
            printer.done(&client.send_json(Method::POST, &path, &add.spec()?).await?)
        }
        ServiceCommand::Remove { service: name, force } => {
            let path = format!("/v1/services/{}?force={force}", encoded(name));
            printer.done(&client.send(Method::DELETE, &path, Bytes::new()).await?)
        }
    }
}

impl ServiceAdd {
    fn spec(&self) -> Result<ServiceSpec> {
        anyhow::ensure!(
            self.udp.is_none() || self.protocol == Protocol::Udp,
            "--udp is for services with --protocol udp"
        );
        let mut spec = ServiceSpec::new(self.vip, self.port, self.mode);
        spec.protocol = self.protocol;
        spec.udp = self.udp;
        spec.syn_budget = self.syn_budget.unwrap_or(spec.syn_budget);
        spec.ring_slots = self.ring_slots.map_or(spec.ring_slots, NonZeroU32::get);
        spec.drain_deadline_secs = self.drain_deadline.map(|deadline| deadline.as_secs());
        if let Some(idle_timeout) = self.idle_timeout {
            spec.idle_timeout_secs = idle_timeout.as_secs();
        }
        Ok(spec)
    }
}

async fn backend(command: &BackendCommand, client: &Client, printer: Printer) -> Result<ExitCode> {
    let change = async |target: &Target, change: BackendChange| -> Result<()> {
        printer.done(&client.send_json(Method::PATCH, &target.path(), &change).await?)
    };
    let admin = |admin| BackendChange { admin: Some(admin), weight: None };
    match command {
        BackendCommand::List { service } => {
            let mut services = client.get::<Status>("/v1/status").await?.services;
            if let Some(name) = service {
                // The daemon's answer to an unknown name has the nearest one in it.
                let service: Service =
                    client.get(&format!("/v1/services/{}", encoded(name))).await?;
                services = [(name.clone(), service)].into();
            }
            printer.print(&services, || status::backends(&services))?;
        }
        BackendCommand::Show(target) => {
            let backend = client.get(&target.path()).await?;
            printer
                .print(&backend, || status::backend(&target.service, target.address, &backend))?;
        }
        BackendCommand::Add { target, weight } => {
            let spec = BackendSpec { weight: *weight, ..BackendSpec::default() };
            printer.done(&client.send_json(Method::POST, &target.path(), &spec).await?)?;
        }
        BackendCommand::Drain { target, wait, deadline, timeout } => {
            let deadline_secs = deadline.map(|deadline| deadline.as_secs());
            change(target, admin(AdminChange::Draining { deadline_secs })).await?;
            if *wait {
                return drain::wait(client, target, *timeout).await;
            }
        }
        BackendCommand::Enable(target) => change(target, admin(AdminChange::Enabled)).await?,
        BackendCommand::Disable { target, force } => {
            let to = if *force { AdminChange::Down } else { AdminChange::Disabled };
            change(target, admin(to)).await?;
        }
        BackendCommand::Weight { target, weight } => {
            change(target, BackendChange { weight: Some(*weight), admin: None }).await?;
        }
        BackendCommand::Remove { target, force } => {
            let path = format!("{}?force={force}", target.path());
            printer.done(&client.send(Method::DELETE, &path, Bytes::new()).await?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Detaches through the daemon if it runs, otherwise what is pinned.
async fn detach(client: &Client, pin_dir: &Path) -> Result<Done> {
    match client.send(Method::POST, "/v1/detach", Bytes::new()).await {
        Err(client::Error::NotRunning { .. }) => {
            let removed = datapath::detach(pin_dir).context("detach")?;
            let message = if removed.is_empty() {
                format!("nothing is pinned in {}", pin_dir.display())
            } else {
                "detached; nothing is forwarded any more".into()
            };
            Ok(Done { message, notes: removed })
        }
        answer => Ok(answer?),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn misuse_is_told_by_the_grammar() {
        for (line, expected) in [
            ("backend weight web 10.0.0.1 0", "use 'drain' to take a backend out of service"),
            ("backend add web 10.0.0.300", "invalid value '10.0.0.300'"),
            ("backend drain web 10.0.0.1 --deadline 10", "is no duration"),
            ("backend drain web 10.0.0.1 --timeout 10s", "--wait"),
            ("service add web --vip 10.0.0.1 --port 0", "0 is not in 1..=65535"),
            ("service add web --vip 10.0.0.1 --port 1 --mode nat", "expected `dsr` or `ipip`"),
            ("servcie list", "'service'"),
        ] {
            let error = Cli::try_parse_from(["lbctl"].into_iter().chain(line.split(' ')));
            let error = error.expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn names_are_encoded_in_paths() {
        assert_eq!(encoded("web-1.a_b"), "web-1.a_b");
        assert_eq!(encoded("a/b c?é"), "a%2Fb%20c%3F%C3%A9");
    }
}
