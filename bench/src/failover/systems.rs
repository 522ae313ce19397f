//! What is compared: the balancer and HAProxy, each at several settings.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use kit::{
    balancer::Balancer,
    haproxy::{self, Haproxy},
    lab::{Lab, Web},
    ways::Way,
};
use serde::Serialize;

use super::faults::Fault;

/// The service that is measured.
const WAY: Way = Way::DsrV4;

/// Where the client connects.
pub const TARGET: SocketAddr = WAY.target();

/// A balancer at its settings.
#[derive(Debug, Serialize)]
pub struct System {
    /// As `--only` takes it.
    pub name: &'static str,
    /// The settings in a few words.
    pub settings: &'static str,
    /// How long it is watched after a fault: longer than it needs to notice.
    #[serde(skip)]
    pub after: Duration,
    #[serde(skip)]
    faults: &'static [Fault],
    #[serde(skip)]
    make: Make,
}

#[derive(Debug)]
enum Make {
    /// `lbd` with these lines for its service.
    Lb(&'static str),
    /// HAProxy with these lines, and these words for every server.
    Haproxy(&'static str, &'static str),
}

/// A system at work.
pub enum Running {
    /// `lbd`.
    Lb(Balancer),
    /// HAProxy.
    Haproxy(Haproxy),
}

const SLOW: Duration = Duration::from_secs(13);
const FAST: Duration = Duration::from_secs(6);

/// What a check of the TCP port can't see, one of the page can.
const PAGE: &[Fault] = &[Fault::Hangs];

/// All of them.
pub const ALL: &[System] = &[
    System {
        name: "lb-none",
        settings: "no checks",
        after: FAST,
        faults: &Fault::ALL,
        make: Make::Lb(""),
    },
    System {
        name: "haproxy-guides",
        settings: "tcp, every 2 s, fall 3",
        after: SLOW,
        faults: &Fault::ALL,
        make: Make::Haproxy("", "check inter 2s rise 2 fall 3"),
    },
    System {
        name: "haproxy-100ms",
        settings: "tcp, every 100 ms, fall 2",
        after: FAST,
        faults: &Fault::ALL,
        make: Make::Haproxy("", "check inter 100ms rise 2 fall 2"),
    },
    System {
        name: "haproxy-utmost",
        settings: "as 100ms; redispatch, connect within 500 ms",
        after: FAST,
        faults: &Fault::ALL,
        make: Make::Haproxy(
            "retries 3\noption redispatch 1\ntimeout connect 500ms",
            "check inter 100ms rise 2 fall 2 on-marked-down shutdown-sessions",
        ),
    },
    System {
        name: "haproxy-http-guides",
        settings: "http, every 2 s, fall 3",
        after: SLOW,
        faults: PAGE,
        make: Make::Haproxy(
            "option httpchk GET /health\nhttp-check expect status 200",
            "check inter 2s rise 2 fall 3",
        ),
    },
    System {
        name: "haproxy-http-100ms",
        settings: "http, every 100 ms, fall 2",
        after: FAST,
        faults: PAGE,
        make: Make::Haproxy(
            "option httpchk GET /health\nhttp-check expect status 200",
            "check inter 100ms rise 2 fall 2 on-marked-down shutdown-sessions",
        ),
    },
];

impl System {
    /// Whether this fault tells something of it.
    pub fn is_asked(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// Starts it on the lab's balancer, and waits until it sends to every web host.
    ///
    /// # Errors
    ///
    /// If it does not come to that.
    pub fn start(&self, lab: &Lab) -> Result<Running> {
        Ok(match self.make {
            Make::Lb(settings) => {
                Running::Lb(Balancer::start(lab, &[WAY.service(lab).with(settings)])?)
            }
            Make::Haproxy(lines, server) => {
                let settings =
                    haproxy::Settings { lines: lines.to_owned(), server: server.to_owned() };
                Running::Haproxy(Haproxy::start(lab, TARGET, &settings)?)
            }
        })
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
                let status = balancer.poll()?;
                status.service(WAY.name())?.backend(WAY.backend(web))?.slots > 0
            }
            Self::Haproxy(haproxy) => {
                haproxy.states()?.get(&web.host.name).is_some_and(|state| haproxy::is_up(state))
            }
        })
    }
}
