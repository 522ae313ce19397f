//! The balancer of these tests, and its program and maps as the kernel has them.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    TestRun as _,
    maps::{Array, HashMap as BpfHashMap, Map, MapData, MapInfo, lpm_trie::LpmTrie},
    programs::{self, SchedClassifier, TcAttachType, TestRunOptions, Xdp},
};
use aya_obj::programs::XdpAttachType;
use kit::{
    balancer::{Balancer, Service},
    lab::{INTERFACE, Lab, Options},
};
use lb_inspect::explain::{Explained, Flags, Made, Packet, Payload, Questions};
use lb_model::desired::Protocol;
use zerocopy::IntoBytes as _;

/// The VIP that everything here is sent to.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);

/// A lab whose balancer has a TCP service by either mode, and a UDP service of each policy but quic.
pub fn testbed() -> Result<(Lab, Balancer)> {
    testbed_at("xdp")
}

/// The same with the program at this hook: `attach` of the configuration.
pub fn testbed_at(attach: &'static str) -> Result<(Lab, Balancer)> {
    let lab = Lab::new(&Options { attach, ..Options::default() })?;
    let backends = || -> Vec<IpAddr> { lab.webs.iter().map(|web| web.host.v4.into()).collect() };
    let udp = |name: &str, port, policy: &str| Service {
        protocol: "udp",
        ..Service::tcp(name, VIP, port, "dsr", backends()).with(&format!("udp = \"{policy}\""))
    };
    let services = [
        Service::tcp("web", VIP, 80, "dsr", backends()),
        Service::tcp("tunnel", VIP, 81, "ipip", backends()),
        udp("dns", 53, "oneshot"),
        udp("game", 54, "tracked"),
    ];
    let balancer = Balancer::start(&lab, &services)?;
    Ok((lab, balancer))
}

/// A packet of the client with this number to a port of the VIP.
pub fn made(protocol: Protocol, number: u32, port: u16, flags: Flags) -> Packet {
    let client = Ipv4Addr::from(0xc633_6400 | number >> 8 & 0xff);
    let source = SocketAddr::new(client.into(), 10_000 + (number & 0xff) as u16 * 97);
    Packet::Made(Box::new(Made {
        protocol,
        source,
        destination: SocketAddr::new(VIP.into(), port),
        flags,
        sequence: number,
        ttl: 64,
        length: None,
        vlans: Vec::new(),
        payload: Payload::Plain,
        error: None,
    }))
}

/// Sends an explanation request to the daemon.
pub fn explain(balancer: &Balancer, packets: Vec<Packet>, verify: bool) -> Result<Vec<Explained>> {
    let questions =
        Questions { packets, interface: None, cpu: 0, any_mac: false, again: false, verify };
    let body = serde_json::to_string(&questions)?;
    let mut stream = UnixStream::connect(balancer.socket()).context("connect to lbd")?;
    // As lbctl does where the kernel verifies a program for it.
    stream.set_read_timeout(Some(Duration::from_secs(180)))?;
    let length = body.len();
    write!(
        stream,
        "POST /v1/explain HTTP/1.1\r\nHost: lbd\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a head")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "lbd answered: {head}: {body}");
    serde_json::from_str(body).context("read what is explained")
}

/// The program on the balancer's interface, by its id: that of XDP, or else the first of tc.
pub fn attached(lab: &Lab) -> Result<u32> {
    let link = lab.balancer.namespace.ip(&format!("link show dev {INTERFACE}"))?;
    if let Some(id) = link.split("prog/xdp id ").nth(1) {
        return Ok(id.split_whitespace().next().context("an id")?.parse()?);
    }
    let query = || SchedClassifier::query_tcx(INTERFACE, TcAttachType::Ingress);
    let (_, programs) = lab.balancer.namespace.enter(query)??;
    Ok(programs.first().with_context(|| format!("no program: {link}"))?.id())
}

/// The program itself, over the maps that forwarding uses.
pub fn program(lab: &Lab) -> Result<Xdp> {
    let id = attached(lab)?;
    let mut all = programs::loaded_programs().filter_map(Result::ok);
    let info = all.find(|info| info.id() == id).context("the program is gone")?;
    Ok(Xdp::from_program_info(info, "balance".into(), XdpAttachType::Interface)?)
}

/// Lets the program that packets meet decide on a frame, with all that it writes.
pub fn meet(lab: &Lab, program: &Xdp, frame: &[u8]) -> Result<(&'static str, Vec<u8>)> {
    let ifindex = lab.balancer.namespace.enter(|| nix::net::if_::if_nametoindex(INTERFACE))??;
    let context = [0, frame.len() as u32, 0, ifindex, 0, 0_u32];
    let mut out = vec![0; frame.len() + 256];
    let result = lab.balancer.namespace.enter(|| {
        program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(context.as_bytes()),
            ..TestRunOptions::new()
        })
    })??;
    out.truncate(result.data_size_out as usize);
    let action = match result.return_value {
        1 => "XDP_DROP",
        2 => "XDP_PASS",
        3 => "XDP_TX",
        4 => "XDP_REDIRECT",
        _ => "XDP_ABORTED",
    };
    Ok((action, out))
}

pub fn unhex(text: &str) -> Result<Vec<u8>> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16);
    Ok((0..text.len()).step_by(2).map(byte).collect::<Result<_, _>>()?)
}

/// The bytes of every map, but for the counters of reasons: frames of no service come all the
/// time.
pub fn dump(balancer: &Balancer) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut dump = BTreeMap::new();
    for folder in fs::read_dir(balancer.pins())? {
        let folder = folder?.path();
        let name = folder.file_name().context("a name")?.to_string_lossy().into_owned();
        if name.strip_prefix('v').is_none_or(|number| number.parse::<u32>().is_err()) {
            continue;
        }
        for map in fs::read_dir(&folder)? {
            let path = map?.path();
            let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
            // A program is no map.
            if matches!(name.as_str(), "VERDICTS" | "RINGS") || name.starts_with("program-") {
                continue;
            }
            let info = MapInfo::from_pin(&path)?;
            let map = || MapData::from_pin(&path);
            let bytes = match (info.map_type()? as u32, info.key_size(), info.value_size()) {
                (2, _, 4) => array::<4>(map()?)?,
                (2, _, 8) => array::<8>(map()?)?,
                (2, _, 16) => array::<16>(map()?)?,
                (2, _, 32) => array::<32>(map()?)?,
                (2, _, 64) => array::<64>(map()?)?,
                (2, _, 88) => array::<88>(map()?)?,
                (2, _, 128) => array::<128>(map()?)?,
                (1, 8, 4) => hash::<8, 4>(Map::HashMap(map()?))?,
                (1, 8, 64) => hash::<8, 64>(Map::HashMap(map()?))?,
                (1, 20, 64) => hash::<20, 64>(Map::HashMap(map()?))?,
                (1, 16, 4) => hash::<16, 4>(Map::HashMap(map()?))?,
                (1, 20, 4) => hash::<20, 4>(Map::HashMap(map()?))?,
                (1, 24, 8) => hash::<24, 8>(Map::HashMap(map()?))?,
                (1, 24, 64) => hash::<24, 64>(Map::HashMap(map()?))?,
                (9, 24, 8) => hash::<24, 8>(Map::LruHashMap(map()?))?,
                (9, 20, 16) => hash::<20, 16>(Map::LruHashMap(map()?))?,
                (9, 24, 16) => hash::<24, 16>(Map::LruHashMap(map()?))?,
                (9, 12, 8) => hash::<12, 8>(Map::LruHashMap(map()?))?,
                (9, 40, 12) => hash::<40, 12>(Map::LruHashMap(map()?))?,
                (11, 20, 4) => trie::<16>(map()?)?,
                (11, 12, 4) => trie::<8>(map()?)?,
                (11, 28, 4) => trie::<24>(map()?)?,
                shape => anyhow::bail!("{name}: unknown shape {shape:?}"),
            };
            dump.insert(name, bytes);
        }
        let rings = MapData::from_pin(folder.join("RINGS"))?;
        let rings: aya::maps::ArrayOfMaps<MapData, Array<MapData, u64>> =
            Map::ArrayOfMaps(rings).try_into()?;
        for id in 0..8 {
            let Ok(ring) = rings.get(&id, 0) else { continue };
            let words = ring.iter().collect::<Result<Vec<u64>, _>>()?;
            dump.insert(format!("ring {id}"), words.as_bytes().to_vec());
        }
    }
    ensure!(dump.len() > 20, "only {} maps were found", dump.len());
    Ok(dump)
}

fn array<const N: usize>(map: MapData) -> Result<Vec<u8>> {
    let map: Array<MapData, [u8; N]> = Map::Array(map).try_into()?;
    Ok(map.iter().collect::<Result<Vec<_>, _>>()?.concat())
}

/// The entries of a longest-prefix trie whose keys have so many bytes behind their length.
fn trie<const K: usize>(map: MapData) -> Result<Vec<u8>> {
    let map: LpmTrie<MapData, [u8; K], [u8; 4]> = Map::LpmTrie(map).try_into()?;
    let mut entries: Vec<_> = map
        .iter()
        .map(|entry| entry.map(|(key, value)| (key.prefix_len(), key.data(), value)))
        .collect::<Result<_, _>>()?;
    entries.sort_unstable();
    let bytes = |(bits, key, value): (u32, [u8; K], [u8; 4])| {
        [&bits.to_ne_bytes()[..], &key, &value].concat()
    };
    Ok(entries.into_iter().flat_map(bytes).collect())
}

fn hash<const K: usize, const V: usize>(map: Map) -> Result<Vec<u8>> {
    let map: BpfHashMap<MapData, [u8; K], [u8; V]> = map.try_into()?;
    let mut entries: Vec<_> = map.iter().collect::<Result<_, _>>()?;
    entries.sort_unstable();
    Ok(entries
        .into_iter()
        .flat_map(|(key, value)| [key.to_vec(), value.to_vec()].concat())
        .collect())
}
