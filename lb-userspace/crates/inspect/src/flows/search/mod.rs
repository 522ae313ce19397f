//! The search for flows: the query, by ids; the results, with names.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use anyhow::Result;
use lb_common::abi::{Destination, FlowKey, FlowValue, Service, flow_flags};
use lb_model::{
    backend_address::BackendAddress,
    desired::ServiceKey,
    edit::{no_backend, no_service},
    entry,
    flow::{EMBRYONIC_SECS, FlowRef, is_closed, kept_secs, slot_of_flow},
    refusal::{Refusal, RefusalKind},
};

use super::{Count, Flow, Found, Kind, LIMIT, MOST, Query, Source};

/// The names for the ids in the flow tables.
#[derive(Debug, Default)]
pub struct Names {
    services: BTreeMap<u16, (String, ServiceKey, Service)>,
    backends: BTreeMap<u16, (u16, BackendAddress)>,
}

impl Names {
    /// As the maps have them, with the services' names.
    ///
    /// # Errors
    ///
    /// A map can't be read.
    pub fn read(source: &dyn Source, names: &BTreeMap<ServiceKey, String>) -> Result<Self> {
        let services = source.services()?.into_iter().map(|(key, service)| {
            let name = names.get(&key).cloned().unwrap_or_else(|| key.to_string());
            (service.id, (name, key, service))
        });
        let backends = source.backends()?.into_iter();
        let backends =
            backends.map(|(id, backend)| (id, (backend.service, entry::backend_of(&backend))));
        Ok(Self { services: services.collect(), backends: backends.collect() })
    }

    /// Whether a flow may still send. The idle timeout of a service that is gone is unknown.
    fn is_live(&self, flow: &FlowRef, value: FlowValue, now: u32) -> bool {
        let service = self.services.get(&flow.service());
        let idle = now.saturating_sub(value.seen);
        service.is_none_or(|(.., service)| idle <= kept_secs(flow, value, service, EMBRYONIC_SECS))
    }

    fn flow(&self, flow: &FlowRef, value: FlowValue, now: u32) -> Flow {
        let service = self.services.get(&flow.service());
        let slot = |key: &FlowKey| {
            let (.., service) = service.filter(|(.., service)| service.slots > 0)?;
            Some(slot_of_flow(service, key))
        };
        let (kind, client, connection) = match flow {
            FlowRef::Pin(key) => (Kind::Pin, Some(key), None),
            FlowRef::Tracked(key) => (Kind::Tracked, Some(key), None),
            FlowRef::Connection(key) => (Kind::Quic, None, Some(key)),
        };
        Flow {
            kind,
            service: service.map(|(name, ..)| name.clone()),
            client: client.map(|key| entry::ip_of(key.source)),
            port: client.map(|key| key.port.get()),
            destination: client.zip(service).and_then(|(flow, (_, key, _))| {
                (flow.destination != Destination::ONLY).then(|| entry::asked(key, flow.destination))
            }),
            connection: connection
                .map(|key| key.id.iter().map(|byte| format!("{byte:02x}")).collect()),
            backend: self.backends.get(&value.backend).map(|(_, address)| *address),
            backend_id: value.backend,
            slot: client.and_then(slot),
            established: value.flags & flow_flags::ESTABLISHED != 0,
            closing: value.flags & flow_flags::CLOSING != 0,
            idle_secs: now.saturating_sub(value.seen),
        }
    }
}

/// A search: the query, and its results so far. A flow that has been idle for longer than its
/// service lets it is none: its entry waits for the sweep, or for another one that needs its place.
#[derive(Debug)]
pub struct Search<'a> {
    names: &'a Names,
    now: u32,
    wanted: Wanted<'a>,
    tally: Tally,
}

/// The query, by ids.
#[derive(Debug)]
struct Wanted<'a> {
    query: &'a Query,
    service: Option<u16>,
    backends: Option<BTreeSet<u16>>,
}

/// The results.
#[derive(Debug, Default)]
struct Tally {
    limit: usize,
    matched: u64,
    kept: Vec<(FlowRef, FlowValue)>,
    counts: BTreeMap<(u16, u16), Count>,
}

impl<'a> Search<'a> {
    /// A search that has found nothing yet, at second `now` of the program's clock.
    ///
    /// # Errors
    ///
    /// There is no such service or backend.
    pub fn new(names: &'a Names, query: &'a Query, now: u32) -> Result<Self, Refusal> {
        let mut service = None;
        if let Some(name) = &query.service {
            let known = || names.services.values().map(|(name, ..)| name.as_str());
            let found = names.services.iter().find(|(_, (known, ..))| known == name);
            service = Some(*found.ok_or_else(|| no_service(name, known()))?.0);
        }
        let mut backends = None;
        if let Some(address) = query.backend {
            let of_service = |of: u16| service.is_none_or(|service| service == of);
            let all = || names.backends.iter().filter(|&(_, &(of, _))| of_service(of));
            // A service's backend at just this address, else those that have it with a port.
            let exact: BTreeSet<u16> =
                all().filter(|(_, (_, known))| *known == address).map(|(_, (of, _))| *of).collect();
            let is_meant = |of: u16, known: BackendAddress| match exact.contains(&of) {
                true => known == address,
                false => address.covers(known),
            };
            let ids: BTreeSet<u16> =
                all().filter(|(_, (of, known))| is_meant(*of, *known)).map(|(id, _)| *id).collect();
            if ids.is_empty() {
                let known = all().map(|(_, (_, address))| (*address, None));
                return Err(match &query.service {
                    Some(name) => no_backend(name, &address.into(), known),
                    None => {
                        let error = format!("no service has a backend {address}");
                        Refusal::new(RefusalKind::NotFound, error)
                            .hint("'lbctl backend list' shows all")
                    }
                });
            }
            backends = Some(ids);
        }
        let limit = query.limit.unwrap_or(LIMIT).min(MOST);
        let tally = Tally { limit, ..Tally::default() };
        Ok(Self { names, now, wanted: Wanted { query, service, backends }, tally })
    }

    /// Finds all.
    ///
    /// # Errors
    ///
    /// A map can't be read.
    pub fn run(&mut self, source: &dyn Source) -> Result<()> {
        let Self { names, now, wanted, tally } = self;
        wanted.walk(source, &mut |flow, value| {
            if names.is_live(&flow, value, *now) {
                tally.take(flow, value, *now);
            }
            ControlFlow::Continue(())
        })
    }

    /// Visits all as they are met, with their names, until the visitor has seen enough.
    ///
    /// # Errors
    ///
    /// A map can't be read.
    pub fn visit(
        &self,
        source: &dyn Source,
        visit: &mut dyn FnMut(Flow) -> ControlFlow<()>,
    ) -> Result<()> {
        let Self { names, now, .. } = *self;
        self.wanted.walk(source, &mut |flow, value| match names.is_live(&flow, value, now) {
            true => visit(names.flow(&flow, value, now)),
            false => ControlFlow::Continue(()),
        })
    }

    /// The results.
    #[must_use]
    pub fn found(self) -> Found {
        let Self { names, now, mut tally, .. } = self;
        tally.keep_latest();
        let mut flows: Vec<_> =
            tally.kept.iter().map(|(flow, value)| names.flow(flow, *value, now)).collect();
        flows.sort_by(|a, b| {
            let key = |flow: &Flow| (flow.idle_secs, flow.client, flow.port);
            key(a).cmp(&key(b)).then_with(|| a.connection.cmp(&b.connection))
        });
        let backends = tally.counts.into_iter().map(|((service, backend), count)| Count {
            service: names.services.get(&service).map(|(name, ..)| name.clone()),
            backend: names.backends.get(&backend).map(|(_, address)| *address),
            ..count
        });
        let mut backends: Vec<_> = backends.collect();
        backends.sort_by(|a, b| (&a.service, a.backend).cmp(&(&b.service, b.backend)));
        Found { matched: tally.matched, backends, flows }
    }
}

impl Wanted<'_> {
    /// Walks the tables that can have results.
    fn walk(
        &self,
        source: &dyn Source,
        visit: &mut dyn FnMut(FlowRef, FlowValue) -> ControlFlow<()>,
    ) -> Result<()> {
        let wanted = |kind: &Kind| self.query.kind.is_none_or(|wanted| wanted == *kind);
        for kind in [Kind::Pin, Kind::Tracked, Kind::Quic].into_iter().filter(wanted) {
            let mut seen = ControlFlow::Continue(());
            source.walk(kind.table(), &mut |flow, value| {
                if self.wants(&flow, value) {
                    seen = visit(flow, value);
                }
                seen
            })?;
            if seen.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn wants(&self, flow: &FlowRef, value: FlowValue) -> bool {
        let client = |client: super::Prefix| match flow {
            FlowRef::Pin(key) | FlowRef::Tracked(key) => client.contains(entry::ip_of(key.source)),
            FlowRef::Connection(_) => false,
        };
        self.service.is_none_or(|service| flow.service() == service)
            && self.backends.as_ref().is_none_or(|ids| ids.contains(&value.backend))
            && self.query.client.is_none_or(client)
    }
}

impl Tally {
    /// Counts a flow, and keeps it while few are later.
    fn take(&mut self, flow: FlowRef, value: FlowValue, now: u32) {
        self.matched += 1;
        let count = self.counts.entry((flow.service(), value.backend)).or_default();
        *match flow {
            FlowRef::Pin(_) => &mut count.pins,
            FlowRef::Tracked(_) => &mut count.tracked,
            FlowRef::Connection(_) => &mut count.quic,
        } += 1;
        count.closing += u64::from(is_closed(value, now.saturating_sub(value.seen)));
        if self.limit == 0 {
            return;
        }
        self.kept.push((flow, value));
        // Each flow is moved twice on average, whatever the order that they come in.
        if self.kept.len() >= 2 * self.limit {
            self.keep_latest();
        }
    }

    fn keep_latest(&mut self) {
        if self.kept.len() > self.limit {
            self.kept.select_nth_unstable_by_key(self.limit - 1, |(_, value)| {
                std::cmp::Reverse(value.seen)
            });
            self.kept.truncate(self.limit);
        }
    }
}

#[cfg(test)]
mod tests;
