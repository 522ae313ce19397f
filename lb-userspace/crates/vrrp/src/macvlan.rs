//! Interfaces with a virtual MAC address (RFC 9568, 7.3): macvlan devices on the routers' interfaces.
//!
//! The addresses of such a router sit on its device, which is made when the router is configured,
//! and goes with it. An XDP program on the interface below sees the frames first: those that it
//! passes on reach the device, as the kernel hands frames to macvlan devices after XDP, native or
//! generic. Frames that it is to forward must have a MAC address that it takes, see
//! [`super::Report::TakeMac`].
//!
//! The kernel answers ARP requests on any interface for any address of the node. With a device of
//! its own for some of them, it must do so only where the address is, or hosts would learn both MAC
//! addresses: `arp_ignore` is 1 for the device and, while there is one, for the interface below if it
//! has no other value. Answers leave by the interface below; when it has to ask for a neighbour first,
//! it must do so from an address of its own, or that neighbour would learn its MAC address for the
//! virtual one: `arp_announce` becomes 2 there in the same way. What a process that died has set there
//! stays, as it can't be distinguished from an operator's setting.
//!
//! As no route leads by the device, `rp_filter` is 2 (loose) for it. A router that is not Active must
//! not take frames to its virtual MAC address (RFC 9568, 6.4.2), which a switch may flood: forwarding
//! is off for the device, so that what is not for an address on it ends there.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use lb_model::router::{Family, Router, RouterKey};
use lb_netlink::{client::Client, interfaces::Interfaces, link::Link};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoMacVlan, LinkAttribute,
        LinkFlags, LinkInfo, LinkMessage, MacVlanMode,
    },
};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

/// What the alias of a device of ours begins with, by which leftovers are known.
const ALIAS: &str = "lbd virtual router ";

/// The virtual MAC address of a router (RFC 9568, 7.3).
#[must_use]
pub const fn mac(key: RouterKey) -> [u8; 6] {
    let family = match key.family {
        Family::V4 => 1,
        Family::V6 => 2,
    };
    [0, 0, 0x5e, 0, family, key.vrid.get()]
}

/// A device that is to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// The interface below it.
    pub below: String,
    /// Whose it is.
    pub key: RouterKey,
}

impl Device {
    /// The device of a router, if it has a virtual MAC address.
    #[must_use]
    pub(crate) fn of(router: &Router) -> Option<Self> {
        let name = router.virtual_mac.as_ref()?.interface.clone();
        Some(Self { name, below: router.interface.clone(), key: router.key })
    }

    fn alias(&self) -> String {
        format!("{ALIAS}{}", self.key)
    }

    fn is(&self, link: &Link, interfaces: &Interfaces) -> bool {
        link.is_macvlan()
            && link.parent().is_some()
            && link.parent() == interfaces.index(&self.below)
            && link.mac == mac(self.key)
    }
}

/// What brings the devices about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Remove a device of ours, by its index and name.
    Remove(u32, String),
    /// Make one on the interface of this index.
    Make(Device, u32),
    /// Set up one that is there.
    SetUp(Device),
    /// There is an interface of that name, which is not lbd's.
    Taken(Device),
}

/// The way from what there is to what is wanted. What is wanted on an interface that is not there
/// waits for that.
#[must_use]
pub fn plan(wanted: &[Device], interfaces: &Interfaces) -> Vec<Step> {
    let ours = |link: &Link| {
        link.is_macvlan() && link.alias.as_ref().is_some_and(|a| a.starts_with(ALIAS))
    };
    let (mut steps, mut rest) = (Vec::new(), Vec::new());
    for (index, link) in &interfaces.links {
        let device = wanted.iter().find(|device| device.name == link.name);
        if ours(link) && !device.is_some_and(|device| device.is(link, interfaces)) {
            steps.push(Step::Remove(*index, link.name.clone()));
        }
    }
    for device in wanted {
        match (interfaces.link(&device.name), interfaces.index(&device.below)) {
            (Some((_, link)), _) if device.is(link, interfaces) => {
                if !link.up || link.alias != Some(device.alias()) {
                    rest.push(Step::SetUp(device.clone()));
                }
            }
            (Some((_, link)), _) if !ours(link) => rest.push(Step::Taken(device.clone())),
            (_, Some(below)) => rest.push(Step::Make(device.clone(), below)),
            (_, None) => {}
        }
    }
    steps.extend(rest);
    steps
}

/// Makes and removes devices. That takes the kernel tens of milliseconds, so the thread that sends
/// advertisements must not do it.
pub(crate) struct Devices {
    client: Client,
    /// Settings of interfaces below that were raised, by interface and setting.
    raised: BTreeMap<(String, &'static str), String>,
}

impl Devices {
    /// In the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// If netlink can't be used.
    pub fn open() -> Result<Self> {
        Ok(Self { client: Client::open()?, raised: BTreeMap::new() })
    }

    /// Makes what is missing of these, and removes what else is ours. What did not work, for people.
    pub(crate) fn bring_about(&mut self, wanted: &[Device]) -> Vec<String> {
        let interfaces = match Interfaces::read(&mut self.client) {
            Ok(interfaces) => interfaces,
            Err(error) => return vec![format!("{error:#}")],
        };
        let mut problems = Vec::new();
        for device in wanted.iter().filter(|device| device.key.family == Family::V4) {
            if let Err(error) = self.raise(&device.below) {
                problems.push(format!("{error:#}"));
            }
        }
        for step in plan(wanted, &interfaces) {
            if let Err(error) = self.take(&step) {
                problems.push(format!("{error:#}"));
            }
        }
        self.lower(wanted);
        problems
    }

    /// Those that are ours, by index and name.
    ///
    /// # Errors
    ///
    /// If netlink can't be used.
    pub(crate) fn ours(&mut self) -> Result<Vec<(u32, String)>> {
        let steps = plan(&[], &Interfaces::read(&mut self.client)?).into_iter();
        let removed = steps.filter_map(|step| match step {
            Step::Remove(index, name) => Some((index, name)),
            _ => None,
        });
        Ok(removed.collect())
    }

    /// Removes all that are ours: their names, and what did not work, for people.
    pub fn remove_all(&mut self) -> (Vec<String>, Vec<String>) {
        let ours = match self.ours() {
            Ok(ours) => ours,
            Err(error) => return (Vec::new(), vec![format!("{error:#}")]),
        };
        let (mut removed, mut problems) = (Vec::new(), Vec::new());
        for (index, name) in ours {
            match self.take(&Step::Remove(index, name.clone())) {
                Ok(()) => removed.push(name),
                Err(error) => problems.push(format!("{error:#}")),
            }
        }
        (removed, problems)
    }

    fn take(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Remove(index, name) => {
                let mut message = LinkMessage::default();
                message.header.index = *index;
                let request = RouteNetlinkMessage::DelLink(message);
                self.client.one(request, 0).with_context(|| format!("remove {name}"))
            }
            Step::Make(device, below) => {
                let request = RouteNetlinkMessage::NewLink(made(device, *below));
                let made = self.client.one(request, NLM_F_CREATE | NLM_F_EXCL);
                made.with_context(|| format!("make {} on {}", device.name, device.below))?;
                self.set_up(device)
            }
            Step::SetUp(device) => self.set_up(device),
            Step::Taken(device) => bail!(
                "{}: there is another interface of that name; give the router's virtual MAC address \
                 another one",
                device.name
            ),
        }
    }

    fn set_up(&mut self, device: &Device) -> Result<()> {
        let context = || format!("set up {}", device.name);
        // No address of its own: what it sends and receives is the virtual router's.
        let bare = vec![
            LinkAttribute::IfName(device.name.clone()),
            LinkAttribute::IfAlias(device.alias()),
            LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
                In6AddrGenMode::None,
            )])]),
        ];
        let mut message = LinkMessage::default();
        message.attributes = bare;
        let refused = self.client.one(RouteNetlinkMessage::SetLink(message), 0);
        if refused.is_err() {
            // A kernel without IPv6 knows no such setting.
            let mut message = LinkMessage::default();
            message.attributes = vec![
                LinkAttribute::IfName(device.name.clone()),
                LinkAttribute::IfAlias(device.alias()),
            ];
            self.client.one(RouteNetlinkMessage::SetLink(message), 0).with_context(context)?;
        }
        for (setting, value) in [("arp_ignore", "1"), ("rp_filter", "2"), ("forwarding", "0")] {
            let path = conf("ipv4", &device.name, setting);
            fs::write(&path, value).with_context(|| format!("{} = {value}", path.display()))?;
        }
        for setting in ["accept_ra", "forwarding"] {
            // Not there without IPv6.
            let _ = fs::write(conf("ipv6", &device.name, setting), "0");
        }
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(device.name.clone())];
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.client.one(RouteNetlinkMessage::SetLink(message), 0).with_context(context)
    }

    /// Sees that an interface answers and requests by ARP only with its own addresses.
    fn raise(&mut self, interface: &str) -> Result<()> {
        for (setting, wanted) in [("arp_ignore", "1"), ("arp_announce", "2")] {
            let path = conf("ipv4", interface, setting);
            let Ok(value) = fs::read_to_string(&path) else { continue };
            let all = fs::read_to_string(conf("ipv4", "all", setting)).unwrap_or_default();
            // The greater of both holds; another value than none is the operator's.
            if [&value, &all].iter().all(|value| matches!(value.trim(), "" | "0")) {
                fs::write(&path, wanted)
                    .with_context(|| format!("{} = {wanted}", path.display()))?;
                self.raised.insert((interface.to_owned(), setting), value);
            }
        }
        Ok(())
    }

    /// Sets back what [`Self::raise`] has set where no device is any more.
    fn lower(&mut self, wanted: &[Device]) {
        self.raised.retain(|(interface, setting), value| {
            let used = wanted.iter().any(|device| device.below == *interface);
            if !used {
                // The interface may be gone, and its settings with it.
                let _ = fs::write(conf("ipv4", interface, setting), value.as_bytes());
            }
            used
        });
    }
}

fn made(device: &Device, below: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(device.name.clone()),
        LinkAttribute::Link(below),
        LinkAttribute::Address(mac(device.key).to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::MacVlan),
            // In the mode `private`, what comes from the device's own MAC address would reach the device
            // alone, and that is what the other nodes send their advertisements from.
            LinkInfo::Data(InfoData::MacVlan(vec![InfoMacVlan::Mode(MacVlanMode::Bridge)])),
        ]),
    ];
    message
}

fn conf(family: &str, interface: &str, setting: &str) -> PathBuf {
    // As one component: a name may have dots, but no slash.
    ["/proc/sys/net", family, "conf", interface, setting].iter().collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU8;

    use lb_netlink::link::LinkKind;

    use super::*;

    fn device(vrid: u8) -> Device {
        let key = RouterKey { family: Family::V4, vrid: NonZeroU8::new(vrid).expect("not 0") };
        Device { name: format!("vrrp.{vrid}"), below: "eth0".into(), key }
    }

    fn interfaces(macvlans: &[(&str, [u8; 6], u32, &str)]) -> Interfaces {
        let mut interfaces = Interfaces::default();
        let eth0 = Link { name: "eth0".into(), up: true, ..Link::default() };
        interfaces.add_link(2, eth0);
        for (n, (name, mac, below, alias)) in (10..).zip(macvlans) {
            let link = Link {
                name: (*name).into(),
                up: true,
                carrier: true,
                mac: *mac,
                alias: (!alias.is_empty()).then(|| (*alias).to_owned()),
                kind: LinkKind::Macvlan { parent: Some(*below) },
                ..Link::default()
            };
            interfaces.add_link(n, link);
        }
        interfaces
    }

    const MAC_51: [u8; 6] = [0, 0, 0x5e, 0, 1, 51];

    #[test]
    fn mac_address_has_family_and_vrid() {
        let vrid = NonZeroU8::new(51).expect("not 0");
        assert_eq!(mac(RouterKey { family: Family::V4, vrid }), MAC_51);
        assert_eq!(mac(RouterKey { family: Family::V6, vrid }), [0, 0, 0x5e, 0, 2, 51]);
    }

    #[test]
    fn device_is_made_where_its_interface_is() {
        let wanted = [device(51)];
        assert_eq!(plan(&wanted, &interfaces(&[])), [Step::Make(device(51), 2)]);
        assert_eq!(plan(&wanted, &Interfaces::default()), []);
    }

    #[test]
    fn device_of_a_predecessor_is_used_again() {
        let wanted = [device(51)];
        let there = interfaces(&[("vrrp.51", MAC_51, 2, "lbd virtual router IPv4 VRID 51")]);
        assert_eq!(plan(&wanted, &there), []);
        assert_eq!(plan(&[], &there), [Step::Remove(10, "vrrp.51".into())]);
    }

    #[test]
    fn device_of_ours_on_another_interface_is_made_anew() {
        let there = interfaces(&[("vrrp.51", MAC_51, 3, "lbd virtual router IPv4 VRID 51")]);
        let steps = [Step::Remove(10, "vrrp.51".into()), Step::Make(device(51), 2)];
        assert_eq!(plan(&[device(51)], &there), steps);
    }

    #[test]
    fn device_of_somebody_else_is_left_alone() {
        let there = interfaces(&[("vrrp.51", [2, 0, 0, 0, 0, 1], 2, "")]);
        assert_eq!(plan(&[device(51)], &there), [Step::Taken(device(51))]);
        assert_eq!(plan(&[], &there), []);
    }
}
