//! The `[service.check]` tables of a configuration, and a service's policy for its checks.

use std::{num::NonZeroU8, ops::RangeInclusive, path::PathBuf, time::Duration};

use lb_model::{
    check::{Check, Dns, Exec, Http, Kind, Start, Tls, Udp, Via},
    policy::{OnDown, Policy},
    rules::check::{self as rules, INTERVAL, JITTER, WAIT},
};

use super::{
    duration_within,
    former::SYN_FAILOVER,
    tree::{Field, Table},
};

/// Reads a service's policy for its backends' health.
pub(super) fn read_policy(table: &Table<'_>) -> Policy {
    let default = Policy::default();
    let wait = |key, example: &str| {
        table
            .optional(key)?
            .parsed(example, |text| duration_within(text, *WAIT.start(), *WAIT.end()))
    };
    let slow_start = wait("slow_start", "slow_start = \"30s\"");
    let flap_half_life = wait("flap_half_life", "flap_half_life = \"60s\"");
    let panic_threshold = table.optional("panic_threshold").and_then(|field| {
        field.parsed("panic_threshold = \"50%\"", |text| {
            let percent = text.strip_suffix('%').and_then(|number| number.parse().ok());
            percent.filter(|percent| *percent <= 100).ok_or_else(|| {
                format!("`{text}` is no share; write a whole number and a percent sign, as \"50%\"")
            })
        })
    });
    let min_healthy = table.optional("min_healthy").and_then(|field| field.integer(0..65_536));
    let words = [OnDown::Keep, OnDown::Move].map(|on_down| (on_down.word(), on_down));
    let on_down = table.optional("on_down").and_then(|field| field.word(&words));
    let second_choice = table.optional_renamed(SYN_FAILOVER).and_then(|field| field.flag());
    let check = table.optional("check").and_then(|field| field.table("service.check"));
    Policy {
        check: check.map_or(default.check.clone(), |table| read_check(table, default.check)),
        slow_start: slow_start.unwrap_or(default.slow_start),
        panic_threshold: panic_threshold.unwrap_or(default.panic_threshold),
        min_healthy: min_healthy.unwrap_or(default.min_healthy),
        flap_half_life: flap_half_life.unwrap_or(default.flap_half_life),
        on_down: on_down.unwrap_or(default.on_down),
        second_choice: second_choice.unwrap_or(default.second_choice),
    }
}

/// Reads a check; a missing key is as in `base`.
pub(super) fn read_check(table: Table<'_>, base: Check) -> Check {
    let words = KINDS.map(|name| (name, name));
    let named = table.optional("type");
    let given = named.as_ref().and_then(|field| field.word(&words));
    let port = table.optional("port").and_then(|field| field.integer(1..65_536));
    let via = table
        .optional("via")
        .and_then(|field| field.word(&[("vip", Via::Vip), ("backend", Via::Backend)]));
    let time = |key: &'static str, example: &str| {
        let field = table.optional(key)?;
        field.parsed(example, |text| duration_within(text, *INTERVAL.start(), *INTERVAL.end()))
    };
    let interval = time("interval", "interval = \"2s\"");
    let fast = time("fast_interval", "fast_interval = \"500ms\"");
    let down = time("down_interval", "down_interval = \"2s\"");
    let timeout = time("timeout", "timeout = \"1s\"");
    let times = |key| table.optional(key).and_then(|field| field.integer::<u64>(1..256));
    let times = |key| times(key).and_then(|times| NonZeroU8::new(u8::try_from(times).ok()?));
    let rise = times("rise");
    let fall = times("fall");
    let jitter = table.optional("jitter").and_then(|field| {
        field.parsed("jitter = \"10%\"", |text| {
            let percent = text.strip_suffix('%').and_then(|number| number.parse().ok());
            percent.filter(|percent| JITTER.contains(percent)).ok_or_else(|| {
                format!("`{text}` is no jitter; write a share from \"0%\" to \"50%\"")
            })
        })
    });
    let start = table
        .optional("start")
        .and_then(|field| field.word(&[("up", Start::Up), ("down", Start::Down)]));
    let base = implied(&base, given.unwrap_or_else(|| base.kind.name()), interval);
    // The keys of a type that is unknown are, too.
    let kind = match (named, given) {
        (Some(_), None) => {
            table.leave();
            base.kind
        }
        _ => {
            let kind = read_kind(&table, base.kind);
            table.finish();
            kind
        }
    };
    Check {
        kind,
        port: port.or(base.port),
        via: via.unwrap_or(base.via),
        interval: base.interval,
        fast_interval: fast.unwrap_or(base.fast_interval),
        down_interval: down.unwrap_or(base.down_interval),
        timeout: timeout.unwrap_or(base.timeout),
        rise: rise.unwrap_or(base.rise),
        fall: fall.unwrap_or(base.fall),
        jitter: jitter.unwrap_or(base.jitter),
        start: start.unwrap_or(base.start),
    }
}

/// The check of a table with a type, an interval if that is given, and nothing else.
pub(super) fn implied(base: &Check, kind: &str, interval: Option<Duration>) -> Check {
    let mut check = Check { kind: implied_kind(&base.kind, kind), ..base.clone() };
    // The other times follow the interval, where only that is given.
    if let Some(interval) = interval {
        let least = *INTERVAL.start();
        let most = interval.max(least);
        check.interval = interval;
        // In whole milliseconds, as a file has them.
        let quarter = Duration::from_millis(interval.as_millis() as u64 / 4);
        check.fast_interval = quarter.clamp(least, most);
        check.down_interval = interval.clamp(least, most);
        check.timeout = base.timeout.clamp(least, most);
    }
    check
}

/// A kind of this name with the values of `base`, as far as they fit.
fn implied_kind(base: &Kind, name: &str) -> Kind {
    let (http, tls) = match base {
        Kind::Http(http) => (http.clone(), Tls::default()),
        Kind::Https(http, tls) => (http.clone(), tls.clone()),
        _ => Default::default(),
    };
    match (name, base) {
        ("tcp", _) => Kind::Tcp,
        ("http", _) => Kind::Http(http),
        ("https", _) => Kind::Https(http, tls),
        ("udp" | "dns" | "exec", base) if base.name() == name => base.clone(),
        ("udp", _) => Kind::Udp(Udp::default()),
        ("dns", _) => Kind::Dns(Dns::default()),
        ("exec", _) => Kind::Exec(Exec::default()),
        _ => Kind::None,
    }
}

/// The names of the kinds.
const KINDS: [&str; 7] = ["none", "tcp", "http", "https", "udp", "dns", "exec"];

fn read_kind(table: &Table<'_>, implied: Kind) -> Kind {
    match implied {
        Kind::None | Kind::Tcp => implied,
        Kind::Http(http) => Kind::Http(read_http(table, http)),
        Kind::Https(http, tls) => Kind::Https(read_http(table, http), read_tls(table, tls)),
        Kind::Udp(udp) => Kind::Udp(read_udp(table, udp)),
        Kind::Dns(dns) => Kind::Dns(read_dns(table, dns)),
        Kind::Exec(exec) => read_exec(table, exec).map_or(Kind::None, Kind::Exec),
    }
}

fn read_http(table: &Table<'_>, base: Http) -> Http {
    let text = |key, example: &str| {
        Some(table.optional(key)?.string(example)?.to_owned()).filter(|text| !text.is_empty())
    };
    let method = table.optional("method").and_then(|field| {
        field.parsed("method = \"GET\"", |text| rules::method(text).map(|()| text.to_owned()))
    });
    let path = table.optional("path").and_then(|field| {
        field.parsed("path = \"/healthz\"", |text| rules::path(text).map(|()| text.to_owned()))
    });
    let host = table.optional("host").and_then(|field| {
        let example = "host = \"www.example.com\"";
        field.parsed(example, |text| rules::host(text).map(|()| text.to_owned()))
    });
    let status = table
        .optional("status")
        .and_then(|field| field.parsed("status = \"200-399\" or \"200, 301-302\"", parse_status));
    Http {
        method: method.unwrap_or(base.method),
        path: path.unwrap_or(base.path),
        host: host.or(base.host),
        status: status.unwrap_or(base.status),
        body: text("body", "body = \"healthy\"").or(base.body),
    }
}

/// Reads `200`, `200-299`, or some of these with commas between them.
fn parse_status(text: &str) -> Result<Vec<RangeInclusive<u16>>, String> {
    let code = |text: &str| text.trim().parse().ok().filter(|code| (100..=599).contains(code));
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u16, u16) = (code(first)?, code(last)?);
        (first <= last).then_some(first..=last)
    };
    text.split(',').map(range).collect::<Option<Vec<_>>>().ok_or_else(|| {
        format!("`{text}` are no status codes; write codes from 100 to 599 and ranges of them, as \"200-299, 301\"")
    })
}

fn read_tls(table: &Table<'_>, base: Tls) -> Tls {
    let ca_file = table.optional("ca_file").and_then(|field| {
        field.parsed("ca_file = \"/etc/lb/ca.pem\"", |text| {
            let path = PathBuf::from(text);
            rules::ca_file(&path).map(|()| path)
        })
    });
    let name = table.optional("server_name");
    let name = name.and_then(|field| field.string("server_name = \"www.example.com\""));
    Tls {
        insecure: table.optional("insecure").and_then(|f| f.flag()).unwrap_or(base.insecure),
        server_name: name.map(str::to_owned).or(base.server_name),
        ca_file: ca_file.or(base.ca_file),
    }
}

/// A string of bytes, in which `\xNN`, `\r`, `\n`, `\t`, `\0` and `\\` stand for others.
fn bytes(field: &Field<'_>) -> Option<Vec<u8>> {
    field.parsed("'PING\\r\\n' or '\\x01\\x02'", |text| {
        let wrong = |at: &str| {
            format!("`{at}` is unknown after a `\\`; write \\xNN, \\r, \\n, \\t, \\0 or \\\\")
        };
        let mut bytes = Vec::new();
        let mut rest = text.chars();
        while let Some(sign) = rest.next() {
            if sign != '\\' {
                bytes.extend(sign.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            bytes.push(match rest.next() {
                Some('r') => b'\r',
                Some('n') => b'\n',
                Some('t') => b'\t',
                Some('0') => 0,
                Some('\\') => b'\\',
                Some('x') => {
                    let digits: String = rest.by_ref().take(2).collect();
                    let byte = u8::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 2);
                    byte.ok_or_else(|| wrong(&format!("x{digits}")))?
                }
                other => return Err(wrong(&other.map(String::from).unwrap_or_default())),
            });
        }
        Ok(bytes)
    })
}

fn read_udp(table: &Table<'_>, base: Udp) -> Udp {
    let send = table.optional("send").and_then(|field| bytes(&field));
    let expect = table.optional("expect").and_then(|field| bytes(&field));
    Udp { send: send.unwrap_or(base.send), expect: expect.unwrap_or(base.expect) }
}

fn read_dns(table: &Table<'_>, base: Dns) -> Dns {
    let name = table.optional("query").and_then(|field| {
        field
            .parsed("query = \"example.com\"", |text| rules::domain(text).map(|()| text.to_owned()))
    });
    let words = rules::RECORDS.map(|record| (record, record));
    let record = table.optional("record").and_then(|field| field.word(&words));
    Dns { name: name.unwrap_or(base.name), record: record.map_or(base.record, str::to_owned) }
}

/// None if the command is none, which is then reported.
fn read_exec(table: &Table<'_>, base: Exec) -> Option<Exec> {
    const EXAMPLE: &str = "command = [\"/usr/local/bin/check\", \"--fast\"]";
    let Some(field) = table.optional("command") else {
        if !base.command.is_empty() {
            return Some(base);
        }
        table.refuse(format!("`command` is missing; add {EXAMPLE}"));
        return None;
    };
    let words = field.strings(EXAMPLE)?;
    let command: Vec<_> =
        words.iter().filter_map(|word| word.string(EXAMPLE).map(str::to_owned)).collect();
    let fits = rules::command(&command, "command", EXAMPLE);
    fits.map_err(|message| field.refuse(message)).ok()?;
    Some(Exec { command })
}
