//! The compared systems, each in a lab of its own.

use std::{fmt::Write as _, fs, net::Ipv4Addr, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{Balancer, Service},
    command,
    http::Connection,
    lab::{Lab, Options, VIPS_V4},
    namespace::Namespace,
    process::Process,
    reports::http::System,
    wait,
    ways::{self, Way},
};

/// The port of iperf3's server, which is on the first web host alone: a run of it has two connections,
/// which must meet.
pub const IPERF: u16 = 5_201;

/// The lab's services know this VIP.
const fn vip(system: System) -> Ipv4Addr {
    match system {
        System::Ipip => VIPS_V4[1],
        _ => VIPS_V4[0],
    }
}

/// A lab with a system at work in it.
pub struct Testbed {
    /// The system.
    pub system: System,
    // The lab's processes end before the lab does.
    _balancer: Option<Balancer>,
    proxy: Option<Process>,
    _iperf: Process,
    /// The lab.
    pub lab: Lab,
}

impl Testbed {
    /// Builds it, and waits until every target answers.
    ///
    /// # Errors
    ///
    /// If it does not come up.
    pub fn new(system: System) -> Result<Self> {
        let is_at_tc = matches!(system, System::DsrTc | System::NatTc);
        let attach = if is_at_tc { "tc" } else { "xdp" };
        let lab = Lab::new(&Options { attach, ..Options::default() })?;
        for host in lab.hosts() {
            // Tens of thousands of connections a second, to one address.
            host.namespace.sysctl(&[
                ("ipv4/ip_local_port_range", "1024 65535"),
                ("ipv4/tcp_tw_reuse", "1"),
            ])?;
        }
        if !matches!(system, System::Dsr | System::Ipip | System::Nat) {
            lab.without_xdp()?;
        }
        let (mut balancer, mut proxy) = (None, None);
        match system {
            System::Direct => {}
            System::Router => router(&lab, vip(system))?,
            System::Dsr | System::DsrTc => {
                balancer = Some(Balancer::start(&lab, &services(&lab, Way::DsrV4))?)
            }
            System::Ipip => {
                balancer = Some(Balancer::start(&lab, &services(&lab, Way::IpipV4))?);
                ways::decapsulate(&lab)?;
            }
            System::Nat | System::NatTc => {
                return_through_balancer(&lab)?;
                let services = services(&lab, Way::DsrV4).map(translated);
                balancer = Some(Balancer::start(&lab, &services)?);
            }
            System::Haproxy => proxy = Some(haproxy(&lab, vip(system))?),
            System::NginxStream => proxy = Some(nginx_stream(&lab, vip(system))?),
            System::NftablesDnat => nftables(&lab, vip(system), Answers::ToBalancer)?,
            System::NftablesDnatRouted => {
                return_through_balancer(&lab)?;
                nftables(&lab, vip(system), Answers::ToClient)?;
            }
            System::IpvsMasquerading => {
                return_through_balancer(&lab)?;
                ipvs(&lab, vip(system))?;
            }
        }
        let server = command::find("iperf3").context("iperf3 is not installed")?;
        let log = lab.folder().join("iperf3.log");
        let args = ["-s", "-p", &IPERF.to_string()];
        let web = &lab.webs[0].host.namespace;
        let iperf = Process::start(web, &server, &args, &log, lab.orphan())?;
        let testbed = Self { system, _balancer: balancer, proxy, _iperf: iperf, lab };
        testbed.wait().with_context(|| {
            let output = testbed.proxy.as_ref().map(Process::log).unwrap_or_default();
            format!("{} is no way to the web hosts; it wrote:\n{output}", system.name())
        })?;
        Ok(testbed)
    }

    /// The targets of the client's requests.
    pub fn targets(&self) -> Vec<String> {
        match self.system {
            System::Direct => self.lab.webs.iter().map(|web| web.host.v4.to_string()).collect(),
            balanced => vec![vip(balanced).to_string()],
        }
    }

    fn wait(&self) -> Result<()> {
        for target in self.targets() {
            let target: Ipv4Addr = target.parse().context("an address")?;
            wait::until(Duration::from_secs(15), &format!("{target} answers"), || {
                let second = Duration::from_secs(1);
                Connection::open(&self.lab.client.namespace, (target, 80).into(), second)?
                    .get("/")?
                    .ok()
            })?;
        }
        Ok(())
    }
}

fn services(lab: &Lab, way: Way) -> [Service; 2] {
    let mut iperf = way.service(lab);
    iperf.name = "iperf".into();
    iperf.port = IPERF;
    iperf.backends.truncate(1);
    [way.service(lab), iperf]
}

/// A service in mode `nat`; backends listen at its own port.
fn translated(mut service: Service) -> Service {
    service.mode = "nat";
    service
}

/// The web hosts' route to the client leads through the balancer, which forwards.
fn return_through_balancer(lab: &Lab) -> Result<()> {
    let balancer = &lab.balancer;
    balancer.namespace.sysctl(ways::FORWARDING)?;
    let line = format!("route add {}/32 via {}", lab.client.v4, balancer.v4);
    lab.webs.iter().try_for_each(|web| web.host.namespace.ip(&line).map(drop))
}

/// Routes to all hosts by the hash of addresses and ports, but for iperf3, which is on the first alone.
fn router(lab: &Lab, vip: Ipv4Addr) -> Result<()> {
    let hops: Vec<_> = lab.webs.iter().map(|web| format!("nexthop via {}", web.host.v4)).collect();
    let (hops, first) = (hops.join(" "), lab.webs[0].host.v4);
    let balancer = &lab.balancer.namespace;
    balancer.sysctl(&[
        ("ipv4/ip_forward", "1"),
        ("ipv4/fib_multipath_hash_policy", "1"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/eth0/send_redirects", "0"),
    ])?;
    balancer.ip(&format!(
        "addr del {vip}/32 dev eth0\nroute add {vip}/32 {hops}\n\
         rule add pref 100 ipproto tcp dport {IPERF} lookup 100\n\
         route add {vip}/32 via {first} table 100"
    ))?;
    let router = lab.balancer.v4;
    lab.client.namespace.ip(&format!("route add {vip}/32 via {router}")).map(drop)
}

/// Starts a proxy on the balancer.
fn proxy(lab: &Lab, program: &str, args: &[&str]) -> Result<Process> {
    let path = command::find(program).with_context(|| format!("{program} is not installed"))?;
    let log = lab.folder().join(format!("{program}-proxy.log"));
    Process::start(&lab.balancer.namespace, &path, args, &log, lab.orphan())
}

/// HAProxy with its defaults: a thread for each CPU, buffers spliced where that pays. It ends at once if
/// the limit of open files is below the needs of its connections.
fn haproxy(lab: &Lab, vip: Ipv4Addr) -> Result<Process> {
    let mut servers = String::new();
    for web in &lab.webs {
        let _ = writeln!(servers, "  server {} {}:80", web.host.name, web.host.v4);
    }
    let first = lab.webs[0].host.v4;
    let text = format!(
        "global\n  maxconn 2000\n\
         defaults\n  mode tcp\n  option splice-auto\n  timeout connect 5s\n  timeout client 50s\n  timeout server 50s\n\
         listen web\n  bind {vip}:80\n  balance roundrobin\n{servers}\
         listen iperf\n  bind {vip}:{IPERF}\n  server web1 {first}:{IPERF}\n"
    );
    let config = written(lab, "haproxy-bench.cfg", &text)?;
    proxy(lab, "haproxy", &["-db", "-f", &config])
}

/// Where Debian has nginx's stream module.
const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

fn nginx_stream(lab: &Lab, vip: Ipv4Addr) -> Result<Process> {
    ensure!(Path::new(STREAM).exists(), "{STREAM} is not here: Debian's libnginx-mod-stream");
    let mut servers = String::new();
    for web in &lab.webs {
        let _ = writeln!(servers, "    server {}:80;", web.host.v4);
    }
    let (folder, first) = (lab.folder().display(), lab.webs[0].host.v4);
    let text = format!(
        "load_module {STREAM};\ndaemon off;\nuser root;\nworker_processes auto;\nworker_rlimit_nofile 65536;\n\
         pid {folder}/stream.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 16384; }}\n\
         stream {{\n  upstream web {{\n{servers}  }}\n\
         \x20 server {{ listen {vip}:80 reuseport backlog=4096; proxy_pass web; }}\n\
         \x20 server {{ listen {vip}:{IPERF} reuseport; proxy_pass {first}:{IPERF}; }}\n}}\n"
    );
    let config = written(lab, "stream.conf", &text)?;
    let folder = folder.to_string();
    proxy(lab, "nginx", &["-p", &folder, "-c", &config, "-e", "stderr"])
}

/// The destination of web hosts' answers to a request that nftables has translated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    /// The balancer, since requests have its address as their source.
    ToBalancer,
    /// The client, by the route through the balancer.
    ToClient,
}

/// A rule set as guides have it, and short times for connections that have ended: the tables of the
/// whole machine have bounds that a benchmark without keep-alive meets.
fn nftables(lab: &Lab, vip: Ipv4Addr, answers: Answers) -> Result<()> {
    let webs: Vec<_> = lab.webs.iter().map(|web| web.host.v4.to_string()).collect();
    let map: Vec<_> = webs.iter().enumerate().map(|(n, web)| format!("{n} : {web}")).collect();
    let (map, count, all, first) = (map.join(", "), webs.len(), webs.join(", "), &webs[0]);
    let after = format!(
        "chain after {{ type nat hook postrouting priority srcnat;\n\
         ip daddr {{ {all} }} masquerade\n}}\n"
    );
    let after = if answers == Answers::ToBalancer { after } else { String::new() };
    let rules = format!(
        "table ip bench {{\n\
         chain before {{ type nat hook prerouting priority dstnat;\n\
         ip daddr {vip} tcp dport 80 dnat to numgen inc mod {count} map {{ {map} }}\n\
         ip daddr {vip} tcp dport {IPERF} dnat to {first}\n}}\n{after}}}\n"
    );
    let balancer = &lab.balancer.namespace;
    let nft = command::find("nft").context("nftables is not installed")?;
    command::run_with_input(balancer.command(nft).args(["-f", "-"]), &rules)?;
    balancer.sysctl(&[
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("netfilter/nf_conntrack_tcp_timeout_time_wait", "1"),
        ("netfilter/nf_conntrack_tcp_timeout_close", "1"),
        ("netfilter/nf_conntrack_tcp_timeout_last_ack", "1"),
    ])
}

/// IPVS with its Maglev scheduler, a large table of connections and no other connection tracking.
fn ipvs(lab: &Lab, vip: Ipv4Addr) -> Result<()> {
    let mut lines = format!("-A -t {vip}:80 -s mh -b mh-port\n-A -t {vip}:{IPERF} -s mh\n");
    for web in &lab.webs {
        let _ = writeln!(lines, "-a -t {vip}:80 -r {}:80 -m", web.host.v4);
    }
    let _ = writeln!(lines, "-a -t {vip}:{IPERF} -r {}:{IPERF} -m", lab.webs[0].host.v4);
    let balancer = &lab.balancer.namespace;
    let ipvsadm = command::find("ipvsadm").context("ipvsadm is not installed")?;
    command::run_with_input(balancer.command(ipvsadm).arg("-R"), &lines)?;
    balancer.sysctl(&[("ipv4/vs/conntrack", "0")])
}

/// As much of the rule set as needs something of the kernel.
const NAT_CHAIN: &str = "table ip bench {
  chain before {
    type nat hook prerouting priority dstnat
    tcp dport 80 dnat to numgen inc mod 1 map { 0 : 10.0.0.11 }
  }
}
";

/// Why the kernel has no such system; none: it has.
///
/// # Errors
///
/// If a namespace can't be made, or nft fails for another reason.
pub fn lacking(system: System) -> Result<Option<String>> {
    Ok(match system {
        System::NftablesDnat | System::NftablesDnatRouted => {
            let nft = command::find("nft").context("nftables is not installed")?;
            let scratch = Namespace::new("scratch")?;
            let mut check = scratch.command(nft);
            let checked = command::run_with_input(check.args(["-c", "-f", "-"]), NAT_CHAIN);
            let Err(err) = checked else { return Ok(None) };
            // The kernel's answers where it has no such chain, map or expression.
            let is_lack = ["No such file or directory", "not supported"]
                .iter()
                .any(|answer| err.to_string().contains(answer));
            ensure!(is_lack, "a chain of nat: {err:#}");
            Some("the kernel has no chains of nat".into())
        }
        // The kernel's list of virtual servers, in each namespace.
        System::IpvsMasquerading if !Path::new("/proc/net/ip_vs").exists() => {
            Some("the kernel has no IPVS, or its module ip_vs is not loaded".into())
        }
        _ => None,
    })
}

fn written(lab: &Lab, name: &str, text: &str) -> Result<String> {
    let path = lab.folder().join(name);
    fs::write(&path, text).with_context(|| format!("write {name}"))?;
    Ok(path.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_has_one_name() -> Result<()> {
        for system in System::ALL {
            assert_eq!(serde_json::to_value(system)?, system.name());
        }
        Ok(())
    }
}
