//! The XDP program of an interface, by netlink: bpf(2) knows only links, and programs are
//! attached without one too.

use std::{collections::BTreeSet, io};

use anyhow::{Context as _, Result, bail, ensure};
use lb_netlink::{LinkLayer, client::Client, link::Link};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage, LinkXdp},
};

use super::sys::program::{ProgramInfo, open_program};

/// The XDP program of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Id of the program.
    pub program: u32,
    /// Whether the network stack runs it, not the driver.
    pub generic: bool,
}

/// The index of an interface of the thread's network namespace.
pub(crate) fn ifindex(name: &str) -> Result<u32> {
    let path = std::ffi::CString::new(name).context("interface name")?;
    // SAFETY: the name ends in a zero byte.
    let index = unsafe { libc::if_nametoindex(path.as_ptr()) };
    ensure!(index != 0, "interface {name}: there is none of this name; `ip link` lists them");
    Ok(index)
}

fn link(ifindex: u32) -> Result<Link> {
    let mut link = LinkMessage::default();
    link.header.index = ifindex;
    match request(RouteNetlinkMessage::GetLink(link), 0)? {
        Some(RouteNetlinkMessage::NewLink(link)) => Ok(Link::of(&link).1),
        Some(_) => bail!("netlink answered with something else than a link"),
        None => bail!("netlink answered without a link"),
    }
}

/// What frames of an interface begin with.
pub(crate) fn layer(ifindex: u32) -> Result<LinkLayer> {
    Ok(link(ifindex)?.layer)
}

/// The program of an interface, if it has one.
pub(crate) fn attached(ifindex: u32) -> Result<Option<Attached>> {
    let link = link(ifindex)?;
    Ok(link.xdp_prog_id.map(|program| Attached { program, generic: link.xdp_generic }))
}

/// Takes a program off an interface to which it was attached without a link.
pub(crate) fn remove(ifindex: u32, attached: Attached) -> Result<()> {
    // From linux/if_link.h.
    const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
    let mode = if attached.generic { XDP_FLAGS_SKB_MODE } else { XDP_FLAGS_DRV_MODE };
    let mut link = LinkMessage::default();
    link.header.index = ifindex;
    link.attributes.push(LinkAttribute::Xdp(vec![LinkXdp::Fd(-1), LinkXdp::Flags(mode)]));
    request(RouteNetlinkMessage::SetLink(link), 0)?;
    Ok(())
}

/// Makes a request; the answer, if it has one.
pub(crate) fn request(
    message: RouteNetlinkMessage,
    flags: u16,
) -> Result<Option<RouteNetlinkMessage>> {
    Ok(Client::open()?.request(message, flags)?.into_iter().next())
}

/// Whether the kernel has refused a request with one of these error numbers.
pub(crate) fn is_error(error: &anyhow::Error, numbers: &[i32]) -> bool {
    let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    number.is_some_and(|number| numbers.contains(&number))
}

/// A loaded program, found by its number.
fn program(id: u32) -> io::Result<ProgramInfo> {
    ProgramInfo::of(&open_program(id)?)
}

/// The ids of the maps that a loaded program has. It is one that has no pin.
pub(crate) fn program_maps(id: u32) -> Result<BTreeSet<u32>> {
    let program = program(id).with_context(|| {
        format!(
            "open program {id} by its number, as it has no pin; the kernel wants CAP_SYS_ADMIN for \
             that, and `lbd --prepare`, run as root, makes the pin"
        )
    })?;
    Ok(program.maps)
}

/// A loaded program as people know it.
pub(crate) fn named(id: u32) -> String {
    match program(id) {
        Ok(ProgramInfo { name: Some(name), .. }) => format!("the program `{name}` (id {id})"),
        // It has none, or one has to be root to see it.
        _ => format!("the program with id {id}"),
    }
}
