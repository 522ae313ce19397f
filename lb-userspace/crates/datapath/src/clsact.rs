//! tc programs before Linux 6.6, which has links for them: filters of the qdisc `clsact`, at the ingress.
//!
//! A filter outlives the process that made it. It is found again by its name, priority and handle, and the kernel replaces its
//! program without a gap (`cls_bpf_change()` in net/sched/cls_bpf.c). The qdisc stays when the filter goes: others may
//! have filters there.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use anyhow::{Context as _, Result};
use lb_model::settings::TcOrder;
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::kernel_link::{is_error, request};

/// The handle of the filter within its priority: `lb`.
const HANDLE: TcHandle = TcHandle { major: 0, minor: 0x6c62 };
/// The filter's name, as `tc filter show` has it.
const NAME: &str = "lb";
/// `ETH_P_ALL`, in network order as the kernel wants it.
const ALL_PROTOCOLS: u32 = 0x0003_u16.to_be() as u32;

/// The smallest priority runs first.
const fn priority(order: TcOrder) -> u32 {
    match order {
        TcOrder::First => 1,
        TcOrder::Last => 0xfffe,
    }
}

/// The filter at an interface, with these attributes.
fn filter(ifindex: u32, order: TcOrder, attributes: Vec<TcAttribute>) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = ifindex as i32;
    message.header.handle = HANDLE;
    message.header.parent =
        TcHandle { major: TcHandle::CLSACT.major, minor: TcHandle::MIN_INGRESS };
    message.header.info = priority(order) << 16 | ALL_PROTOCOLS;
    message.attributes = attributes;
    message
}

fn kind() -> TcAttribute {
    TcAttribute::Kind(TcFilterBpf::KIND.into())
}

/// Where the filter of an interface is, and the id of its program.
pub(crate) fn found(ifindex: u32) -> Result<Option<(TcOrder, u32)>> {
    for order in [TcOrder::First, TcOrder::Last] {
        let asked = filter(ifindex, order, vec![kind()]);
        let answer = match request(RouteNetlinkMessage::GetTrafficFilter(asked), 0) {
            Ok(answer) => answer,
            // Without a qdisc, a filter of this priority, or one with this handle.
            Err(error) if is_error(&error, &[libc::EINVAL, libc::ENOENT, libc::ENODEV]) => continue,
            Err(error) => return Err(error.context("look for the filter of clsact")),
        };
        let Some(RouteNetlinkMessage::NewTrafficFilter(found)) = answer else { continue };
        let options = found.attributes.iter().filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        });
        let (mut is_ours, mut id) = (false, None);
        for option in options.flatten() {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => is_ours = name == NAME,
                TcOption::Bpf(TcFilterBpfOption::ProgId(program)) => id = Some(*program),
                _ => {}
            }
        }
        // Another program's filter may have the handle.
        if !is_ours {
            continue;
        }
        return Ok(id.map(|id| (order, id)));
    }
    Ok(None)
}

/// Puts a program at an interface: in place of that of the filter, or by a new one.
pub(crate) fn put(ifindex: u32, order: TcOrder, program: BorrowedFd<'_>) -> Result<()> {
    let there = found(ifindex)?;
    add_qdisc(ifindex)?;
    let options = [
        TcFilterBpfOption::ProgFd(program.as_raw_fd() as u32),
        TcFilterBpfOption::ProgName(NAME.into()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    let options = TcAttribute::Options(options.map(TcOption::Bpf).into());
    let new = filter(ifindex, order, vec![kind(), options]);
    let is_there = there.is_some_and(|(at, _)| at == order);
    let flags = if is_there { 0 } else { NLM_F_CREATE | NLM_F_EXCL };
    request(RouteNetlinkMessage::NewTrafficFilter(new), flags)
        .context("attach the program as a filter of clsact")?;
    // It has changed its place.
    if let Some((before, _)) = there.filter(|_| !is_there) {
        delete(ifindex, before)?;
    }
    Ok(())
}

/// Takes the filter off an interface, if it has one.
pub(crate) fn remove(ifindex: u32) -> Result<()> {
    match found(ifindex)? {
        Some((order, _)) => delete(ifindex, order),
        None => Ok(()),
    }
}

fn delete(ifindex: u32, order: TcOrder) -> Result<()> {
    let filter = filter(ifindex, order, vec![kind()]);
    request(RouteNetlinkMessage::DelTrafficFilter(filter), 0)
        .context("remove the filter of clsact")?;
    Ok(())
}

fn add_qdisc(ifindex: u32) -> Result<()> {
    let mut message = TcMessage::default();
    message.header.index = ifindex as i32;
    message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    message.header.parent = TcHandle::CLSACT;
    message.attributes = vec![TcAttribute::Kind("clsact".into())];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    match request(RouteNetlinkMessage::NewQueueDiscipline(message), flags) {
        Err(error) if !is_error(&error, &[libc::EEXIST]) => Err(error.context(
            "add the qdisc clsact; the kernel needs CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF, as every \
             distribution's has",
        )),
        _ => Ok(()),
    }
}
