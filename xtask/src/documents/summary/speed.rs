//! The table of `docs/BENCHMARKS.md`: is it faster?

use anyhow::Result;
use kit::reports::{datapath, http, instructions, metrics, scale};

use super::{Records, Row, less, more, report, row};
use crate::documents::{
    http::{Aims, find, keep, rate},
    instructions::over_aim,
    templates::{commas, mib},
};

/// The rows of `docs/BENCHMARKS.md`.
pub fn rows(records: &Records) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    if let Some(report) = report::<instructions::Report>(records, "instructions")? {
        let method = |lb, ipvs| instructions_row(&report.cases, lb, ipvs);
        rows.extend([method("dsr", "IPVS DR"), method("ipip", "IPVS tunnel")]);
        rows.push(method("dsr at tc", "IPVS DR"));
    }
    let datapath: Option<datapath::Report> = report(records, "datapath")?;
    rows.push(datapath.as_ref().and_then(packet_row));
    if let Some(report) = report::<http::Report>(records, "http")? {
        let load = |load, anchor| requests_row(&report.cases, load, anchor);
        rows.extend([
            load((16, true), "16-connections-keep-alive"),
            load((64, true), "64-connections-keep-alive"),
            load((64, false), "64-connections-one-request-per-connection"),
        ]);
        rows.extend(hop_rows(&report.cases).into_iter().flatten().map(Some));
        rows.push(stream_row(&report.throughput));
    }
    rows.push(datapath.as_ref().and_then(change_row));
    if let Some(report) = report::<scale::Report>(records, "scale")? {
        rows.push(flows_row(&report.packets));
    }
    rows.push(datapath.as_ref().and_then(memory_row));
    if let Some(report) = report::<metrics::Report>(records, "metrics")? {
        let lb = format!("{:.1} ms", report.median_ms);
        let verdict = format!(
            "{} samples, {:.1} ms of CPU time",
            commas(report.samples as u64),
            report.cpu_ms
        );
        let subject = format!("Metrics scrape, {} backends", commas(report.backends as u64));
        rows.push(Some(row(subject, "metrics-scrape", [lb, "-".into(), verdict])));
    }
    Ok(rows.into_iter().flatten().collect())
}

fn instructions_row(cases: &[instructions::Case], lb: &str, ipvs: &str) -> Option<Row> {
    let find = |name: &str| cases.iter().find(|case| case.name == format!("{name}, one flow"));
    let (case, beside) = (find(lb)?, find(ipvs)?.instructions_per_packet);
    let own = case.instructions_per_packet;
    let mut verdict = less(own, ipvs, beside);
    if let Some((aim, over)) = over_aim(case).filter(|(_, over)| *over > 0.0) {
        verdict += &format!("; **aim of {aim} missed** by {over:.0}");
    }
    let [lb_figure, beside] = [own, beside].map(|count| commas(count.round() as u64));
    let subject = format!("Instructions per packet, `{lb}`");
    Some(row(subject, "instructions-per-packet", [lb_figure, format!("{ipvs}: {beside}"), verdict]))
}

fn packet_row(report: &datapath::Report) -> Option<Row> {
    let net =
        |name| report.packets.iter().find(|case| case.name == name).map(|case| case.net_min_ns);
    let (dsr, swap) = (net("dsr, IPv4 TCP, one flow")?, net("swap")?);
    let cells = [
        format!("{dsr:.0} ns"),
        format!("floor (new MAC addresses alone): {swap:.0} ns"),
        format!("{:.0} ns more", dsr - swap),
    ];
    Some(row("Time per packet, `dsr`", "time-per-packet", cells))
}

fn requests_row(cases: &[http::Case], load: (u16, bool), anchor: &'static str) -> Option<Row> {
    let of = |system| find(cases, system, load).map(rate);
    let (dsr, haproxy) = (of(http::System::Dsr)?, of(http::System::Haproxy)?);
    let nftables = of(http::System::NftablesDnat)?;
    let subject = format!("Requests a second, {} connections, {}, `dsr`", load.0, keep(load.1));
    let [lb, beside, other] = [dsr, haproxy, nftables].map(|rate| commas(rate.round() as u64));
    let verdict = format!("{}; {}", more(dsr, "HAProxy", haproxy), more(dsr, "nftables", nftables));
    Some(row(subject, anchor, [lb, format!("HAProxy: {beside}; nftables: {other}"), verdict]))
}

/// Beside hosts without a balancer, under the worst load: requests a second, and CPU time of a request.
fn hop_rows(cases: &[http::Case]) -> Option<[Row; 2]> {
    let of = |system| Aims::of(cases, system);
    let (dsr, router) = (of(http::System::Dsr)?, of(http::System::Router)?);
    let haproxy = of(http::System::Haproxy)?;
    let [share, cpu] = dsr.missed().map(|(is_missed, aim)| {
        if is_missed { format!("**{aim} missed**") } else { format!("{aim} met") }
    });
    let anchor = "aims";
    let share_cells = [
        format!("{:.2} at least", dsr.least_share),
        format!("a router: {:.2}; HAProxy: {:.2}", router.least_share, haproxy.least_share),
        format!("**behind** no balancer; {share}"),
    ];
    let cpu_cells = [
        format!("{:+.1} µs at most", dsr.most_more_us),
        format!(
            "a router: {:+.1} µs; HAProxy: {:+.1} µs",
            router.most_more_us, haproxy.most_more_us
        ),
        format!("{}; {cpu}", less(dsr.most_more_us, "HAProxy", haproxy.most_more_us)),
    ];
    Some([
        row("Share of the requests a second without a balancer, `dsr`", anchor, share_cells),
        row("CPU time added to a request, `dsr`", anchor, cpu_cells),
    ])
}

fn stream_row(streams: &[http::Throughput]) -> Option<Row> {
    let of = |system| {
        let stream = streams.iter().find(|stream| stream.system == system)?;
        Some(http::median(stream.bits_per_second.clone()) / 1e9)
    };
    let (dsr, direct) = (of(http::System::Dsr)?, of(http::System::Direct)?);
    let (haproxy, nftables) = (of(http::System::Haproxy)?, of(http::System::NftablesDnat)?);
    let beside =
        format!("HAProxy: {haproxy:.2}; nftables: {nftables:.2}; no balancer: {direct:.2}");
    let verdict = format!(
        "{}; {}; {}",
        more(dsr, "HAProxy", haproxy),
        more(dsr, "nftables", nftables),
        more(dsr, "no balancer", direct)
    );
    let subject = "Gbit/s of one connection, without offloads, `dsr`";
    Some(row(subject, "throughput-of-one-connection", [format!("{dsr:.2}"), beside, verdict]))
}

fn change_row(report: &datapath::Report) -> Option<Row> {
    let ring = report.rings.iter().max_by_key(|ring| ring.backends)?;
    let subject = format!("Time of a ring change, {} backends", commas(ring.backends as u64));
    let verdict = format!("{} slots change", commas(ring.slots_changed as u64));
    Some(row(
        subject,
        "time-of-a-ring-change",
        [format!("{:.2} ms", ring.change_ms), "-".into(), verdict],
    ))
}

fn flows_row(packets: &[scale::Packets]) -> Option<Row> {
    let is_it = |case: &&scale::Packets| {
        case.sweep == scale::Sweep::Flows && case.packets == "to one service"
    };
    let cases = || packets.iter().filter(is_it);
    let most = cases().max_by_key(|case| case.value)?;
    let one = cases().find(|case| case.value == 1)?;
    let cells = [
        format!("{:.0} ns", most.net_min_ns),
        format!("one flow: {:.0} ns", one.net_min_ns),
        format!("{:.1} times", most.net_min_ns / one.net_min_ns),
    ];
    let subject = format!("Time per packet, {} flows, `ipip`", commas(most.value.into()));
    Some(row(subject, "number-of-flows", cells))
}

fn memory_row(report: &datapath::Report) -> Option<Row> {
    let ring = report.memory.iter().find(|map| map.map == "the service's ring")?.bytes;
    let all: u64 = report.memory.iter().map(|map| map.bytes).sum();
    let verdict =
        format!("for any number of flows; {} MiB for each service more", mib(ring as f64, 2));
    let lb = format!("{} MiB", mib(all as f64, 1));
    Some(row(
        "Memory of the maps at the default limits",
        "memory-at-the-default-limits",
        [lb, "-".into(), verdict],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_whose_case_is_missing_is_left_out() {
        let case = |name: &str, instructions_per_packet| {
            let (name, kind) = (name.to_owned(), instructions::Kind::Lb);
            instructions::Case { name, kind, instructions_per_packet, spread: 0.0 }
        };
        let cases = [case("dsr, one flow", 400.0), case("IPVS DR, one flow", 4_000.0)];
        assert_eq!(instructions_row(&cases, "ipip", "IPVS tunnel"), None);
        let row = instructions_row(&cases, "dsr", "IPVS DR").expect("both cases are there");
        assert_eq!(
            [row.lb, row.beside, row.verdict],
            ["400", "IPVS DR: 4,000", "10.0 times less than IPVS DR"]
        );
    }
}
