//! The table of `docs/RELIABILITY.md`: does it break?

use anyhow::Result;
use kit::reports::{attack, failover, soak, vrrp};

use super::{Records, Row, broken, less, part, report, row, some};
use crate::{
    documents::{
        templates::{commas, of},
        vrrp::{Sum, sum},
    },
    fuzz, kernels,
};

/// The rows of `docs/RELIABILITY.md`.
pub fn rows(records: &Records) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    if let Some(report) = report::<failover::Report>(records, "failover")? {
        let cells = &report.cells;
        rows.push(others_row(cells));
        for (fault, subject) in [
            (failover::Fault::Killed, "Requests failed when a backend's nginx is killed"),
            (failover::Fault::CutOff, "Requests failed when a backend's host is cut off"),
            (failover::Fault::Rolling, "Requests failed in a rolling update of all backends"),
        ] {
            rows.push(failed_row(cells, fault, subject));
        }
    }
    if let Some(report) = report::<vrrp::Report>(records, "vrrp")? {
        let cells = &report.cells;
        rows.push(downloads_row(cells));
        let faults = [
            vrrp::Fault::Killed,
            vrrp::Fault::LinkDown,
            vrrp::Fault::PowerOff,
            vrrp::Fault::Stopped,
        ];
        rows.extend(faults.map(|fault| outage_row(cells, fault)));
    }
    if let Some(report) = report::<attack::Report>(records, "attack")? {
        rows.push(floods_row(&report.cells));
        if let Some(tables) = &report.tables {
            rows.push(moved_row(&tables.runs));
            let attack::Moved { flows, moved } = tables.forged.syn_in_flux;
            let cells = [part(moved, flows), "-".into(), some(moved, flows)];
            let subject = "Flows moved in flux by a forged SYN with a client's address and port";
            rows.push(Some(row(subject, "forged-segments", cells)));
        }
    }
    if let Some(report) = report::<soak::Report>(records, "soak")? {
        let minutes = report.duration_seconds / 60.0;
        let operations = commas(report.operations.values().sum());
        let (broke, all) = (report.broken_not_allowed, report.connections);
        let subject = format!(
            "Connections broken without a permitted reason, in {minutes:.0} minutes of random operations"
        );
        let verdict = format!("{} in {operations} operations", some(broke as usize, all as usize));
        rows.push(Some(row(subject, "soak-test", [of(broke, all), "-".into(), verdict])));
    }
    if let Some(report) = report::<fuzz::report::Report>(records, "fuzz")? {
        let inputs: u64 = report.targets.iter().map(|run| run.executions).sum();
        let found = report.targets.iter().map(|run| run.findings.len()).sum();
        let cells = [part(found, inputs as usize), "-".into(), some(found, inputs as usize)];
        rows.push(Some(row("Findings of the fuzzer in all inputs", "fuzzing", cells)));
    }
    if let Some(report) = report::<kernels::Report>(records, "kernels")? {
        let passed = report.kernels.iter().filter(|kernel| kernel.passed).count();
        let verdict = if passed == report.kernels.len() { "all" } else { "**not all**" };
        let cells = [part(passed, report.kernels.len()), "-".into(), verdict.into()];
        rows.push(Some(row("Kernels on which the tests pass", "kernel-versions", cells)));
    }
    Ok(rows.into_iter().flatten().collect())
}

/// Downloads of hosts that no fault came to, of all settings and faults.
fn others_row(cells: &[failover::Cell]) -> Option<Row> {
    let sum = |system: &str| {
        let ended =
            cells.iter().filter(|cell| cell.system.starts_with(system)).map(|cell| &cell.others);
        let (broken, all) =
            ended.fold((0, 0), |sum, one| (sum.0 + one.broken, sum.1 + one.downloads));
        (all > 0).then_some((broken, all))
    };
    let (lb, haproxy) = (sum("lb-")?, sum("haproxy-")?);
    let beside = format!("HAProxy: {}", part(haproxy.0, haproxy.1));
    let cells = [part(lb.0, lb.1), beside, broken(lb.0, "HAProxy", haproxy.0)];
    Some(row(
        "Downloads from other backends broken when one fails, all faults",
        "backend-failures",
        cells,
    ))
}

/// With checks every 100 ms.
fn failed_row(cells: &[failover::Cell], fault: failover::Fault, subject: &str) -> Option<Row> {
    let find = |system| cells.iter().find(|cell| cell.fault == fault && cell.system == system);
    let (lb, haproxy) = (find("lb-100ms")?, find("haproxy-100ms")?);
    let redispatch = find("haproxy-utmost")?;
    let failed = |cell: &failover::Cell| part(cell.failed, cell.requests);
    let beside = format!("HAProxy: {}; with redispatch: {}", failed(haproxy), failed(redispatch));
    let verdict = format!(
        "{}; {}",
        broken(lb.failed, "HAProxy", haproxy.failed),
        broken(lb.failed, "redispatch", redispatch.failed)
    );
    Some(row(subject, "backend-failures", [failed(lb), beside, verdict]))
}

const TODAY: &str = "keepalived + HAProxy";

/// Downloads broken by failovers and by their ends, of all faults and intervals.
fn downloads_row(cells: &[vrrp::Cell]) -> Option<Row> {
    let count = |system| {
        let trials =
            cells.iter().filter(|cell| cell.system == system).flat_map(|cell| &cell.trials);
        let events = trials.flat_map(|trial| [&trial.fault, &trial.end]);
        let (broken, all) =
            events.fold((0, 0), |sum, one| (sum.0 + one.broken, sum.1 + one.downloads));
        (all > 0).then_some((broken, all))
    };
    let (lb, today) = (count(vrrp::System::Lb)?, count(vrrp::System::Keepalived)?);
    let beside = format!("{TODAY}: {}", part(today.0, today.1));
    let cells = [part(lb.0, lb.1), beside, broken(lb.0, TODAY, today.0)];
    Some(row(
        "Downloads broken when a node fails and comes back, all faults",
        "failover-of-a-pair",
        cells,
    ))
}

/// At an interval of 100 ms.
fn outage_row(cells: &[vrrp::Cell], fault: vrrp::Fault) -> Option<Row> {
    let find = |system| {
        let mut cells = cells.iter().filter(|cell| cell.fault == fault && cell.interval_ms == 100);
        sum(&cells.find(|cell| cell.system == system)?.trials, |trial| &trial.fault)
    };
    let lb = find(vrrp::System::Lb)?;
    let figures = |sum: &Sum| format!("{:.1} ms, {} lost", sum.outage_ms.median, sum.lost);
    // Some faults are lb's alone.
    let (beside, verdict) = find(vrrp::System::Keepalived).map_or_else(
        || ("-".into(), "-".into()),
        |today| {
            let outage = less(lb.outage_ms.median, TODAY, today.outage_ms.median);
            (
                format!("{TODAY}: {}", figures(&today)),
                format!("outage: {outage}; lost: {}", broken(lb.lost, TODAY, today.lost)),
            )
        },
    );
    let [begins, _] = fault.describe();
    let subject = format!("Outage (median) and requests lost (worst trial) when {begins}");
    Some(row(subject, "failover-of-a-pair", [figures(&lb), beside, verdict]))
}

/// Of all runs on a network.
fn floods_row(cells: &[attack::Cell]) -> Option<Row> {
    let sum = |of: fn(&attack::Cell) -> [usize; 2]| {
        cells.iter().map(of).fold([0, 0], |sum, one| [sum[0] + one[0], sum[1] + one[1]])
    };
    let all = [
        ("connections", sum(|cell| [cell.connections_broken, cell.connections])),
        ("downloads", sum(|cell| [cell.downloads_broken, cell.downloads])),
        ("pins", sum(|cell| [cell.pins.clients.lost, cell.pins.clients.before])),
    ];
    let figures =
        all.map(|(name, [broken, all])| format!("{} {name}", part(broken, all))).join(", ");
    let [broke, whole] = [0, 1].map(|n| all.iter().map(|(_, counts)| counts[n]).sum());
    (!cells.is_empty()).then(|| {
        row(
            "Clients' connections, downloads and pins lost in floods",
            "floods-on-a-network",
            [figures, "-".into(), some(broke, whole)],
        )
    })
}

/// Silent flows, after the flood that moves most of them.
fn moved_row(runs: &[attack::Run]) -> Option<Row> {
    let worst = |system| {
        let runs = runs.iter().filter(|run| run.system == system).map(|run| run.silent);
        runs.max_by_key(|silent| silent.moved)
    };
    let (lb, table) = (worst("lb")?, worst("table of all flows")?);
    let beside = format!("table of all flows: {}", part(table.moved, table.flows));
    let cells = [part(lb.moved, lb.flows), beside, broken(lb.moved, "the table", table.moved)];
    Some(row(
        "Silent flows moved by a flood of SYNs and a change",
        "comparison-with-a-connection-table",
        cells,
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn cell(system: vrrp::System, outage_ms: f64, lost: usize) -> vrrp::Cell {
        let event = || vrrp::Event {
            outage_ms,
            trouble_ms: 0.0,
            lost,
            probes: None,
            downloads: 48,
            broken: 2 * lost,
        };
        let mut cell = vrrp::Cell::new(system, Duration::from_millis(100), vrrp::Fault::Stopped);
        cell.trials.push(vrrp::Trial { fault: event(), end: event(), late_ms: 0.0 });
        cell
    }

    #[test]
    fn a_fault_is_compared_where_both_met_it() {
        let mut cells = vec![cell(vrrp::System::Lb, 10.0, 0)];
        assert_eq!(downloads_row(&cells), None);
        assert_eq!(outage_row(&cells, vrrp::Fault::PowerOff), None);
        let row = outage_row(&cells, vrrp::Fault::Stopped).expect("lb met it");
        assert_eq!([row.lb, row.beside, row.verdict], ["10.0 ms, 0 lost", "-", "-"]);
        cells.push(cell(vrrp::System::Keepalived, 25.0, 3));
        let row = outage_row(&cells, vrrp::Fault::Stopped).expect("both met it");
        assert_eq!(row.beside, "keepalived + HAProxy: 25.0 ms, 3 lost");
        assert_eq!(row.verdict, "outage: 2.5 times less than keepalived + HAProxy; lost: none");
        let row = downloads_row(&cells).expect("both met it");
        assert_eq!(row.beside, "keepalived + HAProxy: 12 of 96");
    }
}
