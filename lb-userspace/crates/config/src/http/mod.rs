//! The `[http]` table of a configuration.

pub mod credentials;
pub mod identity;

use std::net::{IpAddr, SocketAddr};

use rustls::pki_types::DnsName;

pub use self::{
    credentials::{Tokens, Users},
    identity::{Identity, WrongIdentity},
};
use super::{
    secret,
    tree::{About, Field, Problems, Table},
};

const LISTEN: &str = "listen = [\"127.0.0.1:9105\"]";
const HOSTS: &str = "allowed_hosts = [\"lb.example.com\"]";
const TLS: &str = "tls = { certificate = \"/etc/lb/http.crt\", key = \"/etc/lb/http.key\" }";
const USERS: &str = "basic_auth_file = \"/etc/lb/http.users\"";
const TOKENS: &str = "bearer_token_file = \"/etc/lb/http.token\"";

/// The default limit of connections at one moment.
pub const DEFAULT_CONNECTIONS: u32 = 256;
/// The default limit of streams at one moment.
pub const DEFAULT_STREAMS: u32 = 32;

/// The listener, and its credentials.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The addresses and ports.
    pub listen: Vec<SocketAddr>,
    /// The TLS certificate and key; none: no TLS.
    pub tls: Option<Identity>,
    /// The users with a password.
    pub users: Option<Users>,
    /// The tokens.
    pub tokens: Option<Tokens>,
    /// Names that requests to the listener may have besides the node's own, as [`dns_name`] writes them.
    pub allowed_hosts: Vec<String>,
    /// Whether metrics are exported by HAProxy's names as well.
    pub haproxy_metrics: bool,
    /// Whether the dashboard is there.
    pub dashboard: bool,
    /// How many connections there may be at one moment.
    pub connections: u32,
    /// How many of them may be streams that go on for ever.
    pub streams: u32,
}

impl Config {
    /// Whether clients need credentials.
    #[must_use]
    pub const fn asks_who(&self) -> bool {
        self.users.is_some() || self.tokens.is_some()
    }
}

/// A name of DNS as names are compared: in small letters, without a dot at the end; none if it can't be one.
#[must_use]
pub fn dns_name(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    DnsName::try_from(text.as_str()).is_ok().then_some(text)
}

/// The content of `[http]`.
#[derive(Default)]
pub(super) struct Http {
    /// Where it listens.
    pub(super) listen: Vec<SocketAddr>,
    /// None if there is no such table, or a file that it names can't be used.
    pub(super) config: Option<Config>,
}

/// Reads `[http]`.
pub(super) fn read_http(root: &Table<'_>, doubts: &Problems<'_>) -> Http {
    let table = root.optional("http").and_then(|field| field.table("http"));
    table.map(|table| read_table(table, doubts)).unwrap_or_default()
}

fn read_table(table: Table<'_>, doubts: &Problems<'_>) -> Http {
    let listen = read_listen(&table);
    let tls_field = table.optional("tls");
    let has_tls = tls_field.is_some();
    let tls = tls_field.and_then(|field| read_tls(field, doubts));
    let users_field = table.optional("basic_auth_file");
    let tokens_field = table.optional("bearer_token_file");
    let has_auth = users_field.is_some() || tokens_field.is_some();
    let make_users = |path: &str| format!("make it with 'htpasswd -cB {path} NAME'");
    let users = users_field
        .as_ref()
        .map(|field| read_lines(field, USERS, doubts, make_users, Users::parse));
    let make_token = |path: &str| {
        format!("make it with '(umask 027; openssl rand -hex 32 > {path}; chgrp lb {path})'")
    };
    let tokens = tokens_field
        .as_ref()
        .map(|field| read_lines(field, TOKENS, doubts, make_token, Tokens::parse));
    let allowed = table.optional("allow_unprotected").and_then(|field| field.flag());
    for (field, address) in &listen {
        if address.ip().is_loopback() || allowed == Some(true) {
            continue;
        }
        match (has_tls, has_auth) {
            (false, false) => field.refuse(format!(
                "{address} is no loopback address, and anybody who reaches it could look: add \
                 {TOKENS} and {TLS}, listen at 127.0.0.1, or set allow_unprotected = true"
            )),
            (true, false) => doubts.push_at(
                field,
                format!("anybody who reaches {address} can look; add {TOKENS}, or {USERS}"),
            ),
            (false, true) => doubts.push_at(
                field,
                format!("passwords and tokens travel to {address} in the clear; add {TLS}"),
            ),
            (true, true) => {}
        }
    }
    let allowed_hosts = read_hosts(&table);
    let haproxy_metrics = table.optional("haproxy_metrics").and_then(|field| field.flag());
    let dashboard = table.optional("dashboard").and_then(|field| field.flag());
    let connections_field = table.optional("connections");
    let connections = connections_field.and_then(|field| field.integer(8..65_537));
    let connections = connections.unwrap_or(DEFAULT_CONNECTIONS);
    let streams_field = table.optional("streams");
    let streams = streams_field.as_ref().and_then(|field| field.integer(0..65_537));
    let streams: u32 = streams.unwrap_or(DEFAULT_STREAMS.min(connections / 2));
    if let Some(field) = &streams_field
        && streams > connections / 2
    {
        let most = connections / 2;
        field.refuse(format!(
            "{streams} streams of {connections} connections leave too few for the rest; up to {most} are possible"
        ));
    }
    table.finish();
    let listen: Vec<SocketAddr> = listen.into_iter().map(|(_, address)| address).collect();
    let (users, tokens) = (users.flatten(), tokens.flatten());
    // Without a file that protects it, it is not to be there at all.
    let lacks = has_tls != tls.is_some()
        || users_field.is_some() != users.is_some()
        || tokens_field.is_some() != tokens.is_some();
    let config = (!lacks).then(|| Config {
        listen: listen.clone(),
        tls,
        users,
        tokens,
        allowed_hosts,
        haproxy_metrics: haproxy_metrics.unwrap_or(false),
        dashboard: dashboard.unwrap_or(true),
        connections,
        streams,
    });
    Http { listen, config }
}

fn read_listen<'a>(table: &Table<'a>) -> Vec<(Field<'a>, SocketAddr)> {
    let mut listen: Vec<(Field<'a>, SocketAddr)> = Vec::new();
    let Some(field) = table.required("listen", LISTEN) else { return listen };
    let items = field.strings(LISTEN).unwrap_or_default();
    if items.is_empty() {
        field.refuse(format!("no address; write {LISTEN}, or leave [http] out"));
    }
    for item in items {
        let Some(address) = item.parsed(LISTEN, address) else { continue };
        if listen.iter().any(|(_, known)| *known == address) {
            item.refuse(format!("{address} is named twice; once is enough"));
        }
        listen.push((item, address));
    }
    listen
}

fn read_hosts(table: &Table<'_>) -> Vec<String> {
    let items = table.optional("allowed_hosts").and_then(|field| field.strings(HOSTS));
    let one = |item: Field<'_>| {
        item.parsed(HOSTS, |text| {
            dns_name(text).ok_or_else(|| {
                format!("`{text}` is no name of a host; write it without scheme, port and wildcards, as \"lb.example.com\"")
            })
        })
    };
    items.unwrap_or_default().into_iter().filter_map(one).collect()
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => format!("`{text}` has no port; write \"{ip}:9105\""),
        Ok(IpAddr::V6(ip)) => format!("`{text}` has no port; write \"[{ip}]:9105\""),
        Err(_) => format!("`{text}` is no address with a port; write one as \"127.0.0.1:9105\""),
    })?;
    if address.port() == 0 {
        return Err(format!("`{text}` has port 0; a number from 1 to 65535 is expected"));
    }
    if address.ip().is_multicast() {
        return Err(format!("`{text}` is no address of a node; write one as \"127.0.0.1:9105\""));
    }
    Ok(address)
}

fn read_tls(field: Field<'_>, doubts: &Problems<'_>) -> Option<Identity> {
    if !field.is_table() {
        field.refuse(format!("a table is expected; write {TLS}"));
        return None;
    }
    let table = field.table("http.tls")?;
    let certificate_field = table.required("certificate", "certificate = \"/etc/lb/http.crt\"");
    let key_field = table.required("key", "key = \"/etc/lb/http.key\"");
    table.finish();
    let (certificate_field, key_field) = (certificate_field?, key_field?);
    let from =
        |_: &str| "it has the certificate and those that lead to its authority, in PEM".into();
    let example = "certificate = \"/etc/lb/http.crt\"";
    let certificate = secret::read_public(&certificate_field, example, from);
    let from = |_: &str| "it has the key of the certificate, in PEM".into();
    let key = secret::read_as(&key_field, "key = \"/etc/lb/http.key\"", doubts, from);
    let (certificate, key) = (certificate?, key?);
    match Identity::new(&certificate, &key) {
        Ok(identity) => Some(identity),
        Err(WrongIdentity::Certificate(why)) => {
            certificate_field.refuse_file(About::ListenerFile, why);
            None
        }
        Err(WrongIdentity::Key(why)) => {
            key_field.refuse_file(About::ListenerFile, why);
            None
        }
    }
}

/// A file with an entry on each line.
fn read_lines<T>(
    field: &Field<'_>,
    example: &str,
    doubts: &Problems<'_>,
    remedy: impl FnOnce(&str) -> String,
    parse: impl FnOnce(&str) -> Result<T, Vec<(usize, String)>>,
) -> Option<T> {
    let path = field.string(example)?;
    let bytes = secret::read_as(field, example, doubts, remedy)?;
    let Ok(text) = std::str::from_utf8(&bytes) else {
        field.refuse_file(About::ListenerFile, format!("{path} is no text"));
        return None;
    };
    let mistakes = match parse(text) {
        Ok(read) => return Some(read),
        Err(mistakes) => mistakes,
    };
    for (line, mistake) in mistakes {
        field.refuse_file(About::ListenerFile, format!("{path}:{line}: {mistake}"));
    }
    None
}

#[cfg(test)]
mod tests;
