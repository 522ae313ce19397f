//! The paths of requests. Segments in braces are given by the functions below, or are a route's parameters.

use lb_model::backend_address::BackendRef;

/// The state of everything.
pub const STATUS: &str = "/v1/status";
/// The events.
pub const EVENTS: &str = "/v1/events";
/// Figures per second.
pub const SAMPLES: &str = "/v1/samples";
/// Flows that tables have.
pub const FLOWS: &str = "/v1/flows";
/// The node's wanted state.
pub const NODE: &str = "/v1/node";
/// All services.
pub const SERVICES: &str = "/v1/services";
/// A service; see [`service`].
pub const SERVICE: &str = "/v1/services/{name}";
/// A service's backends.
pub const BACKENDS: &str = "/v1/services/{name}/backends";
/// A backend; see [`backend`].
pub const BACKEND: &str = "/v1/services/{name}/backends/{backend}";
/// The file's changes, to be applied.
pub const RELOAD: &str = "/v1/reload";
/// The configuration in force, as a file.
pub const CONFIG: &str = "/v1/config";
/// The differences of the file and the configuration in force.
pub const CONFIG_DIFF: &str = "/v1/config/diff";
/// The configuration in force, to be written into the file.
pub const CONFIG_SAVE: &str = "/v1/config/save";
/// The virtual routers and the peers.
pub const VRRP: &str = "/v1/vrrp";
/// Virtual routers, to be Active on another node.
pub const FAILOVER: &str = "/v1/vrrp/failover";
/// The peers.
pub const PEERS: &str = "/v1/peers";
/// Explanations of packets.
pub const EXPLAIN: &str = "/v1/explain";
/// Packets as they are decided on.
pub const CAPTURE: &str = "/v1/capture";
/// How much is logged.
pub const LOG: &str = "/v1/log";
/// The end of forwarding.
pub const DETACH: &str = "/v1/detach";

/// The path of a service.
#[must_use]
pub fn service(name: &str) -> String {
    SERVICE.replace("{name}", &encoded(name))
}

/// The path of a service's backend.
#[must_use]
pub fn backend(service: &str, backend: &BackendRef) -> String {
    BACKEND
        .replace("{name}", &encoded(service))
        .replace("{backend}", &encoded(&backend.to_string()))
}

/// A text as a segment of a path or a value of a query: percent-encoded but for RFC 3986's unreserved characters.
#[must_use]
pub fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_in_paths() {
        assert_eq!(encoded("web-1.a_b"), "web-1.a_b");
        assert_eq!(encoded("a/b c?é"), "a%2Fb%20c%3F%C3%A9");
        assert_eq!(service("a/b"), "/v1/services/a%2Fb");
        let path = |at: &str| backend("web", &at.to_owned().into());
        assert_eq!(path("10.0.0.11"), "/v1/services/web/backends/10.0.0.11");
        assert_eq!(path("[fd00::11]:80"), "/v1/services/web/backends/%5Bfd00%3A%3A11%5D%3A80");
    }
}
