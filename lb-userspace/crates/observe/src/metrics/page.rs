//! Families of metrics, written one after the other.
//!
//! A family without samples is left out, so that no format has a head without samples.

use std::fmt;

use lb_api::check_status::{BOUNDS_US, Histogram};
use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

/// The name of a family, and its help.
#[derive(Debug)]
pub(super) struct Family {
    /// Its name, without unit and without `_total`.
    name: &'static str,
    unit: Option<Unit>,
    help: &'static str,
}

impl Family {
    /// A family without a unit.
    pub(super) const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, unit: None, help }
    }

    pub(super) const fn bytes(name: &'static str, help: &'static str) -> Self {
        Self { name, unit: Some(Unit::Bytes), help }
    }

    pub(super) const fn seconds(name: &'static str, help: &'static str) -> Self {
        Self { name, unit: Some(Unit::Seconds), help }
    }
}

/// Labels with their values.
pub(super) type Labels<'s, const N: usize> = [(&'static str, &'s str); N];

/// The output of the families.
#[derive(Debug)]
pub(super) struct Page<'a>(pub(super) DescriptorEncoder<'a>);

impl Page<'_> {
    /// A counter without labels.
    pub(super) fn counter(&mut self, family: Family, value: u64) -> fmt::Result {
        let Family { name, unit, help } = &family;
        self.0
            .encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    /// A counter that is no whole number.
    pub(super) fn counter_f64(&mut self, family: Family, value: f64) -> fmt::Result {
        let Family { name, unit, help } = &family;
        self.0
            .encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    pub(super) fn counters<'s, const N: usize>(
        &mut self,
        family: Family,
        rows: impl IntoIterator<Item = (Labels<'s, N>, u64)>,
    ) -> fmt::Result {
        let mut rows = rows.into_iter().peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let Family { name, unit, help } = &family;
        let mut metric =
            self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        for (labels, value) in rows {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
        Ok(())
    }

    /// A gauge without labels.
    pub(super) fn gauge(&mut self, family: Family, value: impl EncodeGaugeValue) -> fmt::Result {
        let Family { name, unit, help } = &family;
        self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?.encode_gauge(&value)
    }

    pub(super) fn gauges<'s, const N: usize, V: EncodeGaugeValue>(
        &mut self,
        family: Family,
        rows: impl IntoIterator<Item = (Labels<'s, N>, V)>,
    ) -> fmt::Result {
        let mut rows = rows.into_iter().peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let Family { name, unit, help } = &family;
        let mut metric = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        for (labels, value) in rows {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// Constant information, in labels.
    pub(super) fn infos<'s, const N: usize>(
        &mut self,
        family: Family,
        rows: impl IntoIterator<Item = Labels<'s, N>>,
    ) -> fmt::Result {
        let mut rows = rows.into_iter().peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let Family { name, help, .. } = &family;
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Info)?;
        rows.try_for_each(|labels| metric.encode_info(&labels))
    }

    /// Durations by size, without labels.
    pub(super) fn histogram(&mut self, family: Family, histogram: &Histogram) -> fmt::Result {
        let Family { name, unit, help } = &family;
        let (sum, count, buckets) = parts(histogram);
        self.0
            .encode_descriptor(name, help, unit.as_ref(), MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    /// Durations by size, each of them by [`COARSE_US`] alone.
    pub(super) fn histograms<'s, const N: usize>(
        &mut self,
        family: Family,
        rows: impl IntoIterator<Item = (Labels<'s, N>, &'s Histogram)>,
    ) -> fmt::Result {
        let mut rows = rows.into_iter().peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let Family { name, unit, help } = &family;
        let mut metric =
            self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Histogram)?;
        for (labels, histogram) in rows {
            let buckets = coarse(histogram);
            let (sum, count) = (seconds(histogram.sum_us), histogram.count());
            metric
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

const BUCKETS: usize = BOUNDS_US.len() + 1;

/// Sum in seconds, count, and buckets by their upper bounds in seconds.
fn parts(histogram: &Histogram) -> (f64, u64, [(f64, u64); BUCKETS]) {
    let mut buckets = [(f64::INFINITY, 0); BUCKETS];
    for (bucket, (at, count)) in buckets.iter_mut().zip(histogram.buckets.iter().enumerate()) {
        *bucket = (BOUNDS_US.get(at).map_or(f64::INFINITY, |&bound| seconds(bound)), *count);
    }
    (seconds(histogram.sum_us), histogram.count(), buckets)
}

/// The bounds of histograms of which there are as many as backends, in microseconds: each costs a time
/// series in the scraper and a line in every scrape.
const COARSE_US: [u64; 6] = [1_000, 5_000, 25_000, 100_000, 500_000, 1_000_000];

/// Coarser buckets by their upper bounds in seconds.
fn coarse(histogram: &Histogram) -> [(f64, u64); COARSE_US.len() + 1] {
    let mut buckets = [(f64::INFINITY, 0); COARSE_US.len() + 1];
    for (bucket, bound) in buckets.iter_mut().zip(COARSE_US) {
        bucket.0 = seconds(bound);
    }
    for (at, count) in histogram.buckets.iter().enumerate() {
        let bound = BOUNDS_US.get(at).copied().unwrap_or(u64::MAX);
        buckets[COARSE_US.partition_point(|&coarse| coarse < bound)].1 += count;
    }
    buckets
}

/// Microseconds in seconds.
pub(super) fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// A yes or no as a gauge's value.
pub(super) fn truth(is_so: bool) -> u32 {
    is_so.into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn coarser_buckets_count_what_the_finer_ones_do() {
        assert!(COARSE_US.iter().all(|bound| BOUNDS_US.contains(bound)), "none is cut in two");
        let mut histogram = Histogram::default();
        for micros in [90, 1_000, 1_001, 5_000, 90_000, 500_000, 700_000, 2_000_000] {
            histogram.add(Duration::from_micros(micros));
        }
        let counts = coarse(&histogram).map(|(_, count)| count);
        assert_eq!(counts, [2, 2, 0, 1, 1, 1, 1]);
        assert_eq!(coarse(&histogram)[4].0, 0.5);
        assert_eq!(coarse(&histogram)[6].0, f64::INFINITY);
    }
}
