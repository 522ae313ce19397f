//! Captures that were saved: pcap and pcapng, of Ethernet.

use std::{fs::File, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
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
    /// Packets that are not of Ethernet, which were left out.
    pub foreign: usize,
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
    // What was left when more was asked for: as much again is the end.
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
