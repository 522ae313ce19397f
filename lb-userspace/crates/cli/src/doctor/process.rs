//! Checks of the clock, and of the daemon as a process: its capabilities and limits.

use lb_config::unit::Unit;

use super::{
    Finding,
    snapshot::{NodeSnapshot, Process},
};

/// A capability, its number in linux/capability.h, and its use.
struct Capability {
    number: u8,
    name: &'static str,
    purpose: &'static str,
}

const fn capability(number: u8, name: &'static str, purpose: &'static str) -> Capability {
    Capability { number, name, purpose }
}

const SYS_ADMIN: u8 = 21;
const IPC_LOCK: u8 = 14;

/// Without these it does not work.
const NEEDED: [Capability; 4] = [
    capability(39, "CAP_BPF", "loads the program and its maps"),
    capability(38, "CAP_PERFMON", "lets the program compare packets' pointers"),
    capability(12, "CAP_NET_ADMIN", "attaches the program, sets addresses"),
    capability(13, "CAP_NET_RAW", "probes backends through the VIP, sends VRRP"),
];

/// Without this it works worse.
const WISHED: Capability =
    capability(23, "CAP_SYS_NICE", "virtual routers are scheduled before everything else");

impl Process {
    const fn may(&self, number: u8) -> bool {
        self.capabilities & (1 << number) != 0
    }
}

pub(super) fn clock(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "clock";
    vec![match snapshot.clock_synchronised {
        Some(true) => Finding::ok(CHECK, "the clock is kept right"),
        Some(false) => Finding::warning(
            CHECK,
            "nothing keeps the clock right",
            "deadlines of drains, events and logs of two nodes are compared by it",
        )
        .fixed_by("apt-get install -y chrony"),
        None => Finding::warning(
            CHECK,
            "the kernel does not report whether the clock is kept right",
            "deadlines of drains, events and logs of two nodes are compared by it",
        ),
    }]
}

pub(super) fn daemon(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "lbd";
    vec![match &snapshot.daemon {
        Some(process) => {
            Finding::ok(CHECK, format!("lbd runs (pid {}, user {})", process.pid, process.uid))
        }
        None => {
            let found = match &snapshot.socket.refused {
                Some(why) => format!("no lbd answers on {}: {why}", snapshot.socket.path.display()),
                None => "no lbd runs".to_owned(),
            };
            let program =
                snapshot.interfaces.values().filter_map(|interface| interface.program.as_ref());
            let why = match program.filter(|program| program.ours).count() {
                0 => "nothing is forwarded",
                _ => {
                    "what lbd has written goes on forwarding; nothing is checked, changed or taken over"
                }
            };
            match &snapshot.unit {
                // systemd starts it again by itself: another start fixes nothing.
                Some(unit) if unit.is_retried() => {
                    let why = format!("{why}; {}", Unit::remedy(Some(unit)));
                    Finding::warning(CHECK, found, &why)
                }
                _ => Finding::warning(CHECK, found, why).fixed_by(start(snapshot)),
            }
        }
    }]
}

/// The command that starts `lbd`.
pub(super) fn start(snapshot: &NodeSnapshot) -> String {
    match &snapshot.unit {
        Some(unit) => unit.start().to_owned(),
        None => format!("lbd --config {}", snapshot.file.display()),
    }
}

pub(super) fn capabilities(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "capabilities";
    let Some(process) = &snapshot.daemon else { return Vec::new() };
    let has = |one: &Capability| {
        // The capabilities that CAP_SYS_ADMIN was divided into (capabilities(7)).
        process.may(one.number) || one.number >= 38 && process.may(SYS_ADMIN)
    };
    let mut findings: Vec<_> = NEEDED
        .iter()
        .filter(|one| !has(one))
        .map(|one| {
            Finding::error(CHECK, format!("lbd lacks {}", one.name), &format!("it {}", one.purpose))
                .fixed_by(grant(one.name))
        })
        .collect();
    let routers = snapshot.config.as_ref().is_ok_and(|config| !config.routers.routers.is_empty());
    if routers && !has(&WISHED) {
        let why = "under load this node is late, and its peers take over for no reason";
        let found = format!("lbd lacks {}", WISHED.name);
        findings.push(Finding::warning(CHECK, found, why).fixed_by(grant(WISHED.name)));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "lbd has the capabilities that it needs"));
    }
    findings
}

/// The command that gives a capability to the service, beside others that are given so.
fn grant(name: &str) -> String {
    drop_in(
        &name.to_lowercase(),
        &format!("AmbientCapabilities={name}\nCapabilityBoundingSet={name}"),
    )
}

/// The command that changes the service, and starts it again.
fn drop_in(file: &str, lines: &str) -> String {
    let lines = lines.replace('\n', "\\n");
    format!(
        "mkdir -p /etc/systemd/system/lbd.service.d && printf '[Service]\\n{lines}\\n' \
         > /etc/systemd/system/lbd.service.d/{file}.conf && systemctl daemon-reload && \
         systemctl restart lbd"
    )
}

/// Descriptors that are not for backends: maps, sockets of netlink, virtual routers, clients.
const FILES_BESIDE: u64 = 1_024;

pub(super) fn limits(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "limits";
    let (Some(process), Ok(config)) = (&snapshot.daemon, &snapshot.config) else {
        return Vec::new();
    };
    let backends: usize = config.desired.services.values().map(|one| one.backends.len()).sum();
    // A question that is not answered yet, and the next.
    let needed = FILES_BESIDE + 2 * backends as u64;
    let files = match process.files {
        Some(files) if files < needed => {
            let found = format!("lbd may have {files} open files, where {needed} may be needed");
            let round = needed.next_power_of_two().max(65_536);
            Finding::warning(CHECK, found, "checks wait for each other, and clients are refused")
                .fixed_by(drop_in("files", &format!("LimitNOFILE={round}")))
        }
        Some(files) => Finding::ok(CHECK, format!("lbd may have {files} open files")),
        None => Finding::ok(CHECK, "lbd may have any number of open files"),
    };
    let routers = !config.routers.routers.is_empty();
    let bounded = process.memlock.filter(|_| routers && !process.may(IPC_LOCK));
    let memory = bounded.map(|bytes| {
        let found = format!("lbd may lock {bytes} bytes in memory");
        let why = "a virtual router that waits for its pages is late, and its peers take over";
        Finding::warning(CHECK, found, why).fixed_by(drop_in("memory", "LimitMEMLOCK=infinity"))
    });
    [files].into_iter().chain(memory).collect()
}

pub(super) fn socket(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "socket";
    let Ok(config) = &snapshot.config else { return Vec::new() };
    let socket = &snapshot.socket;
    let path = socket.path.display();
    let group = &config.group;
    let mut findings = Vec::new();
    if !socket.group_exists {
        let found = format!("there is no group {group}");
        findings.push(
            Finding::warning(CHECK, found, "only root can use lbctl")
                .fixed_by(format!("groupadd --system {group} && systemctl restart lbd")),
        );
    }
    match socket.mode {
        Some(mode) if mode & 0o007 != 0 => findings.push(
            Finding::error(
                CHECK,
                format!("anybody may use {path} (mode {:o})", mode & 0o777),
                "who can write to it can take services from their clients",
            )
            .fixed_by(format!("chmod 660 {path}")),
        ),
        Some(mode) => findings.push(Finding::ok(
            CHECK,
            format!("root and the group {group} may use {path} (mode {:o})", mode & 0o777),
        )),
        None => {}
    }
    findings
}
