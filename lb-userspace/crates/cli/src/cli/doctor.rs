//! `lbctl doctor`: the faults that keep this machine from balancing, or from being a backend, and their fixes.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use clap::{Args, Subcommand};
use lb_api::{client::Client, paths, requests::ConfigDiff};
use lb_model::{
    defaults,
    desired::{Mode, Ports, Protocol},
    rules,
    units::counted,
};

use super::{Printer, options::word};
use crate::doctor::{
    self, Finding, Grade, Report,
    backend::{self, BackendRequest},
    probes,
};

/// What to examine.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct DoctorArgs {
    /// The configuration of the balancer [default: that of the lbd that answers on the socket, else
    /// /etc/lb/lb.toml].
    #[arg(long)]
    config: Option<PathBuf>,
    /// Show only what is not as it should be.
    #[arg(short, long, global = true)]
    quiet: bool,
    #[command(subcommand)]
    host: Option<Host>,
}

/// Another host than a balancer.
#[derive(Debug, Subcommand)]
enum Host {
    /// Examine this host as a backend; it needs no lbd.
    Backend {
        /// A VIP that it serves; those on its loopback unless given.
        #[arg(long = "vip", value_name = "ADDRESS", value_parser = rules::address)]
        vips: Vec<IpAddr>,
        /// How packets come: dsr, ipip or nat; dsr or ipip by what is found unless given.
        #[arg(long, value_parser = word::<Mode>)]
        mode: Option<Mode>,
        /// A port that packets come to, as 80, 53/udp, 8000-8100 or any.
        #[arg(long = "port", value_name = "PORT", value_parser = port)]
        ports: Vec<(Protocol, Ports)>,
        /// Where the decapsulator is pinned.
        #[arg(long, default_value = defaults::PIN_DIR)]
        pin_dir: PathBuf,
    },
}

/// A port or a range, and its protocol after a slash.
fn port(text: &str) -> Result<(Protocol, Ports), String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let wrong = |_| format!("`{text}` is no port; write 80, 53/udp, 8000-8100 or any");
    let ports = ports.parse().map_err(wrong)?;
    Ok((word(protocol).map_err(|error: String| wrong(error))?, ports))
}

/// How long `lbd` may take to name its file: one that hangs is no reason to examine nothing.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) async fn run(args: &DoctorArgs, socket: &Path, printer: Printer) -> Result<ExitCode> {
    let report = match &args.host {
        None => {
            let file = match &args.config {
                Some(file) => file.clone(),
                None => file_of(socket).await.unwrap_or_else(|| defaults::CONFIG.into()),
            };
            // lbd listens on the configured socket, unless lbctl was given another one.
            let named = Some(socket).filter(|socket| *socket != Path::new(defaults::SOCKET));
            doctor::examine(&probes::balancer(&file, named).await?)
        }
        Some(Host::Backend { vips, mode, ports, pin_dir }) => {
            let request = BackendRequest {
                vips: vips.clone(),
                mode: *mode,
                ports: ports.clone(),
                pin_dir: Some(pin_dir.clone()).filter(|to| to != Path::new(defaults::PIN_DIR)),
            };
            backend::examine(&probes::backend(request, pin_dir).await?)
        }
    };
    printer.print(&report, || describe(&report, args.quiet))?;
    let healthy = report.count(Grade::Error) == 0;
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The file of the `lbd` that answers there.
async fn file_of(socket: &Path) -> Option<PathBuf> {
    let client = Client::new(socket);
    let diff = client.get::<ConfigDiff>(paths::CONFIG_DIFF);
    Some(tokio::time::timeout(PATIENCE, diff).await.ok()?.ok()?.file)
}

fn describe(report: &Report, quiet: bool) -> String {
    let shown = report.findings.iter().filter(|one| !quiet || one.grade != Grade::Ok);
    let mut text: String = shown.map(one).collect();
    let count = |grade| report.count(grade);
    let (errors, warnings) = (count(Grade::Error), count(Grade::Warning));
    text += &format!(
        "{}, {}, {} ok\n",
        counted(errors, "error"),
        counted(warnings, "warning"),
        count(Grade::Ok)
    );
    let sysctl =
        |finding: &Finding| finding.fix.as_ref().is_some_and(|fix| fix.starts_with("sysctl -w "));
    if report.findings.iter().any(sysctl) {
        text += "What `sysctl -w` sets lasts until the next boot; /etc/sysctl.d/ keeps it.\n";
    }
    text
}

fn one(finding: &Finding) -> String {
    let mut text = format!("{:<8} {:<14} {}\n", finding.grade.word(), finding.check, finding.found);
    let indent = " ".repeat(24);
    if !finding.why.is_empty() {
        text += &format!("{indent}why: {}\n", finding.why);
    }
    if let Some(fix) = &finding.fix {
        text += &format!("{indent}fix: {fix}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(check: &str, grade: Grade, fix: Option<&str>) -> Finding {
        let why = if grade == Grade::Ok { "" } else { "it matters" };
        let (found, fix) = ("it is so".into(), fix.map(str::to_owned));
        Finding { check: check.into(), grade, found, why: why.into(), fix }
    }

    #[test]
    fn a_finding_is_a_line_and_what_is_not_well_has_its_reason_and_its_command() {
        let report = Report {
            findings: vec![
                finding("kernel", Grade::Ok, None),
                finding("arp", Grade::Error, Some("sysctl -w a=1")),
                finding("clock", Grade::Warning, None),
            ],
        };
        let indent = " ".repeat(24);
        let rest = format!(
            "error    arp            it is so\n{indent}why: it matters\n{indent}fix: sysctl -w a=1\n\
             warning  clock          it is so\n{indent}why: it matters\n\
             1 error, 1 warning, 1 ok\n\
             What `sysctl -w` sets lasts until the next boot; /etc/sysctl.d/ keeps it.\n"
        );
        assert_eq!(describe(&report, true), rest);
        assert_eq!(describe(&report, false), format!("ok       kernel         it is so\n{rest}"));
    }

    #[test]
    fn ports_are_of_tcp_unless_they_say_otherwise() {
        assert_eq!(port("80"), Ok((Protocol::Tcp, Ports::one(80))));
        assert_eq!(port("53/udp"), Ok((Protocol::Udp, Ports::one(53))));
        assert_eq!(port("8000-8100"), Ok((Protocol::Tcp, "8000-8100".parse().unwrap())));
        assert_eq!(port("any/udp"), Ok((Protocol::Udp, "any".parse().unwrap())));
        for wrong in ["0", "http", "53/sctp", "65536", "90-80", "80-", ""] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }
}
