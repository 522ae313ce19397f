//! Generic XDP over packets that were merged before: by TSO of a veth's other end, and by GRO.
//!
//! **Never run this on a host's own kernel.** Linux 6.9 and later have panicked over merged packets in generic mode: they
//! copy them for a program with frags by `skb_pp_cow_data`, with a wrong truesize. The balancer's program for that mode
//! has no frags, which is tested here; where it fails, the kernel goes down, with everything on it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use kit::{
    balancer::{Balancer, program},
    can_run_lab, command,
    http::Connection,
    lab::{INTERFACE, Lab, Options},
    namespace::Namespace,
    nginx,
    status::StatusExt as _,
    wait,
    ways::Way,
};

use super::is_disposable;

/// A virtual machine without help of the processor is slow.
const PATIENCE: Duration = Duration::from_secs(20);
/// For an upload whose packets are too big once they are merged: it may never end.
const STALLED: Duration = Duration::from_secs(5);
/// As much as an upload sends.
const UPLOAD: usize = 1 << 20;

/// Sends a body by the VIP, and gets its length.
fn upload(lab: &Lab, patience: Duration) -> Result<()> {
    let body = &nginx::big()[..UPLOAD];
    let mut connection = Connection::open(&lab.client.namespace, Way::DsrV4.target(), patience)?;
    let length = connection.post("/upload", body)?.ok()?.text();
    ensure!(length == body.len().to_string(), "{length} bytes came");
    Ok(())
}

/// Packets that the program found too big to be sent on.
fn too_big(balancer: &Balancer) -> Result<u64> {
    let status = balancer.status()?;
    Ok(status.dropped("too_big") + status.dropped("too_big_replied"))
}

/// Has the balancer start in generic mode.
pub fn configure(balancer: &Balancer) -> Result<()> {
    let text = fs::read_to_string(balancer.config()).context("read the configuration")?;
    let text = text.replace("attach = \"xdp\"", "attach = \"xdp\"\nxdp = \"generic\"");
    fs::write(balancer.config(), text).context("write the configuration")
}

/// The id of an interface's XDP program.
fn program_on(namespace: &Namespace, interface: &str) -> Result<u64> {
    let mut ip = namespace.command("ip");
    let shown = command::run(ip.args(["-j", "link", "show", "dev", interface]))?;
    let shown: serde_json::Value = serde_json::from_str(&shown).context("ip -j")?;
    shown[0]["xdp"]["prog"]["id"].as_u64().context("an XDP program")
}

/// The pins of programs below a folder.
fn pinned_programs(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            pinned_programs(&entry.path(), found)?;
        } else if entry.file_name().to_string_lossy().starts_with("program-") {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// Whether a pinned program has frags. The kernel does not report it; but a veth whose other end sends jumbo frames takes in
/// native mode only a program that has (`veth_xdp_set` in drivers/net/veth.c). Its ends are down: nothing comes by it.
fn has_frags(pin: &Path) -> Result<bool> {
    let namespace = Namespace::new("jumbo")?;
    namespace.ip("link add big mtu 9000 type veth peer name gib mtu 9000")?;
    let mut ip = namespace.command("ip");
    ip.args(["link", "set", "dev", "big", "xdpdrv", "pinned"]).arg(pin);
    match command::run(&mut ip) {
        Ok(_) => Ok(true),
        Err(error) if format!("{error:#}").contains("MTU is too large") => Ok(false),
        Err(error) => Err(error).context("attach a pinned program"),
    }
}

/// Turns the merging of packets on their way from the client to the balancer on or off: by TSO, with which packets of
/// 64 KiB cross the veth pairs whole, and by GRO, which merges segments.
fn merge(lab: &Lab, tso: bool, gro: bool) -> Result<()> {
    let word = |on| if on { "on" } else { "off" };
    let (tso, port) = (word(tso), &lab.balancer.name);
    let segmentation = ["tx", "on", "gso", "on", "tso", tso];
    lab.client.namespace.ethtool(INTERFACE, &["tx", "on", "gso", "on", "tso", "on"])?;
    lab.switch().ethtool(port, &segmentation)?;
    lab.balancer.namespace.ethtool(INTERFACE, &["gro", word(gro)])
}

#[test]
fn packets_that_are_merged_before_generic_xdp_are_dropped_and_counted_and_the_kernel_lives()
-> Result<()> {
    is_disposable()?;
    if !can_run_lab() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    let mut balancer = Balancer::new(&lab, &[Way::DsrV4.service(&lab)])?;

    merge(&lab, false, true)?;
    configure(&balancer)?;
    balancer.launch()?;
    balancer.wait_usable()?;
    let status = balancer.status()?;
    ensure!(status.interfaces[0].mode == "generic", "{:?}", status.interfaces);

    let running = program_on(&lab.balancer.namespace, INTERFACE)?;
    let mut pins = Vec::new();
    pinned_programs(balancer.pins(), &mut pins)?;
    let mut both = [false; 2];
    for pin in &pins {
        let runs = pin.ends_with(format!("program-{running}"));
        let frags = has_frags(pin).with_context(|| pin.display().to_string())?;
        ensure!(frags != runs, "{}: frags {frags}, in generic mode {runs}", pin.display());
        both[usize::from(runs)] = true;
    }
    ensure!(both == [true; 2], "the program of either mode is pinned: {pins:?}");

    for (what, tso, gro) in [("GRO", false, true), ("TSO", true, false), ("both", true, true)] {
        merge(&lab, tso, gro)?;
        let before = too_big(&balancer)?;
        for _ in 0..3 {
            // TCP retransmits segments that were too big; by single packets, it may come through.
            let end = upload(&lab, STALLED);
            println!("an upload with {what}: {end:?}");
            let dropped = too_big(&balancer)? - before;
            ensure!(end.is_ok() || dropped > 0, "an upload broke, and no drop was counted");
        }
        let dropped = too_big(&balancer)? - before;
        println!("{dropped} packets were too big with {what}");
        // The kernel itself leaves GRO out where an interface has a program in generic mode (`netif_elide_gro`): what is
        // merged comes as such from the other end of a veth pair, from a virtual machine's host, or from a NIC below.
        ensure!(dropped > 0 || !tso, "with {what} no merged packet has reached the program");
        balancer.check()?;
    }

    balancer.stop()?;
    balancer.launch()?;
    let next = program_on(&lab.balancer.namespace, INTERFACE)?;
    ensure!(next != running, "the start has swapped the program");

    merge(&lab, false, false)?;
    let before = too_big(&balancer)?;
    upload(&lab, PATIENCE).context("an upload whose packets nothing merges")?;
    ensure!(too_big(&balancer)? == before, "packets as they were sent are not too big");

    // The program that captures takes the other's place in its own variant.
    let file = lab.folder().join("capture.pcapng");
    let file = file.to_string_lossy();
    merge(&lab, true, true)?;
    let namespace = balancer.namespace();
    let mut capture = balancer.lbctl_command();
    capture.args(["capture", "--duration", "5s", "-w", &file]);
    let ended = std::thread::scope(|scope| {
        let capture = scope.spawn(move || command::run(&mut capture));
        let captures = wait::until(PATIENCE, "the capture runs", || {
            ensure!(program_on(&namespace, INTERFACE)? != next, "the program is the usual one");
            Ok(())
        });
        println!("an upload under a capture: {:?}", upload(&lab, STALLED));
        match capture.join() {
            Ok(ended) => captures.and(ended),
            Err(_) => bail!("the capture's thread panicked"),
        }
    });
    ended?;
    ensure!(fs::metadata(&*file)?.len() > 1_000, "packets were captured");
    ensure!(program_on(&lab.balancer.namespace, INTERFACE)? == next, "the usual program is back");
    merge(&lab, false, false)?;
    upload(&lab, PATIENCE).context("an upload after the capture")
}

#[test]
fn generic_mode_is_refused_on_a_vlan_whose_interface_has_gro_unless_the_operator_insists()
-> Result<()> {
    is_disposable()?;
    if !can_run_lab() {
        return Ok(());
    }
    let host = Namespace::new("vlan")?;
    host.ip(
        "link add eth9 type veth peer name far\nlink add link eth9 name eth9.5 type vlan id 5\n\
         link set eth9 up\nlink set eth9.5 up\naddr add 10.5.0.1/24 dev eth9.5",
    )?;
    let pins = Path::new("/sys/fs/bpf").join(host.name());
    let attach = |insists: &[&str]| -> Result<String> {
        let mut lbctl = program(&host, "lbctl")?;
        lbctl.args(["decap", "attach", "--dev", "eth9.5", "--generic", "--vip", "10.0.0.100"]);
        lbctl.args(["--from", "10.9.0.0/16"]).args(insists).arg("--pin-dir").arg(&pins);
        command::run(&mut lbctl)
    };
    host.ethtool("eth9", &["gro", "on"])?;
    let refused = attach(&[]).err().context("generic mode behind GRO is refused")?;
    let message = format!("{refused:#}");
    ensure!(message.contains("`ethtool -K eth9 gro off`, or --allow-gro"), "{message}");
    attach(&["--allow-gro"])?;
    let mut detach = program(&host, "lbctl")?;
    detach.args(["decap", "detach", "--dev", "eth9.5", "--pin-dir"]);
    command::run(detach.arg(&pins))?;
    host.ethtool("eth9", &["gro", "off"])?;
    attach(&[])?;
    fs::remove_dir_all(&pins).context("remove the pins")
}
