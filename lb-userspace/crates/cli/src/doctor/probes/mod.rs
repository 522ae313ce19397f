//! Takes the snapshots. They lack what is unreadable, and the checks report that; nothing is changed.

mod claims;
mod destinations;
mod firewall;
mod generic;
mod links;
mod nft;
mod system;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use lb_api::{client::Client, paths, status::Status};
use lb_config::{About, Config, Error as ConfigError, Problem, host, unit::Unit};
use lb_datapath::{decap, kernel, probe, pulls_data, serves_local_clients};
use lb_model::hop::{Resolution, Want};
use lb_netlink::{Resolver, generic::xdp_features, gro, striding::empty_first_buffers};

use super::{
    backend::{self, BackendRequest},
    snapshot::{Kernel, Mistake, NodeSnapshot, SocketFile, TranslatedBackend},
};

/// How long neighbours and other holders of a VIP may take to answer: they do so within
/// milliseconds, or after the second, when the kernel sends the request again.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// Takes the snapshot of a node with the balancer.
///
/// # Errors
///
/// If netlink can't be used.
pub(crate) async fn balancer(file: &Path, socket: Option<&Path>) -> anyhow::Result<NodeSnapshot> {
    let config = read_config(file);
    let links = links::read()?;
    let mut interfaces = links.interfaces;
    let mut hops = BTreeMap::new();
    let mut claims = None;
    if let Ok(config) = &config {
        let features = xdp_features().unwrap_or_default();
        for name in &config.interfaces {
            let Some(interface) = interfaces.get_mut(name) else { continue };
            generic::describe(name, interface, &features);
            interface.gro_below = gro::below(name);
            interface.empty_first_buffers = empty_first_buffers(name, pulls_data());
            interface.program = probe::program_on(&config.pin_dir, interface.ifindex);
        }
        let services = config.desired.services.values();
        // The VIPs of a prefix come by a route.
        let single = services.filter(|service| service.key.extent.host_bits == 0);
        let vips: BTreeSet<_> = single.map(|service| service.key.vip).collect();
        let at_tc = |name: &&String| {
            let found = interfaces.get(*name).and_then(|interface| interface.program.as_ref());
            found.is_some_and(|program| program.ours && program.hook == probe::Hook::Tc)
        };
        let at_tc = config.interfaces.iter().filter(at_tc).cloned().collect();
        let (resolved, claimed) = tokio::join!(
            resolve(config, at_tc),
            claims::collect(&interfaces, &config.interfaces, vips)
        );
        hops = resolved?;
        claims = claimed;
    }
    let configured = config.as_ref().map(|config| config.socket.as_path()).ok();
    let socket = socket.or(configured).unwrap_or(Path::new(lb_model::defaults::SOCKET));
    let socket = socket.to_owned();
    let (daemon, refused) = system::daemon(&socket);
    let status = match &daemon {
        Some(_) => status(&socket).await,
        None => None,
    };
    let group = config.as_ref().map_or(lb_model::defaults::GROUP, |config| &config.group);
    let socket = SocketFile {
        group_exists: system::group_exists(group),
        mode: system::mode(&socket),
        refused,
        path: socket,
    };
    let unit = Unit::read();
    let refused = match (&unit, &config) {
        (Some(unit), Ok(config)) => match host::unreadable_by(unit, config, file) {
            Ok(problems) => mistakes(file, problems),
            Err(error) => vec![Mistake { text: format!("{error:#}"), fix: None }],
        },
        _ => Vec::new(),
    };
    Ok(NodeSnapshot {
        unit,
        refused,
        kernel: Kernel {
            release: kernel::release(),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            jit: system::number("/proc/sys/net/core/bpf_jit_enable"),
            features: kernel::features(),
            bpffs: system::bpffs(),
        },
        file: file.into(),
        sysctls: system::sysctls(interfaces.keys()),
        cpus: system::cpus(),
        interfaces,
        serves_local_clients: config
            .as_ref()
            .is_ok_and(|config| serves_local_clients(&config.pin_dir)),
        config,
        firewall: firewall::read(),
        hops,
        translated: status.iter().flat_map(translated).collect(),
        egress: status.map(|status| status.egress).unwrap_or_default(),
        claims,
        clock_synchronised: system::clock_synchronised(),
        daemon,
        socket,
    })
}

/// The status of the running `lbd`; none if it does not answer.
async fn status(socket: &Path) -> Option<Status> {
    let client = Client::new(socket);
    tokio::time::timeout(PATIENCE, client.get::<Status>(paths::STATUS)).await.ok()?.ok()
}

/// The backends in mode `nat`.
fn translated(status: &Status) -> impl Iterator<Item = TranslatedBackend> {
    status.services.iter().flat_map(|(name, service)| {
        service.backends.iter().filter_map(|(address, backend)| {
            Some(TranslatedBackend {
                service: name.clone(),
                backend: *address,
                interface: backend.interface.clone(),
                sent: backend.sent.packets,
                returned: backend.returned?.packets,
            })
        })
    })
}

fn read_config(file: &Path) -> Result<Config, Vec<Mistake>> {
    Config::load(file).map_err(|error| match error {
        ConfigError::Invalid(invalid) => mistakes(file, invalid.problems),
        error @ ConfigError::Unreadable { .. } => {
            let text = format!("{:#}", anyhow::Error::from(error));
            vec![Mistake { text, fix: Some(edit(file)) }]
        }
    })
}

fn mistakes(file: &Path, problems: Vec<Problem>) -> Vec<Mistake> {
    let mistake = |problem: Problem| Mistake {
        text: format!("{}:{problem}", file.display()),
        fix: problem.fix.or_else(|| (problem.about == About::Text).then(|| edit(file))),
    };
    problems.into_iter().map(mistake).collect()
}

fn edit(file: &Path) -> String {
    let file = file.display();
    format!("${{EDITOR:-vi}} {file} && lbctl config check {file}")
}

/// How the backends are reached, when all have answered or have had the time to; `at_tc` are the interfaces whose
/// program is there.
async fn resolve(
    config: &Config,
    at_tc: BTreeSet<String>,
) -> anyhow::Result<BTreeMap<Want, Resolution>> {
    let services = config.desired.services.values();
    let wants: BTreeSet<Want> = services
        .flat_map(|service| {
            service.backends.keys().map(|&address| Want { address: address.ip, mode: service.mode })
        })
        .collect();
    let (resolver, mut resolutions) = Resolver::start(config.interfaces.clone()).await?;
    resolver.set_at_tc(at_tc);
    resolver.want(wants.clone());
    let known = |hops: &BTreeMap<Want, Resolution>| {
        let is_known =
            |want| hops.get(want).is_some_and(|hop| !matches!(hop, Resolution::Pending { .. }));
        wants.iter().all(is_known)
    };
    // A backend that has not answered by then is reported as pending.
    let _ =
        tokio::time::timeout(PATIENCE, resolutions.wait_for(|current| known(&current.hops))).await;
    let hops = resolutions.borrow().hops.clone();
    Ok(hops)
}

/// Takes the snapshot of a backend.
///
/// # Errors
///
/// If netlink can't be used.
pub async fn backend(
    request: BackendRequest,
    pin_dir: &Path,
) -> anyhow::Result<backend::BackendSnapshot> {
    let links = links::read()?;
    let mut interfaces = links.interfaces;
    // Without pins, or the right to read them, there is no decapsulator to report.
    let decaps = decap::status(pin_dir).unwrap_or_default();
    let decaps = decaps.into_iter().filter(|one| one.mode != "detached");
    let decaps: BTreeMap<_, _> = decaps
        .map(|one| {
            let decap = backend::Decap {
                vips: one.vips,
                sources: one.sources,
                generic: one.mode == "generic",
                followed: one.followed,
                unlisted: one.unlisted,
            };
            (one.dev, decap)
        })
        .collect();
    let features = xdp_features().unwrap_or_default();
    for (name, interface) in &mut interfaces {
        generic::describe(name, interface, &features);
        if decaps.contains_key(name) {
            interface.empty_first_buffers = empty_first_buffers(name, pulls_data());
        }
    }
    Ok(backend::BackendSnapshot {
        request,
        sysctls: system::sysctls(interfaces.keys()),
        interfaces,
        firewall: firewall::read(),
        listeners: system::listeners(),
        own_ports: system::own_ports(),
        local_prefixes: links.local_prefixes,
        gateways: links.gateways,
        decaps,
        announced_segment: links.announced_segment,
        uplink: links.uplink,
    })
}
