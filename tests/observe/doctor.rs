//! `lbctl doctor` on hosts where something is wrong: it names the fault, and the command that it prints fixes
//! it.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{self, Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use kit::{balancer, can_run, command, namespace::Namespace};
use lb_cli::doctor::{Finding, Grade, Report};

/// More rounds than faults that hide each other.
const ROUNDS: usize = 4;

/// A command that finds `lbctl`.
fn shell(host: &Namespace, line: &str) -> Result<Output> {
    let path = std::env::var("PATH").unwrap_or_default();
    let binaries = balancer::binaries()?;
    let mut command = host.command("sh");
    command.env("PATH", format!("{}:{path}", binaries.display()));
    command.args(["-c", line]).output().context("run a shell")
}

/// The report of `lbctl doctor`, whose exit status must agree.
fn examine(host: &Namespace, arguments: &str) -> Result<Report> {
    let output = shell(host, &format!("lbctl doctor {arguments} -o json"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let report: Report =
        serde_json::from_slice(&output.stdout).with_context(|| text.into_owned())?;
    let expected = i32::from(report.count(Grade::Error) > 0);
    ensure!(output.status.code() == Some(expected), "{:?}: {report:?}", output.status);
    Ok(report)
}

/// The findings, by the names of the checks.
fn errors(report: &Report) -> Vec<&str> {
    let errors = report.findings.iter().filter(|finding| finding.grade == Grade::Error);
    errors.map(|finding| finding.check.as_str()).collect()
}

fn find<'a>(report: &'a Report, check: &str, part: &str) -> Result<&'a Finding> {
    let found = report.findings.iter().find(|one| one.check == check && one.found.contains(part));
    found.with_context(|| format!("{check}: {part:?} is not in {report:#?}"))
}

/// Runs the command of a finding as it is printed.
fn fix(host: &Namespace, finding: &Finding) -> Result<()> {
    let line = finding.fix.as_ref().with_context(|| format!("nothing fixes {finding:?}"))?;
    let output = shell(host, line)?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {text}");
    Ok(())
}

/// Two hosts on one link, 10.0.0.2 and 10.0.0.11, both by `eth0`.
fn hosts() -> Result<(Namespace, Namespace)> {
    let (one, other) = (Namespace::new("one")?, Namespace::new("other")?);
    one.ip(&format!("link add eth0 type veth peer name eth0 netns {}", other.name()))?;
    for (host, address) in [(&one, "10.0.0.2"), (&other, "10.0.0.11")] {
        host.ip(&format!("address add {address}/24 dev eth0\nlink set eth0 up"))?;
    }
    Ok((one, other))
}

/// A folder for pins, which is removed with its content.
struct Pins(PathBuf);

impl Pins {
    fn new(role: &str) -> Self {
        Self(format!("/sys/fs/bpf/lbt-{}-{role}", process::id()).into())
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // The test is about whether there are any.
        let _ = Command::new("rm").args(["-rf"]).arg(&self.0).status();
    }
}

#[test]
fn each_fault_of_a_backend_is_named_and_its_command_mends_it() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (_router, host) = hosts()?;
    let pins = Pins::new("doctor");
    host.sysctl(&[
        ("ipv4/conf/all/arp_ignore", "0"),
        ("ipv4/conf/all/arp_announce", "0"),
        ("ipv4/conf/eth0/arp_ignore", "0"),
        ("ipv4/conf/all/rp_filter", "1"),
    ])?;
    // Mistakes of a first installation.
    host.ip("address add 10.0.0.100/32 dev eth0")?;
    host.ip("route add default via 10.0.0.2")?;
    let dsr = "backend --vip 10.0.0.100 --mode dsr --port 80";
    let report = examine(&host, dsr)?;
    assert_eq!(errors(&report), ["vip", "arp", "listener"]);
    find(&report, "listener", "nothing listens on TCP port 80 of 10.0.0.100")?;
    for check in ["vip", "arp"] {
        fix(&host, find(&report, check, "")?)?;
    }
    let _server = host.enter(|| TcpListener::bind("10.0.0.100:80"))??;
    let report = examine(&host, dsr)?;
    assert_eq!(errors(&report), <[&str; 0]>::default());
    find(&report, "vip", "10.0.0.100/32 is on the loopback")?;
    let address = host.ip("address show dev lo")?;
    assert!(address.contains("10.0.0.100/32"), "{address}");

    let ipip =
        format!("backend --vip 10.0.0.100 --mode ipip --port 80 --pin-dir {}", pins.0.display());
    let report = examine(&host, &ipip)?;
    assert_eq!(errors(&report), ["tunnel"]);
    fix(&host, find(&report, "tunnel", "nothing takes packets out")?)?;
    assert!(pins.0.join("decap-eth0").exists());
    let report = examine(&host, &ipip)?;
    assert_eq!(errors(&report), <[&str; 0]>::default());
    for check in ["rp_filter", "mtu"] {
        let finding = find(&report, check, "")?;
        assert_eq!(finding.grade, Grade::Warning, "{finding:?}");
        fix(&host, finding)?;
    }
    let report = examine(&host, &ipip)?;
    assert_eq!(report.count(Grade::Ok), report.findings.len(), "{report:#?}");
    Ok(())
}

/// The configuration of a balancer in a folder that goes with it.
fn configure(folder: &Path, pins: &Path, more: &str) -> Result<PathBuf> {
    let file = folder.join("lb.toml");
    let (folder, pins) = (folder.display(), pins.display());
    fs::write(
        &file,
        format!(
            "interfaces = [\"eth0\"]\npin_dir = \"{pins}\"\nsocket = \"{folder}/lbd.sock\"\n\
             group = \"root\"\nseed_file = \"{folder}/seed\"\n{more}\n\
             [[service]]\nname = \"web\"\nvip = \"10.0.0.100\"\nport = 80\nprotocol = \"tcp\"\nmode = \"dsr\"\n\
             [[service.backend]]\naddress = \"10.0.0.11\"\n"
        ),
    )?;
    Ok(file)
}

#[test]
fn each_fault_of_a_balancer_is_named_and_its_command_mends_it() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (node, backend) = hosts()?;
    let folder = tempfile::tempdir()?;
    let pins = Pins::new("node");
    let file = configure(folder.path(), &pins.0, "xpd = \"native\"")?;
    let arguments = format!("--config {}", file.display());
    let report = examine(&node, &arguments)?;
    assert_eq!(errors(&report), ["configuration"]);
    find(&report, "configuration", "xpd")?;
    configure(folder.path(), &pins.0, "")?;

    // The backend answers for the VIP, the link is down, and another program is on it.
    node.ip("address add 10.0.0.100/32 dev eth0")?;
    backend.ip("address add 10.0.0.100/32 dev lo")?;
    // Whose MAC address answers is known by the table of neighbours.
    command::run(node.command("ping").args(["-c1", "-W5", "10.0.0.11"]))?;
    let decap = format!(
        "lbctl decap attach --dev eth0 --vip 10.0.0.100 --from any --pin-dir {}",
        pins.0.display()
    );
    ensure!(shell(&node, &decap)?.status.success(), "{decap}");
    node.ip("link set eth0 down")?;
    let mut report = examine(&node, &arguments)?;
    let mut seen = Vec::new();
    for _ in 0..ROUNDS {
        let faults: Vec<Finding> = report
            .findings
            .iter()
            .filter(|finding| finding.grade == Grade::Error)
            .cloned()
            .collect();
        for fault in &faults {
            seen.push(fault.check.clone());
            let Some(line) = &fault.fix else { continue };
            if let Some(remote) = line.strip_prefix("ssh 10.0.0.11 ") {
                let fault = Finding { fix: Some(remote.to_owned()), ..fault.clone() };
                fix(&backend, &fault)?;
            } else if line.starts_with("lbctl decap detach") {
                let line = format!("{line} --pin-dir {}", pins.0.display());
                fix(&node, &Finding { fix: Some(line), ..fault.clone() })?;
            } else {
                fix(&node, fault)?;
            }
        }
        report = examine(&node, &arguments)?;
        if faults.is_empty() {
            break;
        }
    }
    assert_eq!(errors(&report), <[&str; 0]>::default(), "{report:#?}");
    for check in ["interface", "program", "vip"] {
        assert!(seen.iter().any(|one| one == check), "{check} was never wrong: {seen:?}");
    }
    find(&report, "vip", "10.0.0.100 is on eth0, and nobody else answers for it")?;
    find(&report, "next_hop", "10.0.0.11 is reached by eth0")?;
    find(&report, "driver", "the driver has native XDP")?;
    find(&report, "lbd", "no lbd answers on")?;
    Ok(())
}

#[test]
fn a_node_at_which_lbd_runs_is_well() -> Result<()> {
    use kit::{
        balancer::Balancer,
        lab::{Lab, Options},
        ways::Way,
    };

    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    let service = Way::DsrV4.service(&lab);
    let mut balancer = Balancer::new(&lab, std::slice::from_ref(&service))?;
    balancer.launch()?;
    let arguments = format!("--config {}", balancer.config().display());
    let report = examine(&lab.balancer.namespace, &arguments)?;
    assert_eq!(errors(&report), <[&str; 0]>::default(), "{report:#?}");
    find(&report, "program", "eth0: the balancer runs in the driver")?;
    find(&report, "capabilities", "lbd has the capabilities that it needs")?;
    find(&report, "limits", "open files")?;
    for backend in &service.backends {
        find(&report, "next_hop", &format!("{backend} is reached by eth0"))?;
    }
    let text = shell(&lab.balancer.namespace, &format!("lbctl doctor {arguments}"))?;
    let text = String::from_utf8(text.stdout)?;
    assert!(text.contains("\n0 errors, ") && !text.contains('\u{1b}'), "{text}");
    Ok(())
}

#[test]
fn rules_of_the_firewall_that_xdp_goes_past_are_named() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (node, _backend) = hosts()?;
    let folder = tempfile::tempdir()?;
    let pins = Pins::new("firewall");
    let file = configure(folder.path(), &pins.0, "")?;
    let arguments = format!("--config {}", file.display());
    let table = |rules: &str| {
        format!(
            "nft 'table inet filter {{ set vips {{ type ipv4_addr; elements = {{ 10.0.0.100 }}; }}; \
             chain input {{ type filter hook input priority 0; {rules} }}; \
             chain output {{ type filter hook output priority 0; ip daddr 10.0.0.100 drop; }}; }}'"
        )
    };
    let others = "ip daddr 10.0.0.100 tcp dport 22 drop; ip daddr 10.0.0.0/26 drop;";
    ensure!(shell(&node, &table(others))?.status.success(), "nft takes the rules");
    find(&examine(&node, &arguments)?, "firewall", "no rule that nft shows is for a service")?;
    for rule in [
        "ip daddr 10.0.0.100 tcp dport 80 drop;",
        "ip daddr 10.0.0.0/24 tcp dport { 80, 443 } drop;",
        "ip daddr @vips drop;",
        "ip daddr . tcp dport vmap { 10.0.0.100 . 80 : drop };",
    ] {
        let line =
            format!("nft delete table inet filter && {}", table(&format!("{others} {rule}")));
        ensure!(shell(&node, &line)?.status.success(), "nft takes {rule}");
        let report = examine(&node, &arguments)?;
        let finding = find(&report, "firewall", "is for services of 10.0.0.100")
            .with_context(|| rule.to_owned())?;
        assert_eq!(finding.grade, Grade::Warning);
        let named = finding.found.split('(').nth(1).and_then(|rest| rest.split(')').next());
        let listed = shell(&node, named.context("the command that shows it")?)?;
        let listed = String::from_utf8(listed.stdout)?;
        let handle = finding.found.split(' ').nth(2).context("its number")?;
        let shown = listed.lines().find(|line| line.ends_with(&format!("# handle {handle}")));
        let shown = shown.with_context(|| format!("{handle} is not in {listed}"))?;
        assert!(!shown.contains("dport 22") && !shown.contains("/26"), "{shown}");
    }
    Ok(())
}
