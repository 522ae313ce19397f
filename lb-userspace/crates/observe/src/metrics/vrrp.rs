//! The virtual routers: the holders of the addresses, and the advertisements received from others.

use std::{fmt, time::UNIX_EPOCH};

use lb_api::{
    routers::{Counters, RouterStatus},
    status::Status,
};
use lb_model::router::{Family as Ip, State};

use super::page::{Family, Page, truth};

pub(super) fn write(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let routers = &status.vrrp;
    let all = |value: fn(&RouterStatus) -> f64| {
        routers.iter().map(move |router| ([("router", router.name.as_str())], value(router)))
    };
    let vrids: Vec<String> = routers.iter().map(|router| router.key.vrid.to_string()).collect();
    page.infos(
        Family::new("lb_vrrp_router", "A virtual router of this node"),
        routers.iter().zip(&vrids).map(|(router, vrid)| {
            let family = match router.key.family {
                Ip::V4 => "ipv4",
                Ip::V6 => "ipv6",
            };
            [
                ("router", router.name.as_str()),
                ("interface", &router.interface),
                ("family", family),
                ("vrid", vrid),
            ]
        }),
    )?;
    page.gauges(
        Family::new(
            "lb_vrrp_state",
            "The state of a virtual router: 1 for the one that it is in, 0 for the others",
        ),
        routers.iter().flat_map(|router| {
            State::ALL.map(|state| {
                (
                    [("router", router.name.as_str()), ("state", state.name())],
                    truth(state == router.state),
                )
            })
        }),
    )?;
    page.gauges(
        Family::seconds(
            "lb_vrrp_since_timestamp",
            "When the state of a virtual router changed last",
        ),
        all(|router| {
            router.since.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
        }),
    )?;
    page.gauges(
        Family::new("lb_vrrp_priority", "The priority of a virtual router, with what it tracks"),
        all(|router| router.priority.into()),
    )?;
    page.gauges(
        Family::new(
            "lb_vrrp_base_priority",
            "The priority of a virtual router as it is configured",
        ),
        all(|router| router.base_priority.into()),
    )?;
    page.gauges(
        Family::new(
            "lb_vrrp_holds_back",
            "Whether a virtual router does not preempt one of lower priority; lbctl vrrp status has the reason",
        ),
        all(|router| router.holds_back.is_some().into()),
    )?;
    page.gauges(
        Family::seconds("lb_vrrp_interval", "Time between two advertisements"),
        all(|router| router.interval_millis as f64 / 1e3),
    )?;
    page.gauges(
        Family::new(
            "lb_vrrp_problems",
            "Problems of a virtual router: faults, and failed track conditions",
        ),
        all(|router| router.problems.len() as f64),
    )?;
    counters(page, routers)
}

fn counters(page: &mut Page<'_>, routers: &[RouterStatus]) -> fmt::Result {
    let all = |value: fn(&Counters) -> u64| {
        routers
            .iter()
            .map(move |router| ([("router", router.name.as_str())], value(&router.counters)))
    };
    page.counters(
        Family::new("lb_vrrp_transitions", "Changes of a virtual router's state"),
        all(|counters| counters.transitions),
    )?;
    page.counters(
        Family::new(
            "lb_vrrp_became_active",
            "Times that a virtual router became Active on this node",
        ),
        all(|counters| counters.became_active),
    )?;
    page.counters(
        Family::new("lb_vrrp_advertisements_sent", "Advertisements sent"),
        all(|counters| counters.sent),
    )?;
    page.counters(
        Family::new("lb_vrrp_advertisements_received", "Advertisements accepted"),
        all(|counters| counters.received),
    )?;
    page.counters(
        Family::new(
            "lb_vrrp_priority_zero_sent",
            "Advertisements of priority 0 sent: this node yields",
        ),
        all(|counters| counters.priority_zero_sent),
    )?;
    page.counters(
        Family::new(
            "lb_vrrp_priority_zero_received",
            "Advertisements of priority 0 accepted: another node yields",
        ),
        all(|counters| counters.priority_zero_received),
    )?;
    page.counters(
        Family::new(
            "lb_vrrp_two_active",
            "Advertisements of another Active node while this one was Active as well",
        ),
        all(|counters| counters.two_active),
    )?;
    page.counters(
        Family::new(
            "lb_vrrp_mismatches",
            "Advertisements whose interval or addresses are not this node's",
        ),
        all(|counters| counters.mismatches),
    )?;
    page.counters(
        Family::new(
            "lb_vrrp_announcements",
            "Gratuitous ARP requests and unsolicited neighbour advertisements sent",
        ),
        all(|counters| counters.announcements),
    )?;
    page.counters(
        Family::new("lb_vrrp_rejected_advertisements", "Advertisements rejected, by reason"),
        routers.iter().flat_map(|router| {
            let counters = router.counters;
            [
                ("ttl", counters.ttl_errors),
                ("checksum", counters.checksum_errors),
                ("malformed", counters.malformed),
                ("version", counters.version_errors),
                ("authentication", counters.auth_errors),
                ("foreign", counters.foreign),
            ]
            .map(|(reason, count)| ([("router", router.name.as_str()), ("reason", reason)], count))
        }),
    )
}
