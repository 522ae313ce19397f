//! The names that requests to the listener may have as `Host`, so that DNS rebinding reads nothing.
//!
//! A page of another site can have its own name resolve to an address of this node, loopback included;
//! the browser then takes the dashboard for a part of that site and lets its scripts read it. Such a
//! request can't change its `Host`, which is the name of the site.
//!
//! | request | checked |
//! |---|---|
//! | to a listener that requires a password or token | no: a browser keeps them by name, and has none for the site's |
//! | `/healthz`, `/readyz` | no: they reveal one bit, and probes send anything as their `Host` |
//! | `/metrics`, `/metrics/haproxy` at another address than a loopback one | no: scrapers go by names of DNS that no configuration here knows |
//! | all else | yes |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::http::{Request, StatusCode, Version, header};
use lb_config::http::{Config, Identity, dns_name};

use crate::api::ready::OPEN;

/// Paths of scrapers.
const SCRAPED: [&str; 2] = ["/metrics", "/metrics/haproxy"];

/// The names of a configuration.
#[derive(Debug)]
pub(super) struct Hosts {
    /// In small letters, without a dot at the end.
    names: Vec<String>,
    certificate: Option<Identity>,
    is_checked: bool,
}

/// Why a request is not answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) error: String,
    pub(super) hint: &'static str,
}

/// The host that a request is for.
#[derive(Debug, PartialEq, Eq)]
enum Host {
    /// No site can have it resolve to something else.
    Address,
    Name(String),
}

impl Hosts {
    /// Those of a configuration, on a node that calls itself `node`.
    pub(super) fn new(config: &Config, node: &str) -> Self {
        let mut names = vec!["localhost".to_owned()];
        names.extend(dns_name(node));
        names.extend(config.allowed_hosts.iter().cloned());
        Self { names, certificate: config.tls.clone(), is_checked: !config.asks_who() }
    }

    /// Why a request to the listener at `listener` is not answered, if it is not.
    pub(super) fn refuse<B>(&self, request: &Request<B>, listener: IpAddr) -> Option<Refused> {
        let path = request.uri().path();
        let is_scraped = SCRAPED.contains(&path) && !listener.is_loopback();
        if !self.is_checked || is_scraped || OPEN.contains(&path) {
            return None;
        }
        match host(request) {
            // Browsers don't leave it out.
            Ok(None | Some(Host::Address)) => None,
            Ok(Some(Host::Name(name))) if self.know(&name) => None,
            Ok(Some(Host::Name(name))) => Some(Refused {
                status: StatusCode::MISDIRECTED_REQUEST,
                error: format!("this node does not answer as {name}"),
                hint: "use its address or host name, or add the name to `allowed_hosts` under [http]",
            }),
            Err(error) => Some(Refused {
                status: StatusCode::BAD_REQUEST,
                error: error.into(),
                hint: "send one Host field, with the name or address of this node",
            }),
        }
    }

    fn know(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
            || self.certificate.as_ref().is_some_and(|certificate| certificate.is_for(name))
    }
}

/// The host of a request; none if a request of HTTP/1.0 names none.
fn host<B>(request: &Request<B>) -> Result<Option<Host>, &'static str> {
    // RFC 9112, 3.2.2: the request's target goes before the field.
    if let Some(authority) = request.uri().authority() {
        let host = authority.as_str().rsplit('@').next().and_then(parse);
        return host.map(Some).ok_or("the target of the request has no valid host");
    }
    let mut fields = request.headers().get_all(header::HOST).iter();
    match (fields.next(), fields.next()) {
        // RFC 9112, 3.2.
        (None, _) if request.version() == Version::HTTP_10 => Ok(None),
        (None, _) => Err("a request without Host"),
        (Some(_), Some(_)) => Err("a request with more than one Host"),
        (Some(field), None) => {
            let host = field.to_str().ok().and_then(parse);
            host.map(Some).ok_or("a request whose Host is no host")
        }
    }
}

/// Reads `HOST[:PORT]`.
fn parse(text: &str) -> Option<Host> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']')?;
            // A zone (RFC 6874) names the client's link.
            let address = address.split('%').next()?;
            address.parse::<Ipv6Addr>().ok()?;
            (Host::Address, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some(""))?)
        }
        None => {
            let (host, port) = text.split_once(':').unwrap_or((text, ""));
            let is_address = host.trim_end_matches('.').parse::<Ipv4Addr>().is_ok();
            (if is_address { Host::Address } else { Host::Name(dns_name(host)?) }, port)
        }
    };
    port.bytes().all(|byte| byte.is_ascii_digit()).then_some(host)
}

#[cfg(test)]
mod tests {
    use lb_config::http::{DEFAULT_CONNECTIONS, DEFAULT_STREAMS, Tokens};

    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

    fn config() -> Config {
        Config {
            listen: vec![],
            tls: None,
            users: None,
            tokens: None,
            allowed_hosts: vec!["lb.example.com".into()],
            haproxy_metrics: true,
            dashboard: true,
            connections: DEFAULT_CONNECTIONS,
            streams: DEFAULT_STREAMS,
        }
    }

    fn request(target: &str, hosts: &[&str]) -> Request<()> {
        let request = Request::builder().uri(target);
        let with =
            |request: axum::http::request::Builder, host: &&str| request.header("host", *host);
        hosts.iter().fold(request, with).body(()).expect("a request")
    }

    fn status(config: &Config, request: &Request<()>, listener: IpAddr) -> Option<u16> {
        let refused = Hosts::new(config, "LB1").refuse(request, listener);
        refused.map(|refused| refused.status.as_u16())
    }

    #[test]
    fn addresses_and_names_of_the_node_are_answered_and_no_others() {
        for (host, expected) in [
            ("127.0.0.1", None),
            ("127.0.0.1:9105", None),
            ("203.0.113.9:1", None),
            ("[::1]", None),
            ("[::1]:9105", None),
            ("[fe80::1%25eth0]:9105", None),
            ("localhost", None),
            ("LocalHost:9105", None),
            ("localhost.", None),
            ("localhost.:9105", None),
            ("lb1", None),
            ("Lb1.:9105", None),
            ("lb.example.com", None),
            ("LB.Example.COM.:9105", None),
            ("evil.test", Some(421)),
            ("evil.test:9105", Some(421)),
            ("localhost.evil.test", Some(421)),
            ("lb1.evil.test", Some(421)),
            ("sub.lb.example.com", Some(421)),
            ("127.0.0.1.evil.test", Some(421)),
            ("", Some(400)),
            (":9105", Some(400)),
            ("::1", Some(400)),
            ("[::1", Some(400)),
            ("[::1]evil.test", Some(400)),
            ("[evil.test]", Some(400)),
            ("localhost:evil.test", Some(400)),
            ("evil test", Some(400)),
            ("ann@localhost", Some(400)),
            ("localhost,evil.test", Some(400)),
        ] {
            for path in ["/", "/v1/status", "/metrics", "/nowhere"] {
                assert_eq!(
                    status(&config(), &request(path, &[host]), LOOPBACK),
                    expected,
                    "{host}{path}"
                );
            }
        }
    }

    #[test]
    fn a_request_names_one_host_unless_it_is_of_http_1_0() {
        assert_eq!(status(&config(), &request("/", &[]), LOOPBACK), Some(400));
        let two = request("/", &["localhost", "evil.test"]);
        assert_eq!(status(&config(), &two, LOOPBACK), Some(400));
        let mut old = request("/", &[]);
        *old.version_mut() = Version::HTTP_10;
        assert_eq!(status(&config(), &old, LOOPBACK), None);
        // The target goes before the field.
        let absolute = |target| request(target, &["localhost"]);
        assert_eq!(status(&config(), &absolute("http://evil.test:9105/"), LOOPBACK), Some(421));
        assert_eq!(status(&config(), &absolute("http://ann@evil.test/"), LOOPBACK), Some(421));
        assert_eq!(status(&config(), &absolute("http://lb1/"), LOOPBACK), None);
    }

    #[test]
    fn probes_come_by_any_name_and_scrapers_where_others_reach_the_listener() {
        let status_of =
            |path, listener| status(&config(), &request(path, &["scraped.test:9105"]), listener);
        for listener in [LOOPBACK, ELSEWHERE] {
            assert_eq!(status_of("/healthz", listener), None);
            assert_eq!(status_of("/readyz", listener), None);
            assert_eq!(status_of("/", listener), Some(421));
            assert_eq!(status_of("/v1/status", listener), Some(421));
        }
        for path in SCRAPED {
            assert_eq!(status_of(path, LOOPBACK), Some(421), "{path}");
            assert_eq!(status_of(path, ELSEWHERE), None, "{path}");
        }
    }

    #[test]
    fn a_listener_that_asks_who_one_is_answers_by_any_name() {
        let tokens = Tokens::parse("0123456789abcdef0123456789abcdef\n").ok();
        assert!(tokens.is_some());
        let config = Config { tokens, ..config() };
        assert_eq!(status(&config, &request("/", &["any.test"]), LOOPBACK), None);
    }

    #[test]
    fn names_of_the_certificate_are_answered() {
        let names = ["one.test".to_owned(), "*.many.test".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let tls = Identity::new(certificate.as_bytes(), key.as_bytes()).ok();
        assert!(tls.is_some());
        let config = Config { tls, ..config() };
        for (host, expected) in [
            ("One.test.:9105", None),
            ("a.many.test", None),
            ("many.test", Some(421)),
            ("two.test", Some(421)),
        ] {
            assert_eq!(status(&config, &request("/", &[host]), LOOPBACK), expected, "{host}");
        }
    }
}
