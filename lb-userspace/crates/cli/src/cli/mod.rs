//! The commands of `lbctl`, and its exit codes: 0 for done, 1 for failed, 2 for misused.

mod args;
mod capture;
mod change;
mod check;
mod complete;
mod config;
mod decap;
mod detach;
mod doctor;
mod drain_wait;
mod events;
mod examples;
mod explain;
mod flows;
mod health;
mod lbd;
mod log;
mod node;
mod options;
mod patience;
mod plan;
mod progress;
mod status;
mod table;
mod top;
mod vrrp;

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::Result;
use hyper::Method;
use lb_api::{
    client::{self, Client},
    paths,
    requests::{Done, Terms},
    status::{Service, Status},
};
use lb_config::unit::Unit;
use lb_model::{
    defaults,
    desired::Backend,
    edit::{AdminChange, BackendChange},
    units::whole_secs,
};
use serde::Serialize;

use self::args::{BackendCommand, Command, ConfigCommand, ServiceCommand};
use self::change::Changer;
use self::options::{BackendSelector, Output};
pub use self::{args::Cli, config::check as check_config, examples::examples, lbd::Lbd};

impl Cli {
    /// Does it; prints errors.
    pub async fn run(self) -> ExitCode {
        if let Command::Config(ConfigCommand::Check { file }) = &self.command {
            return check_config(file);
        }
        match self.execute().await {
            Ok(code) => code,
            Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("lbctl: {error:#}{}", self.remedy(&error));
                if error.is::<Misuse>() { ExitCode::from(2) } else { ExitCode::FAILURE }
            }
        }
    }

    /// How to start `lbd`, if nothing else is wrong than that it does not run.
    fn remedy(&self, error: &anyhow::Error) -> String {
        if !matches!(error.downcast_ref(), Some(client::Error::NotRunning { .. })) {
            return String::new();
        }
        // The unit's lbd listens there by default.
        let unit = (self.socket == Path::new(defaults::SOCKET)).then(Unit::read).flatten();
        format!(": {}", Unit::remedy(unit.as_ref()))
    }

    async fn execute(&self) -> Result<ExitCode> {
        let client = Client::new(&self.socket);
        let printer = Printer { output: self.output };
        let changer = |terms| Changer { client: &client, printer, terms };
        match &self.command {
            Command::Status => {
                let status: Status = client.get(paths::STATUS).await?;
                printer.print(&status, || status::overview(&status))?;
            }
            Command::Service(command) => service(command, &client, printer).await?,
            Command::Backend(command) => return backend(command, &client, printer).await,
            Command::Config(command) => return config::run(command, &client, printer).await,
            Command::Events(args) => events::run(args, &client, self.output).await?,
            Command::Top(args) => return top::run(args, &client, self.output).await,
            Command::Flows(args) => flows::run(args, &client, printer).await?,
            Command::Node(command) => return node::run(command, &changer(Terms::default())).await,
            Command::Vrrp(command) => vrrp::vrrp(command, &changer(Terms::default())).await?,
            Command::Sync(command) => vrrp::sync(*command, &changer(Terms::default())).await?,
            Command::Detach { pin_dir, confirm } => {
                detach::detach(&changer((*confirm).into()), pin_dir.as_deref()).await?;
            }
            Command::Capture(args) => capture::run(args, &client, printer).await?,
            Command::Explain(args) => return explain::run(args, &client, printer).await,
            Command::Log(command) => log::run(command, &client, printer).await?,
            Command::Decap(command) => decap::run(command, printer).await?,
            Command::Doctor(args) => return doctor::run(args, &self.socket, printer).await,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Flags that don't go together, or have values that make no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Misuse(String);

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<io::Error>();
    cause.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
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
        self.print(done, || done_text(done))
    }
}

fn done_text(done: &Done) -> String {
    let plan = done.plan.iter().flat_map(plan::lines);
    let lines = plan.chain(done.notes.iter().cloned());
    let lines = lines.map(|line| format!("  {line}\n")).collect::<String>();
    match done.plan {
        Some(_) => {
            format!("dry run, nothing was changed; this would happen: {}\n{lines}", done.message)
        }
        None => format!("{}\n{lines}", done.message),
    }
}

async fn service(command: &ServiceCommand, client: &Client, printer: Printer) -> Result<()> {
    let changer = |terms| Changer { client, printer, terms };
    match command {
        ServiceCommand::List => {
            let services = client.get::<Status>(paths::STATUS).await?.services;
            printer.print(&services, || status::services(&services))
        }
        ServiceCommand::Show { service: name } => {
            let service: Service = client.get(&paths::service(name)).await?;
            printer.print(&service, || status::service(name, &service))
        }
        ServiceCommand::Add(add) => {
            let path = paths::service(&add.service);
            changer(add.dry.into()).make_with(Method::POST, &path, &add.service()?).await
        }
        ServiceCommand::Remove { service: name, confirm } => {
            let path = paths::service(name);
            changer((*confirm).into()).make(Method::DELETE, &path).await
        }
    }
}

async fn backend(command: &BackendCommand, client: &Client, printer: Printer) -> Result<ExitCode> {
    let changer = |terms| Changer { client, printer, terms };
    let change = async |target: &BackendSelector, terms: Terms, change: BackendChange| {
        changer(terms).make_with(Method::PATCH, &target.path(), &change).await
    };
    let admin = |admin| BackendChange { admin: Some(admin), weight: None };
    match command {
        BackendCommand::List { service } => {
            let mut services = client.get::<Status>(paths::STATUS).await?.services;
            if let Some(name) = service {
                // The daemon's answer to an unknown name has the nearest one in it.
                let service: Service = client.get(&paths::service(name)).await?;
                services = [(name.clone(), service)].into();
            }
            printer.print(&services, || status::backends(&services))?;
        }
        BackendCommand::Show(target) => {
            let backend = client.get(&target.path()).await?;
            printer.print(&backend, || status::backend(&target.service, &backend))?;
        }
        BackendCommand::Add { service, address, name, weight, backup, check, dry } => {
            let backend = Backend {
                name: name.clone(),
                weight: *weight,
                backup: *backup,
                check: check.check()?.map(Box::new),
                ..Backend::default()
            };
            let path = paths::backend(service, &(*address).into());
            changer((*dry).into()).make_with(Method::POST, &path, &backend).await?;
        }
        BackendCommand::Drain { target, wait, until, deadline, timeout, confirm } => {
            let deadline_secs = deadline.map(whole_secs);
            let terms = Terms::from(*confirm);
            change(target, terms, admin(AdminChange::Draining { deadline_secs })).await?;
            if *wait && !terms.dry_run {
                return drain_wait::wait(client, target, *until, *timeout).await;
            }
        }
        BackendCommand::Enable { target, dry } => {
            change(target, (*dry).into(), admin(AdminChange::Enabled)).await?;
        }
        BackendCommand::Disable { target, force, confirm } => {
            let to = if *force { AdminChange::Down } else { AdminChange::Disabled };
            change(target, (*confirm).into(), admin(to)).await?;
        }
        BackendCommand::Weight { target, weight, dry } => {
            let to = BackendChange { weight: Some(*weight), admin: None };
            change(target, (*dry).into(), to).await?;
        }
        BackendCommand::Remove { target, force, confirm } => {
            let path = format!("{}?force={force}", target.path());
            changer((*confirm).into()).make(Method::DELETE, &path).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
