//! The daemon's side of the virtual routers: the orders and the external state that it sends, and their reports.
//!
//! They are configured when the daemon starts, and take part when they have its external state: that is when
//! the maps are written for the first time, since a node that can't serve must not hold a VIP. A
//! restart of `lbd` forwards all the while by the maps of its predecessor; then lbd sends the
//! external state at once, computed from these maps, so that addresses that are assigned still are advertised
//! soon again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_api::{
    event::{EventBody, Kind},
    routers::RouterStatus,
};
use lb_model::router::{Router, RouterKey, State};
use lb_plane::DataPlane;
use lb_sync::PeerId;
use lb_vrrp::{ExternalState, Notice, NoticeKind, Order, Report, Transition, Vrrp, macvlan::mac};

use super::{Daemon, peers::PeerGroup};

/// How long a peer is waited for that is to hand over; then it is preempted.
const IN_VAIN: Duration = Duration::from_secs(3);

/// The virtual routers, as the daemon sees them.
pub(super) struct Virtual {
    pub(super) driver: Box<dyn Vrrp>,
    /// As it was reported.
    pub(super) states: BTreeMap<RouterKey, State>,
    /// The same by name.
    reported: BTreeMap<String, (RouterKey, State)>,
    /// How often each virtual MAC address is taken: for a router, and since a predecessor may have had it.
    macs: BTreeMap<[u8; 6], usize>,
    /// Routers whose virtual MAC address is taken since a predecessor may have had it.
    resumed: BTreeMap<String, [u8; 6]>,
    /// The external state that was sent last; none before the first time.
    sent_external: Option<ExternalState>,
    /// The interfaces that forward, as they were looked at last.
    forwarding: BTreeSet<String>,
    /// Whether they have ended.
    pub(super) stopped: bool,
    /// Since when routers wait for a peer to hand over, and those of which that was in vain.
    wanting: BTreeMap<RouterKey, Instant>,
    in_vain: BTreeSet<RouterKey>,
}

impl Virtual {
    pub(super) fn new(driver: Box<dyn Vrrp>) -> Self {
        Self {
            driver,
            states: BTreeMap::new(),
            reported: BTreeMap::new(),
            macs: BTreeMap::new(),
            resumed: BTreeMap::new(),
            sent_external: None,
            forwarding: BTreeSet::new(),
            stopped: false,
            wanting: BTreeMap::new(),
            in_vain: BTreeSet::new(),
        }
    }

    fn gather_states(&mut self) {
        self.states.clear();
        for (key, state) in self.reported.values() {
            let most = self.states.entry(*key).or_default();
            *most = (*most).max(*state);
        }
    }

    /// The address of the node that advertises each router, if one does.
    pub(super) fn advertisers(&self) -> BTreeMap<RouterKey, IpAddr> {
        let status = self.driver.status().into_iter();
        status.filter_map(|status| Some((status.key, status.active?.address))).collect()
    }

    /// A router's state.
    pub(super) fn state(&self, router: RouterKey) -> State {
        self.states.get(&router).copied().unwrap_or_default()
    }

    /// Forgets routers that are not configured any more. Returns the virtual MAC addresses that only they needed.
    fn configure(&mut self, routers: &[Router]) -> Vec<[u8; 6]> {
        let configured = |name: &str| routers.iter().find(|router| router.name == name);
        self.reported.retain(|name, (key, _)| configured(name).is_some_and(|one| one.key == *key));
        self.gather_states();
        let needs = |name: &str, taken: [u8; 6]| {
            configured(name).is_some_and(|one| one.virtual_mac.is_some() && mac(one.key) == taken)
        };
        let gone = self.resumed.extract_if(.., |name, taken| !needs(name, *taken));
        gone.map(|(_, mac)| mac).collect()
    }

    /// The virtual MAC addresses that are not needed any more since the routers that a predecessor took them for have no
    /// addresses any more, or have taken them themselves.
    fn end_resuming(&mut self) -> Vec<[u8; 6]> {
        if self.resumed.is_empty() {
            return Vec::new();
        }
        let ended = self.driver.status().into_iter().filter(|status| match status.state {
            State::Initialize => false,
            // It listens, and another router has advertised, or not yet.
            State::Backup => status.active.is_some(),
            State::Active | State::Fault => true,
        });
        ended.filter_map(|status| self.resumed.remove(&status.name)).collect()
    }

    /// A virtual MAC address is needed, or no more; whether that changes which frames are taken.
    fn count_mac(&mut self, mac: [u8; 6], take: bool) -> bool {
        let count = self.macs.entry(mac).or_default();
        let before = *count;
        *count = if take { before + 1 } else { before.saturating_sub(1) };
        (before == 0) != (*count == 0)
    }

    /// Sends the external state to the routers, if it has changed.
    fn send_external(&mut self, external: ExternalState) {
        if self.sent_external.as_ref() != Some(&external) {
            self.driver.order(Order::ExternalState(external.clone()));
            self.sent_external = Some(external);
        }
    }

    /// Of the routers that peers are Active for, those which would be handed over. A peer that does not hand over is
    /// preempted.
    fn handed_over(&self, theirs: &BTreeSet<RouterKey>) -> BTreeSet<RouterKey> {
        theirs.difference(&self.in_vain).copied().collect()
    }

    /// Looks which routers have waited for a peer to hand over, and for how long. Peers are Active for `theirs`.
    fn look_at_wanting(&mut self, theirs: &BTreeSet<RouterKey>, now: Instant) {
        self.in_vain.retain(|key| theirs.contains(key));
        let wants = self.driver.status().into_iter().filter(|status| status.wants);
        let wants: BTreeSet<RouterKey> = wants.map(|status| status.key).collect();
        self.wanting.retain(|key, _| wants.contains(key));
        for key in wants {
            if now.saturating_duration_since(*self.wanting.entry(key).or_insert(now)) >= IN_VAIN {
                self.in_vain.insert(key);
            }
        }
    }

    /// A router has changed its state.
    fn follow(&mut self, Transition { router, key, to, .. }: &Transition) {
        self.reported.insert(router.clone(), (*key, *to));
        self.gather_states();
    }
}

/// The event of a transition of a router that has these addresses.
fn event_of_transition(transition: Transition, addresses: &str) -> EventBody {
    let Transition { router, from, to, cause, .. } = transition;
    let (kind, message) = match to {
        State::Active => {
            (Kind::VrrpActive, format!("{router} is active: this node holds {addresses}"))
        }
        State::Backup => (Kind::VrrpBackup, format!("{router} is backup")),
        State::Fault => {
            (Kind::VrrpFault, format!("{router} is in fault: this node can't hold {addresses}"))
        }
        State::Initialize => (Kind::VrrpEnded, format!("{router} has ended")),
    };
    let message = match from {
        State::Active => format!("{message}, and was active"),
        _ => message,
    };
    EventBody::new(kind, message, cause)
}

/// The event of a notice of the virtual routers.
fn event_of_notice(notice: Notice) -> EventBody {
    let kind = match notice.kind {
        NoticeKind::TwoActive => Kind::VrrpTwoActive,
        NoticeKind::Mismatch => Kind::VrrpMismatch,
        NoticeKind::AddressElsewhere => Kind::VrrpAddressElsewhere,
        NoticeKind::Leftover => Kind::VrrpLeftover,
        NoticeKind::Trouble => Kind::VrrpTrouble,
        NoticeKind::Track => Kind::VrrpTrack,
        NoticeKind::Stalled => Kind::VrrpStalled,
    };
    let message = match notice.router.as_str() {
        "" => notice.message,
        router => format!("{router}: {}", notice.message),
    };
    EventBody::new(kind, message, notice.cause)
}

impl<D: DataPlane> Daemon<D> {
    /// The routers as they are configured.
    pub(super) fn routers(&self) -> &[Router] {
        &self.store.config().routers.routers
    }

    pub(super) fn router(&self, key: RouterKey) -> Option<&Router> {
        self.routers().iter().find(|router| router.key == key)
    }

    /// A router's name, for people.
    pub(super) fn router_name(&self, key: RouterKey) -> String {
        self.router(key).map_or_else(|| key.to_string(), |router| router.name.clone())
    }

    /// Sends the configured routers to the driver.
    pub(super) fn configure_routers(&mut self) {
        for mac in self.vrrp.configure(&self.store.config().routers.routers) {
            self.take_mac(mac, false);
        }
        self.resume_stray_pinning();
        // lbd did not look while there was no router: the first would be in fault until the next tick.
        self.look_at_interfaces();
        self.update_routers();
        self.vrrp.driver.order(Order::Configure(self.store.config().routers.clone()));
    }

    /// Sends the external state computed from the maps of a predecessor, if they serve all that routers
    /// hold: the addresses may be here still.
    pub(super) fn resume_routers(&mut self) {
        if self.routers().is_empty() {
            return;
        }
        let Ok(status) = self.engine.status() else { return };
        let healthy = status.services.iter().map(|(name, service)| {
            let serving = service.backends.values().filter(|backend| backend.slots > 0).count();
            (name.clone(), u32::try_from(serving).unwrap_or(u32::MAX))
        });
        let healthy: BTreeMap<String, u32> = healthy.collect();
        if healthy.is_empty() || healthy.values().any(|serving| *serving == 0) {
            return;
        }
        self.look_at_interfaces();
        let external = ExternalState { healthy, ..self.external_state() };
        self.vrrp.send_external(external);
        // The first write of the maps would take the virtual MAC addresses out that are in use still.
        let needed = self.routers().iter().filter(|router| router.virtual_mac.is_some());
        let needed: Vec<_> = needed.map(|router| (router.name.clone(), mac(router.key))).collect();
        for (name, mac) in needed {
            self.take_mac(mac, true);
            self.vrrp.resumed.insert(name, mac);
        }
    }

    /// Looks which routers have addresses no more that a predecessor had, or have themselves reported
    /// their needs.
    pub(super) fn end_resuming(&mut self) {
        for mac in self.vrrp.end_resuming() {
            self.take_mac(mac, false);
        }
    }

    /// Has frames to a virtual MAC address taken, or no more when no router needs it.
    fn take_mac(&mut self, mac: [u8; 6], take: bool) {
        if !self.vrrp.count_mac(mac, take) {
            return;
        }
        if let Err(error) = self.engine.set_virtual_mac(mac, take) {
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            let message = format!("frames to {mac} can't be taken");
            self.record_event(EventBody::new(Kind::VrrpTrouble, message, format!("{error:#}")));
        }
    }

    /// Looks which interfaces forward.
    pub(super) fn look_at_interfaces(&mut self) {
        if self.routers().is_empty() {
            return;
        }
        let interfaces = self.engine.data_plane().interfaces().into_iter();
        let forwarding = interfaces.filter(|interface| interface.attached);
        self.vrrp.forwarding = forwarding.map(|interface| interface.name).collect();
    }

    /// The external state that the virtual routers depend on.
    fn external_state(&self) -> ExternalState {
        let standings = self.engine.standings();
        let healthy = self.store.desired().services.iter().map(|(name, service)| {
            let serving = standings.get(&service.key).map_or(0, |standing| standing.serving);
            (name.clone(), u32::from(serving))
        });
        let is_served = |key| standings.get(key).is_some_and(|standing| standing.serving > 0);
        let addresses = self.routers().iter().flat_map(|router| &router.addresses);
        let addresses: BTreeSet<IpAddr> = addresses.map(|vip| vip.address).collect();
        let served =
            self.store.desired().services.iter().filter(|(_, service)| is_served(&service.key));
        let served = served.flat_map(|(name, service)| {
            let vips = service.key.vips();
            addresses.range(vips.first()..=vips.last()).map(|vip| (*vip, name.clone()))
        });
        // Before the peers' state is read: a later transition is not part of it.
        let status = self.vrrp.driver.status();
        let transitions = status.iter().map(|s| (s.name.clone(), s.counters.transitions));
        let transitions = transitions.filter(|_| self.group.is_some()).collect();
        let theirs = self.group.as_ref().map(PeerGroup::active_for).unwrap_or_default();
        ExternalState {
            transitions,
            forwarding: self.vrrp.forwarding.clone(),
            healthy: healthy.collect(),
            served: served.collect(),
            // A peer that is requested to take over would do so by itself, and not when it has all flows.
            draining: self.store.node().draining_since.is_some() && !self.handovers.is_under_way(),
            unsynced: self.unsynced(&status),
            handed_over: self.vrrp.handed_over(&theirs),
            draining_peers: self.group.as_ref().map(PeerGroup::draining_for).unwrap_or_default(),
            lowered_peers: self.group.as_ref().map(PeerGroup::lowered_for).unwrap_or_default(),
            mismatched: self.group.as_ref().map(PeerGroup::mismatched).unwrap_or_default(),
            active: self.group.as_ref().map(PeerGroup::active_peers).unwrap_or_default(),
        }
    }

    /// Sends the routers' external state, if it has changed.
    pub(super) fn update_routers(&mut self) {
        // Before the maps are written, the state that was computed from the predecessor's maps holds.
        if self.writing.has_succeeded() {
            let external = self.external_state();
            self.vrrp.send_external(external);
        }
    }

    /// Looks which routers have waited for a peer to hand over, and for how long.
    pub(super) fn look_at_wanting(&mut self, now: Instant) {
        let theirs = self.group.as_ref().map(PeerGroup::active_for).unwrap_or_default();
        self.vrrp.look_at_wanting(&theirs, now);
    }

    /// Takes a report of the virtual routers.
    pub(super) fn on_router_report(&mut self, report: Report) {
        match report {
            Report::TakeMac { mac, take, done } => {
                self.take_mac(mac, take);
                // It goes on without an answer, after a while.
                let _ = done.0.try_send(());
            }
            Report::Transition(transition) => self.follow(transition),
            Report::Notice(notice) => self.record_event(event_of_notice(notice)),
            Report::Yielded { router, by } => self.yielded(router, by),
            Report::Stopped => self.vrrp.stopped = true,
        }
    }

    fn follow(&mut self, transition: Transition) {
        self.vrrp.follow(&transition);
        let (key, to) = (transition.key, transition.to);
        let addresses = self.router(key).map_or_else(String::new, |router| {
            let all: Vec<_> = router.addresses.iter().map(|vip| vip.address.to_string()).collect();
            all.join(", ")
        });
        self.record_event(event_of_transition(transition, &addresses));
        self.moved(key, to);
        self.effects.notifier.status(&self.ready_line());
    }

    pub(super) fn record_event(&self, event: EventBody) {
        self.effects.events.record(event);
    }

    /// The state of the routers, with the problems that peers have reported.
    pub(super) fn status_of_routers(&self) -> Vec<RouterStatus> {
        let mut all = self.vrrp.driver.status();
        for status in &mut all {
            let found = self.problems_of(status.key);
            status.problems.extend(found);
        }
        all
    }

    /// The routers as a short text: `main active, main6 backup`.
    pub(super) fn routers_line(&self) -> Option<String> {
        let states = self
            .routers()
            .iter()
            .map(|router| format!("{} {}", router.name, self.vrrp.state(router.key)));
        let states: Vec<String> = states.collect();
        (!states.is_empty()).then(|| states.join(", "))
    }

    /// Routers that would take over without the flows of the Active node.
    fn unsynced(&self, all: &[RouterStatus]) -> BTreeSet<RouterKey> {
        let Some(group) = &self.group else { return BTreeSet::new() };
        let advertiser = |key| {
            let status = all.iter().find(|status| status.key == key)?;
            Some(status.active.as_ref()?.address)
        };
        let keys = self.routers().iter().map(|router| router.key);
        // The flows that an Active router knows now are not those that it will need.
        let others = keys.filter(|key| self.vrrp.state(*key) != State::Active);
        // A node that did not run for a while finds a backlog of reports: in the middle of it, that
        // all flows are known, and at the end that the peer has closed the session long since.
        let unsynced = others.filter(|key| {
            group.has_backlog
                || group.is_unsynced(*key, &self.services_of([*key]), advertiser(*key))
        });
        unsynced.collect()
    }

    /// The problems of a router that peers have reported.
    fn problems_of(&self, key: RouterKey) -> Vec<String> {
        let Some(group) = &self.group else { return Vec::new() };
        let mismatch = |(id, text): (PeerId, String)| format!("{}: {text}", group.name(id));
        group.problems_of(key).into_iter().map(mismatch).collect()
    }
}

/// The texts of the changes of virtual routers by a new configuration.
pub(super) fn changes(
    before: &lb_model::router::Routers,
    after: &lb_model::router::Routers,
) -> Vec<String> {
    let named = |routers: &lb_model::router::Routers, name: &str| {
        routers.routers.iter().find(|router| router.name == name).cloned()
    };
    let mut all = Vec::new();
    for old in &before.routers {
        match named(after, &old.name) {
            None => all.push(format!("virtual router {} removed", old.name)),
            Some(new) if new != *old => {
                let keys = differing(old, &new);
                all.push(format!("virtual router {}: {} changed", old.name, keys.join(", ")));
            }
            Some(_) => {}
        }
    }
    let added = after.routers.iter().filter(|new| named(before, &new.name).is_none());
    all.extend(added.map(|new| format!("virtual router {} added", new.name)));
    for group in &before.groups {
        if !after.groups.iter().any(|new| new.name == group.name) {
            all.push(format!("sync group {} removed", group.name));
        }
    }
    for group in &after.groups {
        match before.groups.iter().find(|old| old.name == group.name) {
            None => all.push(format!("sync group {} added", group.name)),
            Some(old) if old != group => {
                all.push(format!("sync group {}: routers changed", group.name));
            }
            Some(_) => {}
        }
    }
    all
}

/// The keys of the configuration in which two routers differ.
fn differing(old: &Router, new: &Router) -> Vec<&'static str> {
    let keys = [
        ("interface", old.interface != new.interface),
        ("family", old.key.family != new.key.family),
        ("vrid", old.key.vrid != new.key.vrid),
        ("version", old.version != new.version),
        ("priority", old.priority != new.priority),
        ("interval", old.interval != new.interval),
        ("preempt", old.preempt != new.preempt),
        ("preempt_delay", old.preempt_delay != new.preempt_delay),
        ("accept", old.accept != new.accept),
        ("addresses", old.addresses != new.addresses),
        ("source", old.source != new.source),
        ("peers", old.peers != new.peers),
        ("min_ttl", old.min_ttl != new.min_ttl),
        ("second_path", old.second_path != new.second_path),
        ("password or hmac_key", old.auth != new.auth),
        ("checksum", old.checksum != new.checksum),
        ("virtual_mac", old.virtual_mac != new.virtual_mac),
        ("announce", old.announce != new.announce),
        ("track", old.tracks != new.tracks),
        ("notify", old.notify != new.notify),
    ];
    keys.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
}

#[cfg(test)]
mod tests {
    use lb_config::Config;

    use super::*;

    const TWO: &str = r#"
        interfaces = ["eth0"]
        [[virtual_router]]
        name = "main"
        interface = "eth0"
        vrid = 51
        addresses = ["10.0.0.100"]
        [[virtual_router]]
        name = "main6"
        interface = "eth0"
        vrid = 51
        addresses = ["fd00::100"]
        [[sync_group]]
        name = "all"
        routers = ["main", "main6"]
    "#;

    #[test]
    fn changes_of_routers_are_told_by_their_keys() {
        let routers = |text: &str| Config::parse(text).expect("it is valid").routers;
        let before = routers(TWO);
        for (from, to, expected) in [
            ("", "", vec![]),
            ("\"fd00::100\"", "\"fd00::101\"", vec!["virtual router main6: addresses changed"]),
            (
                "vrid = 51\n        addresses = [\"10.0.0.100\"]",
                "vrid = 52\n        priority = 7\n        addresses = [\"10.0.0.100\"]",
                vec!["virtual router main: vrid, priority changed"],
            ),
            (
                "main6",
                "other",
                vec![
                    "virtual router main6 removed",
                    "virtual router other added",
                    "sync group all: routers changed",
                ],
            ),
            ("\"all\"", "\"both\"", vec!["sync group all removed", "sync group both added"]),
        ] {
            assert_eq!(changes(&before, &routers(&TWO.replace(from, to))), expected, "{to}");
        }
    }
}
