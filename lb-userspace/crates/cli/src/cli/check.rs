//! The flags for the checks of backends, and the configuration keys that they become.

use anyhow::Result;
use clap::Args;
use toml::{Table, Value};

use super::Misuse;
use lb_config::{Problem, piece};
use lb_model::check::Check;
use lb_model::policy::Policy;

/// How backends are checked. Keys that are not given follow from those that are, as in the configuration.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// How it is checked whether backends serve.
    #[arg(long, value_name = "TYPE", value_parser = ["none", "tcp", "http", "https", "udp", "dns"])]
    check: Option<String>,
    /// For http and https: the path that is requested, as /healthz.
    #[arg(long, value_name = "PATH", requires = "check")]
    check_path: Option<String>,
    /// For http and https: the host that is requested; without it, the VIP.
    #[arg(long, value_name = "HOST", requires = "check")]
    check_host: Option<String>,
    /// The port that is probed; without it, the service's.
    #[arg(long, value_name = "PORT", requires = "check")]
    check_port: Option<String>,
    /// The time between two checks, as 2s.
    #[arg(long, value_name = "TIME", requires = "check")]
    check_interval: Option<String>,
    /// Bad answers in a row that bring a backend down.
    #[arg(long, value_name = "N", requires = "check")]
    check_fall: Option<String>,
    /// Good answers in a row that bring a backend up.
    #[arg(long, value_name = "N", requires = "check")]
    check_rise: Option<String>,
    /// How long an answer may take, as 500ms.
    #[arg(long, value_name = "TIME", requires = "check")]
    check_timeout: Option<String>,
    /// Where the probe goes: vip (by the path of clients' packets) or backend.
    #[arg(long, value_name = "vip|backend", requires = "check")]
    check_via: Option<String>,
}

/// The policy of a service for its backends' health.
#[derive(Debug, Args)]
pub(super) struct PolicyArgs {
    #[command(flatten)]
    check: CheckArgs,
    /// The time in which the share of a backend that comes up grows to the whole, as 30s.
    #[arg(long, value_name = "TIME")]
    slow_start: Option<String>,
    /// With a smaller share of backends up, checks are ignored for choosing, as 50%.
    #[arg(long, value_name = "SHARE")]
    panic_threshold: Option<String>,
    /// With fewer backends up, the service does not count as ready.
    #[arg(long, value_name = "N")]
    min_healthy: Option<String>,
    /// What becomes of the flows of a backend that is down and whose host answers: keep (the
    /// default) or move.
    #[arg(long, value_name = "keep|move")]
    on_down: Option<String>,
    /// Don't send a client's retransmitted SYN to another backend where one is silent.
    #[arg(long, alias = "no-second-choice")]
    no_syn_failover: bool,
}

impl CheckArgs {
    /// The check that is meant, if one is.
    pub(super) fn check(&self) -> Result<Option<Check>> {
        if self.check.is_none() {
            return Ok(None);
        }
        let check = piece::check(&self.keys()?).map_err(|problems| misuse("check.", &problems))?;
        Ok(Some(check))
    }

    fn keys(&self) -> Result<Table> {
        let is_http = matches!(self.check.as_deref(), Some("http" | "https"));
        if !is_http && (self.check_path.is_some() || self.check_host.is_some()) {
            let wrong = "--check-path and --check-host are for --check http and --check https";
            return Err(Misuse(wrong.into()).into());
        }
        Ok(table([
            ("type", text(self.check.as_ref())),
            ("path", text(self.check_path.as_ref())),
            ("host", text(self.check_host.as_ref())),
            ("port", number(self.check_port.as_ref())),
            ("interval", text(self.check_interval.as_ref())),
            ("fall", number(self.check_fall.as_ref())),
            ("rise", number(self.check_rise.as_ref())),
            ("timeout", text(self.check_timeout.as_ref())),
            ("via", text(self.check_via.as_ref())),
        ]))
    }
}

impl PolicyArgs {
    /// The policy that is meant.
    pub(super) fn policy(&self) -> Result<Policy> {
        let check = self.check.keys()?;
        let keys = table([
            ("slow_start", text(self.slow_start.as_ref())),
            ("panic_threshold", text(self.panic_threshold.as_ref())),
            ("min_healthy", number(self.min_healthy.as_ref())),
            ("on_down", text(self.on_down.as_ref())),
            ("syn_failover", self.no_syn_failover.then_some(Value::Boolean(false))),
            ("check", (!check.is_empty()).then_some(Value::Table(check))),
        ]);
        piece::policy(&keys).map_err(|problems| misuse("", &problems))
    }
}

fn table<const N: usize>(keys: [(&str, Option<Value>); N]) -> Table {
    keys.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

fn text(given: Option<&String>) -> Option<Value> {
    given.cloned().map(Value::String)
}

/// A number; other text stays as it is, and the reader refuses it.
fn number(given: Option<&String>) -> Option<Value> {
    let given = given?;
    Some(given.parse().map_or_else(|_| Value::String(given.clone()), Value::Integer))
}

/// Mistakes of keys, reported for the flags that stand for them.
fn misuse(prefix: &str, problems: &[Problem]) -> anyhow::Error {
    let of = |problem: &Problem| {
        let key = format!("{prefix}{}", problem.path).replace(['.', '_'], "-");
        let flag = if key == "check-type" { "check" } else { key.as_str() };
        format!("--{flag}: {}", problem.message)
    };
    Misuse(problems.iter().map(of).collect::<Vec<_>>().join("; ")).into()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use lb_config::Config;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        policy: PolicyArgs,
    }

    fn policy(line: &str) -> Result<Policy> {
        Flags::try_parse_from(["lbctl"].into_iter().chain(line.split_whitespace()))?.policy.policy()
    }

    #[test]
    fn flags_say_the_same_as_keys() {
        for (line, keys) in [
            ("", ""),
            ("--check tcp", "check = { type = \"tcp\" }"),
            (
                "--check http --check-path /healthz --check-host www --check-port 8080 --check-via backend",
                "check = { type = \"http\", path = \"/healthz\", host = \"www\", port = 8080, via = \"backend\" }",
            ),
            // Times that are not given follow the interval.
            (
                "--check dns --check-interval 400ms --check-fall 5 --check-rise 1 --check-timeout 50ms",
                "check = { type = \"dns\", interval = \"400ms\", fall = 5, rise = 1, timeout = \"50ms\" }",
            ),
            (
                "--slow-start 30s --panic-threshold 25% --min-healthy 2 --on-down move --no-syn-failover",
                "slow_start = \"30s\"\npanic_threshold = \"25%\"\nmin_healthy = 2\non_down = \"move\"\nsyn_failover = false",
            ),
            // The former name of the flag.
            ("--no-second-choice", "syn_failover = false"),
        ] {
            let file = format!(
                "interfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"10.0.0.100\"\nport = 80\nprotocol = \"tcp\"\nmode = \"dsr\"\n{keys}\n"
            );
            let config = Config::parse(&file).expect(keys);
            let expected = &config.desired.services["web"].policy;
            assert_eq!(policy(line).expect(line), *expected, "{line}");
        }
    }

    #[test]
    fn mistakes_are_told_of_flags() {
        for (line, expected) in [
            (
                "--check http --check-path healthz",
                "--check-path: `healthz` is no path; begin it with `/`",
            ),
            ("--check tcp --check-path /", "--check-path and --check-host are for --check http"),
            ("--check tcp --check-port 0", "--check-port: 0 is out of range"),
            ("--check tcp --check-fall never", "--check-fall: a string instead of a number"),
            ("--check tcp --check-interval 1", "--check-interval: "),
            ("--check tcp --check-via vpi", "--check-via: `vpi` is unknown; did you mean \"vip\"?"),
            ("--panic-threshold 50", "--panic-threshold: `50` is no share"),
            ("--slow-start 2d", "--slow-start: `2d` is out of range"),
            ("--check-interval 1s", "--check <TYPE>"),
            ("--check tpc", "invalid value 'tpc'"),
        ] {
            let error = policy(line).expect_err(line).to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
