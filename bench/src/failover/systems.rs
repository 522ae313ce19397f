//! The compared systems: the balancer and HAProxy, each at several settings.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use kit::{
    balancer::Balancer,
    haproxy::{self, Haproxy},
    lab::{Lab, Web},
    reports::failover::Fault,
    status::{ServiceExt as _, StatusExt as _},
    ways::Way,
};

/// The service that is measured.
const WAY: Way = Way::DsrV4;

/// Where the client connects.
pub const TARGET: SocketAddr = WAY.target();

/// A balancer at its settings.
#[derive(Debug)]
pub struct System {
    /// As `--only` takes it.
    pub name: &'static str,
    balancer: Balancing,
    check: Option<Check>,
    faults: &'static [Fault],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Balancing {
    /// `lbd` as it comes.
    Lb,
    /// `lbd` that sends no SYN to a second choice.
    LbPlain,
    /// `lbd` that moves the flows of a backend whose host refuses connections.
    LbMove,
    /// HAProxy as it comes.
    Haproxy,
    /// HAProxy that tries another server at once.
    HaproxyTuned,
}

/// A check: the same numbers for both.
#[derive(Clone, Copy, Debug)]
struct Check {
    /// Whether the check requests the page, and not only a TCP connection.
    page: bool,
    /// Between two checks, and how long one may take.
    interval: Duration,
    /// Bad answers that bring a backend down; two good ones bring it up.
    fall: u8,
}

/// A system at work.
pub enum Running {
    /// `lbd`.
    Lb(Balancer),
    /// HAProxy.
    Haproxy(Haproxy),
}

/// As guides have it that set HAProxy up.
const GUIDES: Check = Check { page: false, interval: Duration::from_secs(2), fall: 3 };
const QUICK: Check = Check { page: false, interval: Duration::from_millis(100), fall: 2 };
/// The shortest interval that `lbd` takes.
const QUICKEST: Check = Check { interval: Duration::from_millis(50), ..QUICK };
const PAGE_GUIDES: Check = Check { page: true, ..GUIDES };
const PAGE_QUICK: Check = Check { page: true, ..QUICK };

/// A check of the page finds faults that one of the TCP port can't.
const HANGS: &[Fault] = &[Fault::Hangs];
/// Where no packet is lost, a second choice has nothing to do.
const ABRUPT: &[Fault] =
    &[Fault::Killed, Fault::CutOff, Fault::Hangs, Fault::Restarted, Fault::Drained];
/// Which flows move matters where a host that takes no connection serves the old ones.
const GRACEFUL: &[Fault] = &[Fault::Quit, Fault::Rolling];

/// All of them.
pub const ALL: &[System] = &[
    System::new("lb-plain", Balancing::LbPlain, None),
    System::new("lb-none", Balancing::Lb, None),
    System::new("lb-guides", Balancing::Lb, Some(GUIDES)),
    System::new("lb-100ms", Balancing::Lb, Some(QUICK)),
    System::new("lb-50ms", Balancing::Lb, Some(QUICKEST)),
    System::new("lb-move", Balancing::LbMove, Some(QUICK)),
    System::new("lb-http-guides", Balancing::Lb, Some(PAGE_GUIDES)),
    System::new("lb-http-100ms", Balancing::Lb, Some(PAGE_QUICK)),
    System::new("haproxy-guides", Balancing::Haproxy, Some(GUIDES)),
    System::new("haproxy-100ms", Balancing::Haproxy, Some(QUICK)),
    System::new("haproxy-utmost", Balancing::HaproxyTuned, Some(QUICK)),
    System::new("haproxy-http-guides", Balancing::Haproxy, Some(PAGE_GUIDES)),
    System::new("haproxy-http-utmost", Balancing::HaproxyTuned, Some(PAGE_QUICK)),
];

impl System {
    const fn new(name: &'static str, balancer: Balancing, check: Option<Check>) -> Self {
        let faults = match (balancer, check) {
            (_, Some(Check { page: true, .. })) => HANGS,
            (Balancing::LbPlain, _) => ABRUPT,
            (Balancing::LbMove, _) => GRACEFUL,
            _ => &Fault::ALL,
        };
        Self { name, balancer, check, faults }
    }

    /// Whether this fault is measured of it.
    pub fn is_measured(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// The settings in a few words.
    pub fn settings(&self) -> String {
        let check = self.check.map_or_else(|| "no checks".to_owned(), |check| check.describe());
        match self.balancer {
            Balancing::Lb | Balancing::Haproxy => check,
            Balancing::LbPlain => check + ", no second choice",
            Balancing::LbMove => check + ", on_down = move",
            Balancing::HaproxyTuned => check + ", redispatch",
        }
    }

    /// How long it is watched after a fault: longer than it needs to notice.
    pub fn after(&self) -> Duration {
        let check = self.check.map_or(Duration::ZERO, |check| check.interval * check.fall.into());
        // An interval goes by before the first bad answer, and each may take as long as another.
        check * 2 + Duration::from_secs(if check > Duration::from_secs(1) { 1 } else { 5 })
    }

    /// Starts it on the lab's balancer, and waits until it sends to every web host.
    ///
    /// # Errors
    ///
    /// If it does not come to that.
    pub fn start(&self, lab: &Lab) -> Result<Running> {
        let tuned = match self.balancer {
            Balancing::Lb | Balancing::LbPlain | Balancing::LbMove => {
                let syn_failover = self.balancer != Balancing::LbPlain;
                let on_down = if self.balancer == Balancing::LbMove { "move" } else { "keep" };
                let service = WAY
                    .service(lab)
                    .with(&format!("syn_failover = {syn_failover}\non_down = \"{on_down}\""));
                let check = self.check.map(|check| check.toml()).unwrap_or_default();
                return Ok(Running::Lb(Balancer::start(lab, &[service.with(&check)])?));
            }
            Balancing::Haproxy => false,
            Balancing::HaproxyTuned => true,
        };
        let mut settings = self.check.map(|check| check.haproxy()).unwrap_or_default();
        if tuned {
            // Without `on-marked-down shutdown-sessions`: it would end connections that are about
            // to be tried on another server.
            settings.lines.push_str("retries 3\noption redispatch 1\ntimeout connect 500ms\n");
        }
        Ok(Running::Haproxy(Haproxy::start(lab, TARGET, &settings)?))
    }
}

impl Check {
    fn describe(self) -> String {
        let what = if self.page { "http" } else { "tcp" };
        format!("{what} every {:?}, fall {}", self.interval, self.fall)
    }

    fn toml(self) -> String {
        let what = if self.page { "\"http\", path = \"/health\"" } else { "\"tcp\"" };
        let (ms, fall) = (self.interval.as_millis(), self.fall);
        format!(
            "check = {{ type = {what}, interval = \"{ms}ms\", fast_interval = \"{ms}ms\", \
             timeout = \"{ms}ms\", rise = 2, fall = {fall} }}"
        )
    }

    fn haproxy(self) -> haproxy::Settings {
        let lines = "option httpchk GET /health\nhttp-check expect status 200-399\n";
        let lines = if self.page { lines } else { "" }.to_owned();
        let (ms, fall) = (self.interval.as_millis(), self.fall);
        let server = format!("check inter {ms}ms rise 2 fall {fall}");
        haproxy::Settings { lines, server, ..haproxy::Settings::default() }
    }
}

impl Running {
    /// Lets a web host keep its connections and get no new one.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn drain(&self, web: &Web) -> Result<()> {
        match self {
            Self::Lb(balancer) => {
                let backend = WAY.backend(web).to_string();
                balancer.lbctl(&["backend", "drain", WAY.name(), &backend]).map(drop)
            }
            Self::Haproxy(haproxy) => haproxy.drain(&web.host.name),
        }
    }

    /// Whether new connections go to a web host.
    ///
    /// # Errors
    ///
    /// If the system does not answer.
    pub fn chooses(&self, web: &Web) -> Result<bool> {
        Ok(match self {
            Self::Lb(balancer) => {
                let status = balancer.status()?;
                status.service(WAY.name())?.backend(WAY.backend(web))?.slots > 0
            }
            Self::Haproxy(haproxy) => {
                haproxy.states()?.get(&web.host.name).is_some_and(|state| haproxy::is_up(state))
            }
        })
    }
}
