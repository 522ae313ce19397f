//! The limits, and the error for one more.

use std::{path::Path, process::Output};

use anyhow::{Context as _, Result};
use kit::{
    balancer::{Service, binaries},
    command::{self, command},
    lab::VIPS_V4,
    reports::scale::Limit,
};
use lb_model::{rules::MAX_RING_SLOTS, settings::Limits};

use super::daemon::{Bench, services};

/// Backends of each of as many services as there may be: as many as there may be of them.
const EACH: u16 = 8;
/// Beyond ids of 16 bits.
const TOO_MANY_FOR_IDS: u32 = 70_000;

/// Adds one more of everything.
///
/// # Errors
///
/// If `lbd` does not start.
pub fn exceed(bench: &mut Bench) -> Result<Vec<Limit>> {
    let Limits { services: most, backends, .. } = Limits::default();
    let most_services = u16::try_from(most)?;
    bench.configure(most_services, EACH)?;
    let (lbd, _) = bench.start()?;
    let mut limits = Vec::new();
    let mut lbctl = |limit: &str, value, line: &str| -> Result<()> {
        let args: Vec<_> = line.split(' ').collect();
        let output = bench.balancer().lbctl_output(&args)?;
        limits.push(limit_of(limit, value, &format!("lbctl {line}"), &output, bench.folder()));
        Ok(())
    };
    let vip = VIPS_V4[0];
    lbctl("services", most, &format!("service add more --vip {vip} --port 80 --mode ipip"))?;
    lbctl("backends", backends, "backend add s000 12.0.0.1")?;
    lbd.stop()?;

    let mut one_more = services(most_services, EACH);
    one_more.push(Service::tcp("s512", vip, 80, "ipip", Vec::new()));
    limits.push(check(bench, "services", most, "one service more", &one_more, "")?);
    let mut one_more = services(most_services, EACH);
    one_more[0].backends.push("12.0.0.1".parse()?);
    limits.push(check(bench, "backends", backends, "one backend more", &one_more, "")?);
    let raised = format!("\n[limits]\nbackends = {TOO_MANY_FOR_IDS}\n");
    let asked = format!("limits.backends = {TOO_MANY_FOR_IDS}");
    limits.push(check(bench, "ids of backends", 65_534, &asked, &services(1, 3), &raised)?);
    let raised = format!("\n[limits]\nservices = {TOO_MANY_FOR_IDS}\n");
    let asked = format!("limits.services = {TOO_MANY_FOR_IDS}");
    limits.push(check(bench, "ids of services", 65_535, &asked, &services(1, 3), &raised)?);
    // The next prime.
    let slots = MAX_RING_SLOTS + 10;
    let mut large = services(1, 3);
    large[0] = large[0].clone().with(&format!("ring_slots = {slots}"));
    let asked = format!("ring_slots = {slots}");
    limits.push(check(bench, "slots of a ring", MAX_RING_SLOTS, &asked, &large, "")?);
    Ok(limits)
}

/// Runs `lbd --check` on a configuration over a limit.
fn check(
    bench: &mut Bench,
    limit: &str,
    value: u32,
    asked: &str,
    services: &[Service],
    more: &str,
) -> Result<Limit> {
    let output = bench.check(services, more)?;
    Ok(limit_of(limit, value, &format!("lbd --check, {asked}"), &output, bench.folder()))
}

impl Bench {
    /// `lbd --check` on a configuration with more tables.
    fn check(&mut self, services: &[Service], more: &str) -> Result<Output> {
        self.write(services, more)?;
        let mut lbd = command(binaries()?.join("lbd"));
        lbd.arg("--check").arg(self.balancer().config());
        command::output(&mut lbd, "").context("lbd --check")
    }
}

/// A limit with the printed error, without the folder of the lab.
fn limit_of(limit: &str, value: u32, asked: &str, output: &Output, folder: &Path) -> Limit {
    let text = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    let message = text.concat().trim().replace(&format!("{}/", folder.display()), "");
    let exit_status = output.status.code();
    Limit { limit: limit.into(), value, asked: asked.into(), exit_status, message }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

    use super::*;

    #[test]
    fn messages_are_as_printed_less_the_lab() {
        let output = Output {
            status: ExitStatus::from_raw(2 << 8),
            stdout: Vec::new(),
            stderr: b"/run/lb-lab/x/lbd.toml:7: 513 services, but limits.services is 512\n".into(),
        };
        let limit = limit_of("services", 512, "lbd --check", &output, Path::new("/run/lb-lab/x"));
        assert_eq!(limit.message, "lbd.toml:7: 513 services, but limits.services is 512");
        assert_eq!((limit.value, limit.exit_status), (512, Some(2)));
    }
}
