//! The status of the data plane.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use lb_api::status::{Backend, Connections, Count, Drain, Service, Status, Usage};
use lb_common::verdict::{Drop, Pass};
use lb_inspect::{
    capture::{Spec, annotator::PacketAnnotator},
    explain::{self, Answers, Around, Questions},
};
use lb_model::{
    backend_address::BackendRef,
    desired::{self, Admin, Mode, Protocol},
    hop::{Resolution, Want},
    seen::{self, Condition, Seen},
    units::nearest,
};
use lb_plane::{BackendTotals, CaptureLoader, DataPlane, LoadedCapture, Tap};

use super::{Engine, maps::Ids};

impl<D: DataPlane> Engine<D> {
    /// The parts that a capture needs to begin; `status` has the names.
    ///
    /// # Errors
    ///
    /// The filter makes no sense, its service or backend is not there, or a capture is running.
    pub fn prepare_capture(
        &self,
        spec: &Spec,
        status: &Status,
    ) -> Result<(Box<dyn CaptureLoader>, PacketAnnotator)> {
        spec.check().map_err(anyhow::Error::msg)?;
        let mut annotator = PacketAnnotator::default();
        for (name, service) in &status.services {
            if let Some(value) = self.maps.applied.services.get(&service.key) {
                annotator.services.insert(value.id, name.clone());
            }
            let ids = service.backends.iter().map(|(address, backend)| (backend.id, *address));
            annotator.backends.extend(ids.filter(|(id, _)| *id != 0));
        }
        let interfaces = status.interfaces.iter();
        annotator.interfaces = interfaces.map(|i| (i.ifindex, i.name.clone())).collect();
        let service = spec.service.as_ref().map(|name| {
            let found = annotator.services.iter().find(|(_, known)| *known == name);
            let near = || nearest(name, status.services.keys().map(String::as_str));
            found.map(|(id, _)| *id).with_context(|| match near() {
                Some(near) => format!("no service {name}; did you mean {near}?"),
                None => format!("no service {name}; 'lbctl service list' shows all"),
            })
        });
        let service = service.transpose()?;
        let backend = spec.backend.map(|address| {
            let services = status.services.iter();
            let selected = services.filter(|(name, _)| spec.service.iter().all(|one| one == *name));
            let wanted = BackendRef::from(address);
            let ids = selected.filter_map(|(_, service)| {
                let known = service.backends.keys().map(|at| (*at, None));
                service.backends.get(&wanted.find(service.key.port, known).ok()?)
            });
            let ids: Vec<u16> = ids.map(|backend| backend.id).filter(|id| *id != 0).collect();
            match ids.as_slice() {
                [id] => Ok(*id),
                [] => bail!("no backend {address}; 'lbctl backend list' shows all"),
                _ => bail!("{address} is a backend of several services; name one by --service"),
            }
        });
        let loader = self.maps.plane.prepare_capture(spec, service, backend.transpose()?)?;
        Ok((loader, annotator))
    }

    /// Begins a capture.
    ///
    /// # Errors
    ///
    /// One is running, or the program can't be put into its place.
    pub fn begin_capture(&mut self, loaded: LoadedCapture) -> Result<Box<dyn Tap>> {
        self.maps.plane.begin_capture(loaded)
    }

    /// Ends a capture; nothing is done if none is running.
    ///
    /// # Errors
    ///
    /// The normal program can't be put back.
    pub fn end_capture(&mut self) -> Result<()> {
        self.maps.plane.end_capture()
    }

    /// The program's decisions about packets at this moment; `status` has the names for them. Writes no
    /// map.
    ///
    /// # Errors
    ///
    /// If a packet makes no sense, or a map can't be read.
    pub fn explain(&self, questions: &Questions, status: &Status, nanos: u64) -> Result<Answers> {
        let room_for_pins = self.walk.pins < u64::from(self.maps.plane.limits().pins);
        let around = Around { status, nanos, room_for_pins };
        let all = explain::explain(&self.maps.plane, questions, &around)?;
        let (explained, cases) = all.into_iter().unzip();
        let verifier = match questions.verify {
            true => Some(self.maps.plane.verifier(cases).context("copy the maps")?),
            false => None,
        };
        Ok(Answers { explained, verifier })
    }

    /// The status of the data plane; version and uptime are the caller's.
    ///
    /// # Errors
    ///
    /// If the counters can't be read.
    pub fn status(&self) -> Result<Status> {
        let verdicts = self.maps.plane.verdicts().context("read the verdicts")?;
        let totals = self.maps.plane.backend_totals().context("read the backends' counters")?;
        let count = |index: u32| verdicts.get(index as usize).copied().unwrap_or_default();
        let limits = self.maps.plane.limits();
        let services = self.wanted.desired().services.iter();
        let ids = self.maps.ids();
        Ok(Status {
            interfaces: self.maps.plane.interfaces(),
            services: services
                .map(|(name, service)| (name.clone(), self.service(service, &ids, &totals)))
                .collect(),
            passed: by_name(Pass::ALL.iter().map(|why| (why.name(), count(why.index())))),
            dropped: by_name(Drop::ALL.iter().map(|why| (why.name(), count(why.index())))),
            pins: Usage { used: self.walk.pins, capacity: limits.pins.into() },
            services_used: usage(self.maps.applied.services.len(), limits.services),
            backends_used: usage(self.maps.applied.backends.len(), limits.backends),
            last_error: self.last_error.clone(),
            ..Status::default()
        })
    }

    fn service(&self, service: &desired::Service, ids: &Ids, totals: &[BackendTotals]) -> Service {
        let id = self.maps.applied.services.get(&service.key).map(|value| value.id);
        let ring = id.and_then(|id| self.maps.applied.rings.get(&id));
        let backends = service.backends.iter().map(|(&address, backend)| {
            let id = id.and_then(|service| ids.of(service, address)).unwrap_or(0);
            let owned = ring.and_then(|ring| ring.owned.get(&id)).copied().unwrap_or_default();
            let totals = totals.get(usize::from(id)).filter(|_| id != 0);
            let totals = totals.copied().unwrap_or_default();
            let want = Want { address: address.ip, mode: service.mode };
            let known = self.wanted.neighbourhood.as_ref().and_then(|known| known.hops.get(&want));
            let hop = match known {
                Some(Resolution::Resolved(hop)) => Some(hop),
                _ => None,
            };
            let key = seen::BackendKey { service: service.key, backend: address };
            let seen = self.wanted.view.get(&key).copied().unwrap_or_default();
            let tally = self.walk.per_backend.get(&id).copied().unwrap_or_default();
            let pins_stale = self.walk.is_stale(id);
            let drains = backend.admin.drains();
            let drain = drains.then(|| self.drains.of(&service.key, id)).flatten();
            let drain = drain.map(|drain| Drain {
                estimated: drain.estimated && owned.current == 0 && !pins_stale,
                ..drain
            });
            let status = Backend {
                name: backend.name.clone(),
                weight: backend.weight.0.get(),
                admin: backend.admin,
                backup: backend.backup,
                condition: seen.condition,
                held: seen.held,
                suspect: seen.suspect,
                check: None,
                slow_start_permille: self.ramping.in_force(&key),
                unusable: self.unusable(backend, seen, id, known),
                egress_fault: None,
                path_mtu: self.path_mtu(&want),
                interface: hop.map(|hop| hop.interface.clone()),
                mac: hop
                    .filter(|hop| !hop.is_local() && !hop.is_raw_ip())
                    .map(|hop| hop.mac.map(|byte| format!("{byte:02x}")).join(":")),
                id,
                slots: owned.current,
                base_slots: owned.base,
                pins: tally.flows,
                pins_closing: tally.closing,
                pins_stale,
                drain,
                sent: totals.sent,
                new_flows: totals.new_flows,
                unpinned_packets: totals.unpinned,
                syn_retransmissions: totals.syn_retransmissions,
                second_choices: totals.second_choices,
                returned: (service.mode == Mode::Nat).then_some(totals.returned),
                local_sockets: (service.mode == Mode::Nat).then_some(totals.local),
                connections: self.connections(id, &totals),
            };
            (address, status)
        });
        let backends: BTreeMap<_, _> = backends.collect();
        Service {
            key: service.key,
            mode: service.mode,
            udp_policy: (service.key.protocol == Protocol::Udp).then_some(service.udp_policy),
            ring_slots: service.ring_slots,
            slots_in_flux: ring.map_or(0, |ring| ring.in_flux),
            idle_timeout_secs: service.idle_timeout.as_secs(),
            standing: self.standings.get(&service.key).copied().unwrap_or_default(),
            totals: self.maps.retired.with(&service.key, backends.values()),
            target_port: service.target_port,
            backends,
        }
    }

    /// The connections of a backend, where this node sees both directions.
    fn connections(&self, id: u16, totals: &BackendTotals) -> Option<Connections> {
        let backend = self.maps.applied.backends.get(&id)?;
        let open = self.nat_connections.open(backend, id)?;
        let BackendTotals { accepted, refused, .. } = *totals;
        Some(Connections { open, accepted, refused })
    }

    /// The path MTU to a backend that routers have reported.
    fn path_mtu(&self, want: &Want) -> Option<u16> {
        let known = self.wanted.neighbourhood.as_ref().filter(|_| want.mode == Mode::Ipip)?;
        known.path_mtus.get(&want.address).copied()
    }

    /// Why a backend can't be sent to.
    fn unusable(
        &self,
        backend: &desired::Backend,
        seen: Seen,
        id: u16,
        known: Option<&Resolution>,
    ) -> Option<String> {
        use lb_common::abi::backend_flags::USABLE;
        if self.maps.applied.backends.get(&id).is_some_and(|entry| entry.flags & USABLE != 0) {
            return None;
        }
        Some(match (backend.admin, known) {
            (Admin::Down, _) => "taken down by the operator".into(),
            (Admin::Removing { .. }, _) if id == 0 => "its last flow has ended".into(),
            (_, Some(Resolution::Resolved(_))) if seen.condition == Condition::HardDown => {
                "it is down, and its flows move".into()
            }
            (_, Some(Resolution::Pending { reason } | Resolution::Unreachable { reason })) => {
                reason.clone()
            }
            (_, None) => "its next hop is not known yet".into(),
            (_, Some(Resolution::Resolved(_))) => "its entry is not written yet".into(),
        })
    }
}

fn by_name(counts: impl Iterator<Item = (&'static str, Count)>) -> BTreeMap<String, Count> {
    counts.map(|(name, count)| (name.to_owned(), count)).collect()
}

fn usage(used: usize, capacity: u32) -> Usage {
    Usage { used: used as u64, capacity: capacity.into() }
}
