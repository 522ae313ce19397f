//! The chapter of `bench failover`.

use anyhow::Result;
use kit::reports::failover::{Fault, Report};
use minijinja::{Value, context};
use serde_json::Value as Json;

use super::{Plots, typed};

/// Cells by fault.
pub fn prepare(results: &Json, _: &mut Plots) -> Result<Value> {
    let report: Report = typed(results)?;
    let fault = |fault: Fault| {
        let cells: Vec<_> = report.cells.iter().filter(|cell| cell.fault == fault).collect();
        (!cells.is_empty()).then(|| context! { title => fault.describe(), cells })
    };
    let faults: Vec<_> = Fault::ALL.into_iter().filter_map(fault).collect();
    Ok(context! { faults })
}
