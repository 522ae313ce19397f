//! `lbctl log`: how much `lbd` logs.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::Subcommand;
use hyper::Method;
use lb_api::paths;

use super::Printer;
use lb_api::client::Client;
use lb_api::log::{Change, Current};
use lb_model::log::Filter;
use lb_model::units::{format_duration, parse_duration};

/// What to do with the log.
#[derive(Debug, Subcommand)]
pub(super) enum LogCommand {
    /// Show how much lbd logs, or change it until lbd ends.
    Level {
        /// A level (error, warn, info, debug, trace, off), and others for parts, as info,vrrp=debug.
        ///
        /// The parts are those of lbd, such as vrrp, health, netlink, web; xdp=debug has the XDP program
        /// log packets that are rare.
        #[arg(value_parser = |text: &str| text.parse::<Filter>())]
        filter: Option<Filter>,
        /// Only for so long, as 10m.
        #[arg(long = "for", value_name = "TIME", value_parser = parse_duration, requires = "filter")]
        lasts: Option<Duration>,
        /// Back to the configured level.
        #[arg(long, conflicts_with = "filter")]
        reset: bool,
    },
}

pub(super) async fn run(command: &LogCommand, client: &Client, printer: Printer) -> Result<()> {
    let LogCommand::Level { filter, lasts, reset } = command;
    let current: Current = if filter.is_none() && !reset {
        client.get(paths::LOG).await?
    } else {
        let for_secs = lasts.map(|lasts| lasts.as_secs().max(1));
        let change = Change { filter: filter.clone(), for_secs };
        client.send_json(Method::PUT, paths::LOG, &change).await?
    };
    printer.print(&current, || line(&current) + "\n")
}

/// How much is logged, in one line.
pub(super) fn line(current: &Current) -> String {
    let mut text = format!("log level {}", current.filter);
    if let Some(until) = current.until {
        let left = until.duration_since(SystemTime::now()).unwrap_or_default();
        // Rounded, so that a duration set a moment ago is shown as it was set.
        let left = Duration::from_secs((left.as_millis() as u64).div_ceil(1_000));
        text += &format!(" for {}", format_duration(left));
    }
    if let Some(configured) = &current.configured {
        text += &format!(", then {configured}");
        if current.until.is_none() {
            text = format!(
                "log level {}, set by lbctl; the configuration says {configured}",
                current.filter
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_told_with_what_comes_after_it() {
        let until = Some(SystemTime::now() + Duration::from_secs(600));
        for (current, expected) in [
            (("info", None, None), "log level info"),
            (("debug", Some("info"), until), "log level debug for 10m, then info"),
            (
                ("debug", Some("info"), None),
                "log level debug, set by lbctl; the configuration says info",
            ),
        ] {
            let (filter, configured, until) = current;
            let configured = configured.map(str::to_owned);
            assert_eq!(line(&Current { filter: filter.into(), configured, until }), expected);
        }
    }
}
