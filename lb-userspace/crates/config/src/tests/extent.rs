//! Services with several VIPs or ports.

use super::*;

fn text(vip: &str, port: &str, more: &str) -> String {
    format!(
        "interfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"{vip}\"\nport = {port}\n\
         protocol = \"tcp\"\nmode = \"dsr\"\n{more}\n"
    )
}

fn router(vrid: u8, address: &str) -> String {
    format!(
        "[[virtual_router]]\nname = \"r{vrid}\"\ninterface = \"eth0\"\nvrid = {vrid}\naddresses = [\"{address}\"]\n"
    )
}

#[test]
fn several_vips_and_ports_are_read_and_shown_as_they_were_written() {
    for (vip, port, key) in [
        ("10.0.0.100", "\"8000-8100\"", "tcp 10.0.0.100:8000-8100"),
        ("198.51.100.0/28", "\"any\"", "tcp 198.51.100.0/28:any"),
        ("2001:db8::/112", "443", "tcp [2001:db8::/112]:443"),
        ("10.0.0.100", "\"80\"", "tcp 10.0.0.100:80"),
    ] {
        let service = parse(&text(vip, port, "")).desired.services.remove("web").unwrap();
        assert_eq!(service.key.to_string(), key);
        let keys = lb_model::keys::service(&service);
        let shown = |key| keys.value(key).unwrap().to_string();
        let port = port.trim_matches('"');
        assert_eq!((shown("vip"), shown("port")), (vip.to_owned(), port.to_owned()));
    }
}

#[test]
fn what_is_no_vip_and_no_port_has_its_place() {
    for (vip, port, expected) in [
        (
            "10.0.0.1/28",
            "80",
            "4:7: service[0].vip: `10.0.0.1` is not the first address of its /28",
        ),
        (
            "10.0.0.100:80",
            "80",
            "4:7: service[0].vip: `10.0.0.100:80` has a port in it; write the address alone",
        ),
        (
            "10.0.0.100",
            "\"8000-\"",
            "5:8: service[0].port: `8000-` is no port; write 80, a range as 8000-8100, or any",
        ),
        (
            "10.0.0.100",
            "true",
            "5:8: service[0].port: a boolean instead of a string; write port = 80, port = \"8000-8100\" or port = \"any\"",
        ),
    ] {
        assert_eq!(mistakes(&text(vip, port, "")), [expected]);
    }
    let checked = text("10.0.0.100", "\"8000-8100\"", "[service.check]\ntype = \"tcp\"");
    assert_eq!(
        mistakes(&checked),
        [
            "5:8: service[0].port: clients connect to ports 8000-8100; say which one shows that a backend serves, as port = 8000 under [service.check] (lbctl: --check-port)"
        ]
    );
    parse(&format!("{checked}port = 8000"));
}

#[test]
fn the_vips_of_a_service_are_those_of_one_router() {
    let service = text("10.0.0.96/28", "80", "");
    let one = parse(&format!("{service}{}", router(51, "10.0.0.100/24")));
    assert_eq!(one.warnings.iter().filter(|doubt| doubt.message.contains("takeover")).count(), 0);
    let none = parse(&format!("{service}{}", router(51, "10.0.0.1/24")));
    assert!(
        none.warnings.iter().any(|doubt| doubt.message
            == "no virtual router has an address of 10.0.0.96/28: no takeover moves it; give one of them to a router"),
        "{:?}",
        none.warnings
    );
    let two = [router(51, "10.0.0.100/24"), router(52, "10.0.0.101/24")].concat();
    let found = mistakes(&format!("{service}{two}"));
    assert!(
        found.len() == 1
            && found[0].contains(
                "10.0.0.101 is a VIP of service web, as are addresses of virtual router r51"
            ),
        "{found:?}"
    );
}
