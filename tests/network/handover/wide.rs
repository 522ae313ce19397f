//! Services with several ports or VIPs, in the maps: found through changes of others, and by the next start.

use std::net::IpAddr;

use lb_common::abi::{Service, ServiceKeyV4, ServiceKeyV6, VipKey, proto, service_flags};
use lb_datapath::Xdp;
use lb_inspect::explain::View as _;
use lb_model::{
    desired::{Protocol, ServiceKey},
    entry,
};
use lb_plane::Maps as _;
use zerocopy::FromZeros as _;

use super::{migration::LARGER, testbed::Testbed};

fn key(vips: &str, ports: &str) -> ServiceKey {
    ServiceKey::of(vips.parse().unwrap(), ports.parse().unwrap(), Protocol::Tcp)
}

fn put(xdp: &mut Xdp, id: u16, vips: &str, ports: &str) {
    let key = key(vips, ports);
    let flags = if key.extent.is_one() { 0 } else { service_flags::WIDE };
    let value = Service { id, flags, slots: 7, ..Service::new_zeroed() };
    xdp.put_service(&key, &value).unwrap();
}

/// The id of the service that a TCP packet for this address and port is for.
fn found(xdp: &Xdp, address: &str, port: u16) -> Option<u16> {
    let (port, proto, reserved) = (port.into(), proto::TCP, 0);
    let found = match address.parse().unwrap() {
        IpAddr::V4(address) => {
            let address = address.octets();
            xdp.service_v4(&ServiceKeyV4 { address, port, proto, reserved })
        }
        IpAddr::V6(address) => {
            let address = address.octets();
            xdp.service_v6(&ServiceKeyV6 { address, port, proto, reserved })
        }
    };
    found.unwrap().map(|service| service.id)
}

fn is_vip(xdp: &Xdp, address: &str) -> bool {
    xdp.is_vip(&VipKey { address: entry::address(address.parse().unwrap()) }).unwrap()
}

#[test]
fn the_most_specific_service_is_found_through_changes_and_restarts() {
    let Some(mut testbed) = Testbed::new() else { return };
    let mut xdp = testbed.open();
    put(&mut xdp, 1, "198.51.100.0/28", "any");
    put(&mut xdp, 2, "198.51.100.3", "8000-8100");
    put(&mut xdp, 3, "198.51.100.3", "80");
    put(&mut xdp, 4, "2001:db8::/112", "443");
    let of_all = |xdp: &Xdp| {
        let v4 = [79, 80, 8_000, 8_050, 8_101].map(|port| found(xdp, "198.51.100.3", port));
        assert_eq!(v4, [Some(1), Some(3), Some(2), Some(2), Some(1)]);
        assert_eq!(found(xdp, "198.51.100.15", 8_050), Some(1));
        assert_eq!(found(xdp, "198.51.100.16", 8_050), None);
        assert_eq!(found(xdp, "2001:db8::ffff", 443), Some(4));
        assert_eq!(found(xdp, "2001:db8::1:0", 443), None);
        assert_eq!(found(xdp, "2001:db8::1", 444), None);
        assert!(is_vip(xdp, "198.51.100.15") && !is_vip(xdp, "198.51.100.16"));
    };
    of_all(&xdp);
    assert_eq!(xdp.services().unwrap().len(), 4);

    // A narrower one comes and goes.
    put(&mut xdp, 5, "198.51.100.3", "8040-8060");
    let ids = [8_039, 8_040, 8_060, 8_061].map(|port| found(&xdp, "198.51.100.3", port));
    assert_eq!(ids, [Some(2), Some(5), Some(5), Some(2)]);
    xdp.delete_service(&key("198.51.100.3", "8040-8060")).unwrap();
    of_all(&xdp);

    // The next start, and one with larger maps, find them.
    for limits in [testbed.settings.limits, LARGER] {
        drop(xdp);
        testbed.settings.limits = limits;
        xdp = testbed.open();
        of_all(&xdp);
        assert_eq!(xdp.services().unwrap().len(), 4);
    }

    // Without the one host's range, its ports are the prefix's.
    xdp.delete_service(&key("198.51.100.3", "8000-8100")).unwrap();
    assert_eq!(found(&xdp, "198.51.100.3", 8_050), Some(1));
    xdp.delete_service(&key("198.51.100.0/28", "any")).unwrap();
    xdp.delete_service(&key("2001:db8::/112", "443")).unwrap();
    let ids = [80, 8_050].map(|port| found(&xdp, "198.51.100.3", port));
    assert_eq!(ids, [Some(3), None]);
    assert!(!is_vip(&xdp, "198.51.100.15") && !is_vip(&xdp, "2001:db8::ffff"));
    assert_eq!(
        xdp.services().unwrap().keys().copied().collect::<Vec<_>>(),
        [key("198.51.100.3", "80")]
    );
}

#[test]
fn a_service_that_the_tries_have_no_room_for_is_refused() {
    let Some(mut testbed) = Testbed::new() else { return };
    // Room for two services.
    testbed.settings.limits.services = 2;
    let mut xdp = testbed.open();
    put(&mut xdp, 0, "198.51.100.1", "1-65534");
    put(&mut xdp, 1, "198.51.100.0/28", "1-65534");
    let range = key("198.51.100.2", "1-65534");
    let value = Service { id: 1, flags: service_flags::WIDE, ..Service::new_zeroed() };
    let error = xdp.put_service(&range, &value).unwrap_err();
    assert!(format!("{error:#}").contains("raise its limit under [limits]"), "{error:#}");
    assert_eq!(found(&xdp, "198.51.100.1", 8_050), Some(0));
    assert_eq!(found(&xdp, "198.51.100.2", 8_050), Some(1));
}
