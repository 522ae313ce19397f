//! The `[[virtual_router.track]]` tables of a configuration.

use std::time::Duration;

use lb_model::router::{Track, Tracked};

use super::{
    absolute, check_interface, command, duration_within,
    tree::{Field, Table},
};

/// Weights that change a priority by anything at all.
const WEIGHTS: std::ops::RangeInclusive<i64> = -254..=254;
/// How often a script is run, and how long it may take.
const SCRIPT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3_600));
const SCRIPT_INTERVAL: Duration = Duration::from_secs(1);

/// The tracked object, with the place of the service's name where it is one.
pub(super) fn read_tracks<'a>(
    table: &Table<'a>,
    is_owner: bool,
) -> Vec<(Track, Option<Field<'a>>)> {
    let tables = table.tables("track", "virtual_router.track");
    let tracks: Vec<_> =
        tables.into_iter().filter_map(|table| read_track(table, is_owner)).collect();
    let forwards = tracks.iter().any(|(track, _)| track.what == Tracked::Forwarding);
    let field = table.optional("track_forwarding");
    let configured = field.as_ref().and_then(Field::flag);
    if let (true, Some(false), Some(field)) = (forwards, configured, &field) {
        field.refuse("there is a track with type = \"forwarding\"; remove it, or this");
    }
    // A node that does not forward must not draw traffic.
    let by_default = (!forwards && configured != Some(false))
        .then_some((Track { what: Tracked::Forwarding, weight: 0 }, None));
    by_default.into_iter().chain(tracks).collect()
}

#[derive(Clone, Copy)]
enum Type {
    Interface,
    Forwarding,
    Service,
    Script,
    File,
}

fn read_track<'a>(table: Table<'a>, is_owner: bool) -> Option<(Track, Option<Field<'a>>)> {
    const EXAMPLE: &str =
        "type = \"interface\", \"forwarding\", \"service\", \"script\" or \"file\"";
    let weight_field = table.optional("weight");
    let weight = weight_field.as_ref().and_then(|field| field.signed(WEIGHTS));
    if let (true, Some(field), Some(1.. | ..=-1)) = (is_owner, &weight_field, weight) {
        field.refuse(
            "the priority of the owner does not change; only weight 0, a fault, is possible",
        );
    }
    let kind = table.required("type", EXAMPLE).and_then(|field| {
        field.word(&[
            ("interface", Type::Interface),
            ("forwarding", Type::Forwarding),
            ("service", Type::Service),
            ("script", Type::Script),
            ("file", Type::File),
        ])
    });
    let Some(kind) = kind else {
        // Which keys it may have is not known.
        return None;
    };
    let mut service = None;
    let what = match kind {
        Type::Forwarding => Some(Tracked::Forwarding),
        Type::Interface => {
            let field = table.required("interface", "interface = \"eth1\"");
            let name = field.and_then(|field| {
                field.parsed("interface = \"eth1\"", |text| {
                    check_interface(text).map(|()| text.to_owned())
                })
            });
            name.map(Tracked::Interface)
        }
        Type::Service => {
            let field = table.required("service", "service = \"web\"");
            let name = field.as_ref().and_then(|field| field.string("service = \"web\""));
            let least = table.optional("min_healthy").and_then(|field| field.integer(1..65_536));
            service = field;
            name.map(|name| Tracked::Service {
                name: name.to_owned(),
                min_healthy: least.unwrap_or(1),
            })
        }
        Type::Script => read_script(&table),
        Type::File => {
            let field = table.required("path", "path = \"/run/lb/priority\"");
            let path =
                field.and_then(|field| field.parsed("path = \"/run/lb/priority\"", absolute));
            path.map(Tracked::File)
        }
    };
    table.finish();
    Some((Track { what: what?, weight: weight.unwrap_or(0) }, service))
}

fn read_script(table: &Table<'_>) -> Option<Tracked> {
    let field = table.required("command", "command = [\"/usr/local/bin/check\"]");
    let command = field.and_then(|field| command(&field, "command"));
    let time = |key: &'static str, example: &str| {
        let field = table.optional(key)?;
        field.parsed(example, |text| duration_within(text, SCRIPT.0, SCRIPT.1))
    };
    let interval = time("interval", "interval = \"1s\"").unwrap_or(SCRIPT_INTERVAL);
    let timeout = time("timeout", "timeout = \"1s\"").unwrap_or(interval);
    let times = |key| table.optional(key).and_then(|field: Field<'_>| field.integer(1..256));
    let (rise, fall) = (times("rise").unwrap_or(1), times("fall").unwrap_or(1));
    Some(Tracked::Script { command: command?, interval, timeout, rise, fall })
}
