//! Frames that were dropped after the program had sent them, as the kernel's tracepoints report them.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, PerCpuHashMap, PerCpuValues},
    programs::RawTracePoint,
};
use lb_common::tx_errors::{Key, Reason};

use super::struct_offsets::Types;
use crate::objects;

const COUNTS: &str = "TX_ERRORS";
/// The programs, each with its tracepoint's name less `xdp_`.
const PROGRAMS: [&str; 4] = ["redirect_err", "devmap_xmit", "exception", "bulk_tx"];

/// Frames of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxError {
    /// Index of the interface that they came by.
    pub ingress: u32,
    /// Index of the one that they were to leave by.
    pub egress: u32,
    /// What the program had asked for.
    pub reason: Reason,
    /// The number of the error; 0: none was named.
    pub errno: i32,
    /// How many.
    pub frames: u64,
}

/// The programs on the tracepoints, until this is dropped.
pub struct TxErrors {
    counts: Mutex<PerCpuHashMap<MapData, Key, u64>>,
    _object: Ebpf,
}

impl std::fmt::Debug for TxErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TxErrors")
    }
}

impl TxErrors {
    /// Begins to count, for the interfaces of the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// If the kernel has no type information (`CONFIG_DEBUG_INFO_BTF`), or refuses the programs: they need `CAP_BPF` and
    /// `CAP_PERFMON`, and that lockdown does not deny reading the kernel's memory.
    pub fn attach() -> Result<Self> {
        let types = Types::of_kernel()?;
        let ifindex = types.offset("net_device", "ifindex")?;
        let net = types.offset("net_device", "nd_net")?;
        let inum = types.offset("net", "ns")? + types.offset("ns_common", "inum")?;
        let namespace =
            fs::metadata("/proc/thread-self/ns/net").context("the network namespace")?;
        let namespace = namespace.ino() as u32;
        let mut object = EbpfLoader::new()
            .override_global("DEVICE_IFINDEX", &ifindex, true)
            .override_global("DEVICE_NET", &net, true)
            .override_global("NET_INUM", &inum, true)
            .override_global("NAMESPACE", &namespace, true)
            .load(objects::TX_ERRORS)
            .context("load the object for tracepoints")?;
        for name in PROGRAMS {
            let tracepoint = format!("xdp_{name}");
            let program = object.program_mut(name).with_context(|| format!("no program {name}"))?;
            let program: &mut RawTracePoint = program.try_into()?;
            program.load().with_context(|| format!("load the program for {tracepoint}"))?;
            program.attach(&tracepoint).with_context(|| format!("attach to {tracepoint}"))?;
        }
        let counts = object.take_map(COUNTS).with_context(|| format!("no map {COUNTS}"))?;
        let counts = Mutex::new(counts.try_into().with_context(|| COUNTS.to_owned())?);
        Ok(Self { counts, _object: object })
    }

    fn counts(&self) -> MutexGuard<'_, PerCpuHashMap<MapData, Key, u64>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was dropped since [`Self::attach`], of all interfaces that were not forgotten.
    ///
    /// # Errors
    ///
    /// If the map can't be read.
    pub fn read(&self) -> Result<Vec<TxError>> {
        let mut all = Vec::new();
        for entry in self.counts().iter() {
            let (key, frames) = entry.context(COUNTS)?;
            all.extend(error_of(key, &frames));
        }
        Ok(all)
    }

    /// Makes the room free that the interfaces with these indexes take; what they had lost.
    ///
    /// # Errors
    ///
    /// If the map can't be read.
    pub fn forget(&self, indexes: &BTreeSet<u32>) -> Result<Vec<TxError>> {
        let mut forgotten = Vec::new();
        let mut counts = self.counts();
        let keys: Vec<Key> = counts.keys().collect::<Result<_, _>>().context(COUNTS)?;
        let is_theirs = |key: &Key| indexes.contains(&key.ingress) || indexes.contains(&key.egress);
        for key in keys.into_iter().filter(is_theirs) {
            // What can't be deleted is still there to be read.
            let Ok(frames) = counts.get(&key, 0) else { continue };
            if counts.remove(&key).is_ok() {
                forgotten.extend(error_of(key, &frames));
            }
        }
        Ok(forgotten)
    }
}

fn error_of(key: Key, frames: &PerCpuValues<u64>) -> Option<TxError> {
    let Key { ingress, egress, error, reason } = key;
    let reason = Reason::ALL.into_iter().find(|one| *one as u32 == reason)?;
    Some(TxError { ingress, egress, reason, errno: -error, frames: frames.iter().sum() })
}
