//! Captures that were saved: pcap and pcapng, of Ethernet or of interfaces whose packets begin with their IP header.

use std::{fs::File, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::packet::ethernet;
use pcap_parser::{Block, Linktype, PcapBlockOwned, PcapError, create_reader};

use super::Snap;

/// Bytes that are read at a time, and of the longest block that is taken.
const BUFFER: usize = 1 << 16;
const LONGEST: usize = 1 << 22;

/// A capture's first packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// The packets, in order.
    pub packets: Vec<Snap>,
    /// Whether there are more.
    pub more: bool,
    /// Packets that begin with anything else, which were left out.
    pub foreign: usize,
}

/// A packet that begins with its IP header, behind an Ethernet header of zeros.
fn behind_zeros(packet: &[u8]) -> Vec<u8> {
    let kind = match packet.first().map(|first| first >> 4) {
        Some(4) => ethernet::IPV4,
        Some(6) => ethernet::IPV6,
        _ => 0,
    };
    [&[0; 12], &kind.to_be_bytes()[..], packet].concat()
}

/// Reads at most `limit` packets of a file.
///
/// # Errors
///
/// It can't be read, is no capture, or is damaged before that many packets.
pub fn read(path: &Path, limit: usize) -> Result<Saved> {
    let context = || format!("read {}", path.display());
    let file = File::open(path).with_context(context)?;
    let mut reader = match create_reader(BUFFER, file) {
        Ok(reader) => reader,
        Err(PcapError::Eof) => return Ok(Saved::default()),
        Err(PcapError::HeaderNotRecognized) => {
            bail!("{} is neither pcap nor pcapng", path.display())
        }
        Err(error) => bail!("read {}: {error}", path.display()),
    };
    let mut saved = Saved::default();
    // Link types of the section's interfaces.
    let mut links = Vec::new();
    let mut capacity = BUFFER;
    // The rest when more was read: the same length again is the end.
    let mut left = usize::MAX;
    loop {
        match reader.next() {
            Ok((offset, block)) => {
                left = usize::MAX;
                if let Some((link, data, length)) = packet(&block, &mut links)? {
                    if saved.packets.len() == limit {
                        saved.more = true;
                        return Ok(saved);
                    }
                    match link {
                        Linktype::ETHERNET => {
                            let bytes = data.to_vec();
                            let length = (length as usize).max(bytes.len());
                            saved.packets.push(Snap { bytes, length });
                        }
                        Linktype::RAW | Linktype::IPV4 | Linktype::IPV6 => {
                            let bytes = behind_zeros(data);
                            let length = (length as usize + ethernet::LEN).max(bytes.len());
                            saved.packets.push(Snap { bytes, length });
                        }
                        _ => saved.foreign += 1,
                    }
                }
                reader.consume(offset);
            }
            Err(PcapError::Eof) => return Ok(saved),
            Err(PcapError::Incomplete(_) | PcapError::UnexpectedEof) => {
                let have = reader.data().len();
                // A capture that was cut off, as by a full disk, ends within a packet.
                if reader.reader_exhausted() && have == left {
                    return Ok(saved);
                }
                left = have;
                reader
                    .refill()
                    .map_err(|error| anyhow::anyhow!("{error}"))
                    .with_context(context)?;
            }
            Err(PcapError::BufferTooSmall) => {
                capacity *= 2;
                ensure!(
                    capacity <= LONGEST && reader.grow(capacity),
                    "{} has a block of more than {LONGEST} bytes",
                    path.display()
                );
                reader
                    .refill()
                    .map_err(|error| anyhow::anyhow!("{error}"))
                    .with_context(context)?;
            }
            Err(error) => bail!("{} is damaged: {error}", path.display()),
        }
    }
}

/// The packet of a block, if it has one: link type, bytes, length on the wire.
fn packet<'a>(
    block: &'a PcapBlockOwned<'_>,
    links: &mut Vec<Linktype>,
) -> Result<Option<(Linktype, &'a [u8], u32)>> {
    let saved = |data: &'a [u8], length: u32| data.get(..length as usize).unwrap_or(data);
    Ok(match block {
        PcapBlockOwned::LegacyHeader(header) => {
            *links = vec![header.network];
            None
        }
        PcapBlockOwned::Legacy(packet) => {
            let link = links.first().copied().context("a packet before the header")?;
            Some((link, saved(packet.data, packet.caplen), packet.origlen))
        }
        PcapBlockOwned::NG(Block::SectionHeader(_)) => {
            links.clear();
            None
        }
        PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
            links.push(interface.linktype);
            None
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
            let link = links.get(packet.if_id as usize).copied();
            let link = link.context("a packet of an interface that is not described")?;
            Some((link, saved(packet.data, packet.caplen), packet.origlen))
        }
        PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
            let link = links.first().copied().context("a packet before any interface")?;
            Some((link, saved(packet.data, packet.origlen), packet.origlen))
        }
        PcapBlockOwned::NG(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A pcap file (draft-ietf-opsawg-pcap) of packets with this link type.
    fn file(link: u32, packets: &[&[u8]]) -> Result<tempfile::NamedTempFile> {
        let mut bytes: Vec<u8> =
            [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, link].map(u32::to_le_bytes).concat();
        for packet in packets {
            let length = packet.len() as u32;
            bytes.extend([1, 0, length, length].map(u32::to_le_bytes).concat());
            bytes.extend_from_slice(packet);
        }
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(&bytes)?;
        Ok(file)
    }

    #[test]
    fn packets_of_an_interface_without_ethernet_header_get_one_of_zeros() -> Result<()> {
        const RAW: u32 = 101;
        const LOOP: u32 = 108;
        let packets: [&[u8]; 2] = [&[0x45; 20], &[0x60; 40]];
        let saved = read(file(RAW, &packets)?.path(), 9)?;
        for (snap, (packet, kind)) in
            saved.packets.iter().zip(packets.iter().zip([[8, 0], [0x86, 0xdd]]))
        {
            assert_eq!(snap.bytes, [&[0; 12], &kind[..], packet].concat());
            assert_eq!(snap.length, packet.len() + 14);
        }
        assert_eq!((saved.packets.len(), saved.foreign), (2, 0));
        assert_eq!(read(file(LOOP, &packets)?.path(), 9)?.foreign, 2);
        Ok(())
    }
}
