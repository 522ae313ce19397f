//! The rules for a check and a policy, for every source: the configuration's reader, the API and the
//! state file.

use std::{ops::RangeInclusive, path::Path, time::Duration};

use super::Violation;
use crate::{
    backend_address::BackendAddress,
    check::{Check, Dns, Exec, Http, Kind, Tls},
    desired::Service,
    units::format_duration,
};

/// Intervals and timeouts of checks.
pub const INTERVAL: RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(3_600);
/// Slow starts, and half-lives of penalties.
pub const WAIT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(86_400);
/// Percent by which intervals vary.
pub const JITTER: RangeInclusive<u8> = 0..=50;
/// The record types that a DNS check can query.
pub const RECORDS: [&str; 9] = ["A", "AAAA", "NS", "SOA", "MX", "TXT", "SRV", "CNAME", "PTR"];

/// Whether a time, named `text`, is within its bounds.
///
/// # Errors
///
/// The mistake, and the possible values.
pub fn within(text: &str, time: Duration, bounds: &RangeInclusive<Duration>) -> Result<(), String> {
    if bounds.contains(&time) {
        return Ok(());
    }
    let (least, most) = (format_duration(*bounds.start()), format_duration(*bounds.end()));
    Err(format!("`{text}` is out of range; from {least} to {most} is possible"))
}

/// The method of an HTTP request.
///
/// # Errors
///
/// The mistake, and its remedy.
pub fn method(text: &str) -> Result<(), String> {
    let fits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase());
    given(fits, || format!("`{text}` is no method; write one as \"GET\" or \"HEAD\""))
}

/// The path of an HTTP request.
///
/// # Errors
///
/// The mistake, and its remedy.
pub fn path(text: &str) -> Result<(), String> {
    let fits = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
    given(fits, || format!("`{text}` is no path; begin it with `/`, and write other signs as %20"))
}

/// The header `Host` of an HTTP request.
///
/// # Errors
///
/// The mistake, and its remedy.
pub fn host(text: &str) -> Result<(), String> {
    let fits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    given(fits, || format!("`{text}` is no host; write a name, as \"www.example.com\""))
}

/// The status codes that are good.
fn codes(ranges: &[RangeInclusive<u16>]) -> Result<(), String> {
    let fits = |range: &RangeInclusive<u16>| {
        !range.is_empty() && *range.start() >= 100 && *range.end() <= 599
    };
    given(!ranges.is_empty() && ranges.iter().all(fits), || {
        "the status codes are none; write codes from 100 to 599 and ranges of them".into()
    })
}

/// The file of the authorities that are trusted.
///
/// # Errors
///
/// The mistake, and its remedy.
pub fn ca_file(path: &Path) -> Result<(), String> {
    given(path.is_absolute(), || format!("`{}` is not absolute; begin it with `/`", path.display()))
}

/// The name that a DNS check queries.
///
/// # Errors
///
/// The mistake, and its remedy.
pub fn domain(text: &str) -> Result<(), String> {
    let labels = text.trim_end_matches('.');
    let label =
        |label: &str| (1..64).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_graphic());
    let fits = text == "." || (labels.len() < 254 && labels.split('.').all(label));
    given(fits, || format!("`{text}` is no domain name; write one as \"example.com\""))
}

/// A program and its arguments.
///
/// # Errors
///
/// The mistake, and its remedy.
pub fn command(arguments: &[String], what: &str, example: &str) -> Result<(), String> {
    match arguments.first() {
        Some(program) if program.starts_with('/') => Ok(()),
        Some(program) => Err(format!("`{program}` is not absolute; begin it with `/`")),
        None => Err(format!("no {what}; write {example}")),
    }
}

fn given(fits: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if fits { Ok(()) } else { Err(message()) }
}

/// The mistakes of a check, by the keys of the configuration.
fn faults(check: &Check) -> Vec<String> {
    let mut found = Vec::new();
    let mut note = |key: &str, outcome: Result<(), String>| {
        found.extend(outcome.err().map(|message| format!("check.{key}: {message}")));
    };
    for (key, time) in [
        ("interval", check.interval),
        ("fast_interval", check.fast_interval),
        ("down_interval", check.down_interval),
        ("timeout", check.timeout),
    ] {
        note(key, within(&format_duration(time), time, &INTERVAL));
    }
    let jitter =
        || format!("`{}%` is no jitter; write a share from \"0%\" to \"50%\"", check.jitter);
    note("jitter", given(JITTER.contains(&check.jitter), jitter));
    let port = || "port 0; a number from 1 to 65535 is expected".into();
    note("port", given(check.port != Some(0), port));
    match &check.kind {
        Kind::None | Kind::Tcp | Kind::Udp(_) => {}
        Kind::Http(http) | Kind::Https(http, _) => {
            let Http { method: verb, path: target, host: name, status, body: _ } = http;
            note("method", method(verb));
            note("path", path(target));
            note("host", name.as_deref().map_or(Ok(()), host));
            note("status", codes(status));
        }
        Kind::Dns(Dns { name, record }) => {
            note("query", domain(name));
            let known = RECORDS.contains(&record.as_str());
            let message = || format!("`{record}` is unknown; write one of {}", RECORDS.join(", "));
            note("record", given(known, message));
        }
        Kind::Exec(Exec { command: arguments }) => {
            note("command", command(arguments, "command", "[\"/usr/local/bin/check\"]"));
        }
    }
    if let Kind::Https(_, Tls { ca_file: Some(file), .. }) = &check.kind {
        note("ca_file", ca_file(file));
    }
    found
}

/// A check that holds, and probes the same as one that does not, as far as it can.
#[must_use]
pub(crate) fn mended(check: &Check) -> Check {
    let kind = match &check.kind {
        Kind::Exec(_) => Kind::None,
        kind => kind.clone(),
    };
    let same = Check { kind, ..Check::default() };
    if faults(&same).is_empty() { same } else { Check::default() }
}

/// The mistakes of how a service checks its backends.
#[must_use]
pub(crate) fn violations_of_policy(name: &str, service: &Service) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut note = |backend: Option<BackendAddress>, field: &'static str, message: String| {
        found.push(Violation { service: name.to_owned(), backend, field, message });
    };
    let policy = &service.policy;
    for (field, time) in
        [("slow_start", policy.slow_start), ("flap_half_life", policy.flap_half_life)]
    {
        let why = within(&format_duration(time), time, &WAIT).err();
        why.into_iter().for_each(|why| note(None, field, format!("{field}: {why}")));
    }
    if policy.panic_threshold > 100 {
        let share = policy.panic_threshold;
        let message =
            format!("panic_threshold: {share}% is more than the whole; at most 100% is possible");
        note(None, "panic_threshold", message);
    }
    faults(&policy.check).into_iter().for_each(|message| note(None, "check", message));
    for (at, backend) in &service.backends {
        let own = backend.check.iter().flat_map(|check| faults(check));
        own.for_each(|message| note(Some(*at), "check", message));
    }
    found
}

/// The commands of a service's checks that the service of this name in the configuration's file, if there is
/// one, does not have.
///
/// A command runs with the rights of `lbd`, so only writers of that file choose it.
#[must_use]
pub(crate) fn foreign_commands(
    name: &str,
    service: &Service,
    configured: Option<&Service>,
) -> Vec<Violation> {
    fn all(service: &Service) -> impl Iterator<Item = (Option<BackendAddress>, &Check)> {
        let own = service.backends.iter();
        let own = own.filter_map(|(at, backend)| Some((Some(*at), backend.check.as_deref()?)));
        [(None, &service.policy.check)].into_iter().chain(own)
    }
    let foreign = all(service).filter_map(|(backend, check)| {
        let Kind::Exec(exec) = &check.kind else { return None };
        let known = configured.into_iter().flat_map(all);
        if known.into_iter().any(|(_, check)| check.kind == Kind::Exec(exec.clone())) {
            return None;
        }
        let message = format!(
            "check: the command {:?} is not in the configuration's file for this service; a command is \
             written there, since it runs with the rights of lbd",
            exec.command.join(" ")
        );
        Some(Violation { service: name.to_owned(), backend, field: "check", message })
    });
    foreign.collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::{
        backend_address::BackendAddress,
        check::Udp,
        desired::{Backend, Mode},
    };

    const A: BackendAddress = BackendAddress::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)));

    fn checked(check: Check) -> Service {
        let mut service = Service::new(IpAddr::from([10, 0, 0, 100]), 80, Mode::Dsr);
        service.policy.check = check;
        service
    }

    fn exec(program: &str) -> Check {
        Check { kind: Kind::Exec(Exec { command: vec![program.into()] }), ..Check::default() }
    }

    #[test]
    fn what_the_file_refuses_is_refused_of_a_value() {
        let of = |kind| Check { kind, ..Check::default() };
        let http = |http: Http| of(Kind::Http(http));
        let dns = |name: &str, record: &str| {
            of(Kind::Dns(Dns { name: name.into(), record: record.into() }))
        };
        let cases = [
            (Check { interval: Duration::ZERO, ..Check::default() }, "check.interval: `0s`"),
            (Check { down_interval: Duration::MAX, ..Check::default() }, "check.down_interval"),
            (Check { timeout: Duration::from_millis(49), ..Check::default() }, "check.timeout"),
            (Check { jitter: 51, ..Check::default() }, "check.jitter"),
            (Check { port: Some(0), ..Check::default() }, "check.port"),
            (http(Http { method: "GET / HTTP/1.1\r\n".into(), ..Http::default() }), "check.method"),
            (http(Http { path: "/ HTTP/1.0\r\nX: y".into(), ..Http::default() }), "check.path"),
            (http(Http { host: Some("a b".into()), ..Http::default() }), "check.host"),
            (http(Http { status: vec![], ..Http::default() }), "check.status"),
            (http(Http { status: vec![200..=999], ..Http::default() }), "check.status"),
            (dns("a..b", "A"), "check.query"),
            (dns(".", "HINFO"), "check.record"),
            (exec("check"), "check.command: `check` is not absolute"),
            (of(Kind::Exec(Exec::default())), "check.command: no command"),
        ];
        for (check, expected) in cases {
            let found = violations_of_policy("web", &checked(check.clone()));
            assert!(
                found.len() == 1 && found[0].message.starts_with(expected),
                "{check:?}: {found:?}"
            );
            let mut of_backend = checked(Check::default());
            let backend = Backend { check: Some(Box::new(check.clone())), ..Backend::default() };
            of_backend.backends.insert(A, backend);
            assert_eq!(violations_of_policy("web", &of_backend)[0].backend, Some(A));
            assert_eq!(violations_of_policy("web", &checked(mended(&check))), []);
        }
        let udp = of(Kind::Udp(Udp::default()));
        assert_eq!(violations_of_policy("web", &checked(udp)), []);
    }

    #[test]
    fn a_policy_is_within_its_bounds() {
        let mut service = checked(Check::default());
        service.policy.slow_start = Duration::MAX;
        service.policy.flap_half_life = Duration::from_secs(86_401);
        service.policy.panic_threshold = 101;
        let found = violations_of_policy("web", &service);
        let fields: Vec<_> = found.iter().map(|violation| violation.field).collect();
        assert_eq!(fields, ["slow_start", "flap_half_life", "panic_threshold"]);
    }

    #[test]
    fn only_the_files_own_commands_are_run() {
        let own = checked(exec("/usr/bin/own"));
        assert_eq!(foreign_commands("web", &own, Some(&own)), []);
        assert_eq!(foreign_commands("web", &own, None).len(), 1);
        let mut other = checked(Check::default());
        let backend =
            |program| Backend { check: Some(Box::new(exec(program))), ..Backend::default() };
        other.backends.insert(A, backend("/usr/bin/own"));
        assert_eq!(foreign_commands("web", &other, Some(&own)), []);
        other.backends.insert(A, backend("/bin/sh"));
        let found = foreign_commands("web", &other, Some(&own));
        assert_eq!(found[0].backend, Some(A));
        assert!(found[0].message.contains("\"/bin/sh\" is not in the configuration's file"));
    }
}
