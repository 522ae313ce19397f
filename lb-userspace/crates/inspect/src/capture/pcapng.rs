//! Writes pcapng (draft-ietf-opsawg-pcapng): sections, interfaces, packets with comments, statistics.
//!
//! ```text
//!  | Block Type 4 | Block Total Length 4 | body | options | Block Total Length 4 |
//!  an option: | Code 2 | Length 2 | value, padded to 4 bytes |, the last one 0, 0
//! ```

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
/// Type of an interface statistics block.
pub(crate) const STATISTICS: u32 = 5;
/// Type of an enhanced packet block.
pub(crate) const PACKET: u32 = 6;
/// Link type of Ethernet.
const ETHERNET: u16 = 1;
/// Option of any block: a comment.
pub(crate) const COMMENT: u16 = 1;

/// Options of a block.
#[derive(Debug, Default)]
struct Options(Vec<u8>);

impl Options {
    fn add(mut self, code: u16, value: &[u8]) -> Self {
        // A text longer than an option can be is cut.
        let value = &value[..value.len().min(usize::from(u16::MAX))];
        self.0.extend(code.to_le_bytes());
        self.0.extend((value.len() as u16).to_le_bytes());
        self.0.extend(value);
        pad(&mut self.0);
        self
    }

    fn end(self) -> Vec<u8> {
        self.add(0, &[]).0
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn block(out: &mut Vec<u8>, kind: u32, body: &[u8], options: Options) {
    let options = options.end();
    let length = (12 + body.len() + options.len()) as u32;
    out.extend(kind.to_le_bytes());
    out.extend(length.to_le_bytes());
    out.extend(body);
    out.extend(options);
    out.extend(length.to_le_bytes());
}

/// The section's header, which a file begins with.
pub(crate) fn section(out: &mut Vec<u8>, application: &str, comment: &str) {
    let mut body = 0x1a2b_3c4d_u32.to_le_bytes().to_vec();
    body.extend(1_u16.to_le_bytes());
    body.extend(0_u16.to_le_bytes());
    body.extend(u64::MAX.to_le_bytes());
    let options = Options::default().add(COMMENT, comment.as_bytes());
    block(out, SECTION, &body, options.add(4, application.as_bytes()));
}

/// An interface; its number is how many were described before.
pub(crate) fn interface(out: &mut Vec<u8>, name: &str, description: &str, snaplen: u32) {
    let mut body = ETHERNET.to_le_bytes().to_vec();
    body.extend(0_u16.to_le_bytes());
    body.extend(snaplen.to_le_bytes());
    // Names are shown with the next block; times are in nanoseconds.
    let options = Options::default().add(2, name.as_bytes()).add(3, description.as_bytes());
    block(out, INTERFACE, &body, options.add(9, &[9]));
}

/// A frame that was saved.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The number of its interface.
    pub interface: u32,
    /// When, in nanoseconds since 1970.
    pub nanos: u64,
    /// Bytes of the frame on the wire.
    pub length: u32,
    /// Its bytes, as far as they were saved.
    pub bytes: &'a [u8],
    /// Its comment.
    pub comment: &'a str,
    /// Whether it came in; otherwise it went out.
    pub inbound: bool,
    /// The same number before and after.
    pub id: u64,
    /// Its XDP action, where that is known.
    pub action: Option<u64>,
}

/// A packet.
pub fn packet(out: &mut Vec<u8>, packet: &Packet<'_>) {
    let mut body = packet.interface.to_le_bytes().to_vec();
    body.extend(((packet.nanos >> 32) as u32).to_le_bytes());
    body.extend((packet.nanos as u32).to_le_bytes());
    body.extend((packet.bytes.len() as u32).to_le_bytes());
    body.extend(packet.length.to_le_bytes());
    body.extend(packet.bytes);
    pad(&mut body);
    let direction: u32 = if packet.inbound { 1 } else { 2 };
    let mut options = Options::default()
        .add(COMMENT, packet.comment.as_bytes())
        .add(2, &direction.to_le_bytes())
        .add(5, &packet.id.to_le_bytes());
    if let Some(action) = packet.action {
        // The verdict's type is 2, of a program at XDP.
        let verdict = [&[2_u8], action.to_le_bytes().as_slice()].concat();
        options = options.add(7, &verdict);
    }
    block(out, PACKET, &body, options);
}

/// The packets of an interface, and those that are not in the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Statistics<'a> {
    /// The number of the interface.
    pub interface: u32,
    /// When the capture began and ended, in nanoseconds since 1970.
    pub from: u64,
    /// See `from`.
    pub to: u64,
    /// Packets that came in.
    pub received: u64,
    /// Packets that were to be saved and are not.
    pub dropped: u64,
    /// Requested packets.
    pub accepted: u64,
    /// Packets that are in the file.
    pub delivered: u64,
    /// The same as text.
    pub comment: &'a str,
}

/// The statistics of an interface, at the end of a capture.
pub(crate) fn statistics(out: &mut Vec<u8>, statistics: &Statistics<'_>) {
    let time =
        |nanos: u64| [((nanos >> 32) as u32).to_le_bytes(), (nanos as u32).to_le_bytes()].concat();
    let mut body = statistics.interface.to_le_bytes().to_vec();
    body.extend(time(statistics.to));
    let options = Options::default()
        .add(COMMENT, statistics.comment.as_bytes())
        .add(2, &time(statistics.from))
        .add(3, &time(statistics.to))
        .add(4, &statistics.received.to_le_bytes())
        .add(5, &statistics.dropped.to_le_bytes())
        .add(6, &statistics.accepted.to_le_bytes())
        .add(8, &statistics.delivered.to_le_bytes());
    block(out, STATISTICS, &body, options);
}

/// Follows a stream of blocks as it passes.
#[derive(Debug, Default)]
pub struct Follower {
    /// Bytes of a block that has not passed whole.
    partial: Vec<u8>,
    /// Packets so far, before and after each counted as one.
    pub packets: u64,
    /// The comment of the statistics, when they have passed.
    pub sum: Option<String>,
}

impl Follower {
    /// Takes the next bytes.
    pub fn follow(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        let word = |at: usize, bytes: &[u8]| {
            let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_le_bytes)
        };
        let mut from = 0;
        while let (Some(kind), Some(length)) =
            (word(from, &self.partial), word(from + 4, &self.partial))
            && length >= 12
            && let Some(block) = self.partial.get(from..from + length as usize)
        {
            match kind {
                PACKET => self.packets += u64::from(is_inbound(block)),
                STATISTICS if self.sum.is_none() => self.sum = comment(block, 20),
                _ => {}
            }
            from += length as usize;
        }
        self.partial.drain(..from);
    }

    /// Whether the passed bytes end with a whole block.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.partial.is_empty()
    }
}

/// The options of a block that begin at `at`.
fn options(block: &[u8], mut at: usize) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let half = |at: usize| {
            let bytes = block.get(at..at + 2)?.try_into().ok()?;
            Some(u16::from_le_bytes(bytes))
        };
        let (code, length) = (half(at)?, usize::from(half(at + 2)?));
        let value = block.get(at + 4..at + 4 + length)?;
        at += 4 + length.next_multiple_of(4);
        (code != 0).then_some((code, value))
    })
}

fn comment(block: &[u8], at: usize) -> Option<String> {
    let (_, text) = options(block, at).find(|(code, _)| *code == COMMENT)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

fn is_inbound(block: &[u8]) -> bool {
    let saved = block.get(20..24).and_then(|bytes| bytes.try_into().ok());
    let saved = saved.map_or(0, u32::from_le_bytes) as usize;
    let mut options = options(block, 28 + saved.next_multiple_of(4));
    options.any(|(code, value)| code == 2 && value.first() == Some(&1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Vec<u8> {
        let mut out = Vec::new();
        section(&mut out, "lbd", "of a test");
        interface(&mut out, "eth0", "as it comes", 256);
        for n in 0..5_u8 {
            let bytes = vec![n; 60 + usize::from(n)];
            let one = Packet {
                interface: 0,
                nanos: 1_700_000_000_123_456_789,
                length: 1_500,
                bytes: &bytes,
                comment: "forwarded",
                inbound: n % 2 == 0,
                id: n.into(),
                action: (n % 2 == 1).then_some(3),
            };
            packet(&mut out, &one);
        }
        let sum = Statistics {
            interface: 0,
            from: 1,
            to: 2,
            received: 9,
            dropped: 1,
            accepted: 4,
            delivered: 3,
            comment: "all in all",
        };
        statistics(&mut out, &sum);
        out
    }

    #[test]
    fn another_reader_finds_the_packets() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), stream()).unwrap();
        let saved = crate::explain::saved::read(file.path(), 100).unwrap();
        assert_eq!(saved.packets.len(), 5);
        assert_eq!(saved.packets[4].bytes, [4; 64]);
        assert_eq!(saved.packets[4].length, 1_500);
        let some = crate::explain::saved::read(file.path(), 3).unwrap();
        assert!(some.more && some.packets.len() == 3);
        // Cut off within the last packet.
        let stream = stream();
        std::fs::write(file.path(), &stream[..stream.len() - 150]).unwrap();
        assert_eq!(crate::explain::saved::read(file.path(), 100).unwrap().packets.len(), 4);
        std::fs::write(file.path(), "no capture at all, but long enough to be one").unwrap();
        let error = crate::explain::saved::read(file.path(), 100).unwrap_err().to_string();
        assert!(error.contains("neither pcap nor pcapng"), "{error}");
    }

    #[test]
    fn a_follower_counts_whatever_the_pieces() {
        let stream = stream();
        for size in [1, 7, 64, stream.len()] {
            let mut follower = Follower::default();
            stream.chunks(size).for_each(|piece| follower.follow(piece));
            assert_eq!((follower.packets, follower.is_whole()), (3, true), "{size}");
            assert_eq!(follower.sum.as_deref(), Some("all in all"));
        }
        let mut follower = Follower::default();
        follower.follow(&stream[..stream.len() - 5]);
        assert!(!follower.is_whole());
    }
}
