//! Captures, read by tshark.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, UdpSocket},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::Balancer, can_run, command, http::Connection, lab::Lab, status::StatusExt as _, wait,
};
use lb_inspect::{
    capture::Spec,
    explain::{Explained, Flags},
};
use lb_model::desired::Protocol;

use super::testbed::{VIP, attached, explain, made, testbed, testbed_at};

const PATIENCE: Duration = Duration::from_secs(90);

/// A frame as tshark prints it.
#[derive(Debug)]
struct Frame {
    interface: String,
    comment: String,
    verdict: String,
    /// Addresses, the inner ones last.
    sources: String,
}

/// The frames of a file, of those that a display filter lets through.
fn frames(file: &Path, filter: &str) -> Result<Vec<Frame>> {
    let mut tshark = command::command("tshark");
    tshark.arg("-r").arg(file).args(["-Y", filter, "-T", "fields", "-E", "separator=|"]);
    for field in ["frame.interface_name", "frame.comment", "frame.verdict.ebpf_xdp", "ip.src"] {
        tshark.args(["-e", field]);
    }
    let output = command::run(&mut tshark)?;
    let frame = |line: &str| {
        let mut fields = line.split('|').map(str::to_owned);
        let mut field = || fields.next().context("a field");
        Ok(Frame { interface: field()?, comment: field()?, verdict: field()?, sources: field()? })
    };
    output.lines().map(frame).collect()
}

/// A capture in the background.
struct Capture {
    child: Child,
    lab_program: u32,
}

impl Capture {
    /// Starts one, and waits until its program is in place.
    fn start(lab: &Lab, balancer: &Balancer, args: &[&str]) -> Result<Self> {
        let lab_program = attached(lab)?;
        let mut lbctl = balancer.lbctl_command();
        lbctl.arg("capture").args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = lbctl.spawn().context("start lbctl capture")?;
        let begun = wait::until_true(PATIENCE, "the program that captures is there", || {
            ensure!(child.try_wait()?.is_none(), "it has ended");
            Ok(attached(lab)? != lab_program)
        });
        if let Err(error) = begun {
            let _ = child.kill();
            let output = child.wait_with_output()?;
            return Err(error.context(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        Ok(Self { child, lab_program })
    }

    /// Waits for its end and for the normal program; returns its output.
    fn end(self, lab: &Lab) -> Result<String> {
        let output = self.child.wait_with_output()?;
        let text =
            [&output.stdout, &output.stderr].map(|out| String::from_utf8_lossy(out)).concat();
        ensure!(output.status.success(), "{text}");
        is_back(lab, self.lab_program)?;
        Ok(text)
    }

    fn kill(mut self, lab: &Lab) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        is_back(lab, self.lab_program)
    }
}

fn is_back(lab: &Lab, program: u32) -> Result<()> {
    wait::until_true(PATIENCE, "the normal program is back", || Ok(attached(lab)? == program))
        .map(drop)
}

fn get(lab: &Lab) -> Result<()> {
    let target = SocketAddr::new(VIP.into(), 80);
    Connection::open(&lab.client.namespace, target, Duration::from_secs(5))?.get("/")?.ok()?;
    Ok(())
}

/// Twelve packets of the client's for the service, as they came and as they left by the same interface: XDP_TX, as tc's
/// redirect is recorded, too.
fn whole(lab: &Lab, came: &[Frame], left: &[Frame]) -> Result<()> {
    ensure!((came.len(), left.len()) == (12, 12), "{came:#?} {left:#?}");
    for frame in came.iter().chain(left) {
        let expected = ["verdict forwarded by eth0", "service web", "backend 10.0.0.1", "slot "];
        ensure!(expected.iter().all(|words| frame.comment.contains(words)), "{frame:?}");
        ensure!(frame.sources == lab.client.v4.to_string(), "{frame:?}");
    }
    ensure!(left.iter().all(|frame| frame.verdict == "3"), "{left:#?}");
    Ok(())
}

#[test]
fn tshark_reads_packets_before_and_after_with_verdict_service_and_backend() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = testbed()?;
    let file = lab.folder().join("web.pcapng");
    let path = file.to_string_lossy().into_owned();
    let before = balancer.status()?.service("web")?.backends.len();
    ensure!(before == 3);

    // Of one service, until so many packets have come.
    let args = ["-w", &path, "--service", "web", "-c", "12", "--duration", "20s"];
    let capture = Capture::start(&lab, &balancer, &args)?;
    let second = balancer.lbctl_output(&["capture", "-w", "-"])?;
    let why = String::from_utf8_lossy(&second.stderr);
    ensure!(!second.status.success() && why.contains("one at a time"), "{why}");
    ensure!(balancer.status()?.interfaces.iter().all(|i| i.attached), "it counts as attached");
    for _ in 0..4 {
        get(&lab)?;
    }
    let text = capture.end(&lab)?;
    ensure!(text.contains("12 packets written to"), "{text}");
    let came = frames(&file, "frame.interface_name == \"eth0 before\"")?;
    let left = frames(&file, "frame.interface_name == \"eth0 after\"")?;
    whole(&lab, &came, &left)?;
    ensure!(came.iter().all(|frame| frame.interface == "eth0 before"), "{came:#?}");
    ensure!(came.iter().any(|frame| frame.comment.contains("new flow")), "{came:#?}");
    let syns = frames(&file, "tcp.flags.syn == 1 && frame.comment contains \"new flow\"")?;
    ensure!(!syns.is_empty() && syns.len().is_multiple_of(2), "{syns:#?}");

    // The same packets, explained.
    let output = balancer.lbctl(&["explain", "--pcap", &path])?;
    ensure!(output.contains("24 packets, each as if it came in now:"), "{output}");
    ensure!(output.contains("12  passed other_host"), "what leaves is for others: {output}");
    ensure!(output.matches("forwarded by web to 10.0.0.1").count() == 12, "{output}");

    // By verdict and by client; to a pipe.
    let mut lbctl = balancer.lbctl_command();
    let client = lab.client.v4.to_string();
    lbctl.args(["capture", "-w", "-", "--verdict", "not_a_service", "--client", &client]);
    lbctl.args(["--duration", "3s", "-c", "1"]);
    let normal = attached(&lab)?;
    let child = lbctl.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    wait::until_true(PATIENCE, "the program that captures is there", || {
        Ok(attached(&lab)? != normal)
    })?;
    get(&lab)?;
    let nobody: SocketAddr = (VIP, 9_999).into();
    lab.client.namespace.enter(|| -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.send_to(b"hello", nobody)?;
        Ok(())
    })??;
    let output = child.wait_with_output()?;
    fs::write(&file, &output.stdout)?;
    let passed = frames(&file, "frame")?;
    ensure!(passed.len() == 1, "what passes is there once: {passed:#?}");
    ensure!(passed[0].comment == "verdict passed, not_a_service", "{passed:#?}");
    is_back(&lab, normal)
}

#[test]
fn packets_of_tc_are_captured_and_explained_as_xdp_s() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = testbed_at("tc")?;
    let file = lab.folder().join("tc.pcapng");
    let path = file.to_string_lossy().into_owned();
    let args = ["-w", &path, "--service", "web", "-c", "12", "--duration", "20s"];
    let capture = Capture::start(&lab, &balancer, &args)?;
    ensure!(balancer.status()?.interfaces.iter().all(|i| i.attached), "it counts as attached");
    for _ in 0..4 {
        get(&lab)?;
    }
    let output = capture.end(&lab)?;
    ensure!(output.contains("12 packets written to"), "{output}");
    let came = frames(&file, "frame.interface_name == \"eth0 before\"")?;
    let left = frames(&file, "frame.interface_name == \"eth0 after\"")?;
    whole(&lab, &came, &left)?;
    let packets = (0..20).map(|n| made(Protocol::Tcp, n, 80, Flags::SYN)).collect();
    let explained = explain(&balancer, packets, true)?;
    let agrees = |one: &Explained| one.verified.as_ref().is_some_and(|verified| verified.agrees);
    ensure!(explained.len() == 20 && explained.iter().all(agrees), "{explained:#?}");
    get(&lab)
}

#[test]
fn a_flood_is_forwarded_whole_and_what_was_not_saved_is_counted() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    const FLOOD: u64 = 20_000;
    let (lab, balancer) = testbed()?;
    let file = lab.folder().join("flood.pcapng");
    let path = file.to_string_lossy().into_owned();
    let sent = || -> Result<u64> {
        let status = balancer.status()?;
        Ok(status.service("dns")?.backends.values().map(|backend| backend.sent.packets).sum())
    };
    let flood = || -> Result<u64> {
        let before = sent()?;
        lab.client.namespace.enter(|| -> Result<()> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for n in 0..FLOOD {
                socket.send_to(&n.to_be_bytes(), (VIP, 53))?;
            }
            Ok(())
        })??;
        Ok(sent()? - before)
    };
    let alone = flood()?;
    let args =
        ["-w", &path, "--service", "dns", "--rate", "100", "-c", "100000", "--duration", "4s"];
    let capture = Capture::start(&lab, &balancer, &args)?;
    let captured = flood()?;
    let output = capture.end(&lab)?;
    // The wire loses some of a burst before they get to the balancer.
    let close = |count: u64| count <= FLOOD && count > FLOOD / 2;
    ensure!(close(alone) && close(captured), "{alone} without, {captured} with a capture");
    let number = |words: &str| -> Result<u64> {
        let before = output.split(words).next().context("a number")?;
        let word = before.split_whitespace().last().context("a number")?;
        word.parse().with_context(|| output.clone())
    };
    let (matched, saved) = (number(" matched")?, number(" saved;")?);
    let limited = number(" by the rate")?;
    ensure!(matched == captured, "{captured} were forwarded: {output}");
    ensure!(saved >= 100 && saved + limited == matched, "{output}");
    ensure!(limited > matched / 2, "{output}");
    let saved_frames = frames(&file, "frame.interface_name == \"eth0 before\"")?;
    ensure!(saved_frames.len() as u64 == saved, "{} frames; {output}", saved_frames.len());
    // Wireshark's own view of the missing packets.
    let info = command::run(Command::new("capinfos").arg(&file))?;
    ensure!(info.contains("pcapng"), "{info}");
    Ok(())
}

#[test]
fn a_capture_saves_what_was_asked_for_and_no_more_of_it() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    const DATAGRAMS: u32 = 2_000;
    let (lab, balancer) = testbed()?;
    let file = lab.folder().join("some.pcapng");
    let path = file.to_string_lossy().into_owned();
    let backend = lab.webs[1].host.v4.to_string();
    // Of one service to one backend, the first bytes of one in ten.
    let args = ["-w", &path, "--service", "dns", "--backend", &backend, "--sample", "1/10"];
    let more = ["--snaplen", "50", "--rate", "50000", "-c", "100000", "--duration", "5s"];
    let capture = Capture::start(&lab, &balancer, &[&args[..], &more].concat())?;
    lab.client.namespace.enter(|| -> Result<()> {
        for n in 0..DATAGRAMS {
            // Each by a port of its own, so that they go to all backends.
            UdpSocket::bind("0.0.0.0:0")?.send_to(&[n as u8; 100], (VIP, 53))?;
        }
        Ok(())
    })??;
    get(&lab)?;
    let text = capture.end(&lab)?;
    let saved = frames(&file, "frame")?;
    let came = frames(&file, "frame.interface_name == \"eth0 before\"")?;
    let to = format!("service dns; backend {backend}");
    ensure!(saved.iter().all(|frame| frame.comment.contains(&to)), "{saved:#?}");
    // A tenth of a third, give or take five deviations.
    let expected = DATAGRAMS as usize / 30;
    ensure!((expected / 2..expected * 2).contains(&came.len()), "{} of {text}", came.len());
    ensure!(!text.contains(" 0 by the sample"), "{text}");
    let cut = frames(&file, "frame.cap_len == 50 && frame.len > 100")?;
    ensure!(cut.len() == saved.len(), "{} of {}", cut.len(), saved.len());

    // The program can't run on a part of a frame, which is no difference.
    let verify =
        balancer.lbctl_output(&["explain", "--pcap", &path, "--limit", "2", "--verify"])?;
    let output = String::from_utf8_lossy(&verify.stdout);
    ensure!(
        output.contains("the program could not be asked") && !output.contains("DIFFERS"),
        "{output}"
    );
    ensure!(verify.status.code() == Some(1), "{verify:?}");
    Ok(())
}

#[test]
fn whoever_dies_the_normal_program_comes_back() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = testbed()?;
    let file = lab.folder().join("torn.pcapng");
    let path = file.to_string_lossy().into_owned();
    let args = ["-w", &path, "--duration", "60s", "-c", "100000"];
    let capture = Capture::start(&lab, &balancer, &args)?;
    get(&lab)?;
    capture.kill(&lab)?;
    get(&lab)?;

    // lbd is killed: its program goes on, and the next lbd puts the normal one there.
    let capture = Capture::start(&lab, &balancer, &args)?;
    let captures = attached(&lab)?;
    balancer.kill()?;
    get(&lab)?;
    ensure!(attached(&lab)? == captures);
    balancer.launch()?;
    balancer.wait_usable()?;
    ensure!(attached(&lab)? != captures);
    get(&lab)?;
    let output = capture.child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "{text}");

    // lbd ends in order: it puts the normal one back itself.
    let capture = Capture::start(&lab, &balancer, &args)?;
    balancer.stop()?;
    is_back(&lab, capture.lab_program)?;
    let _ = capture.child.wait_with_output()?;
    get(&lab)
}

#[test]
fn who_asks_for_a_capture_and_does_not_read_it_keeps_it_no_longer_than_who_does() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = testbed()?;
    let normal = attached(&lab)?;
    let lasts = Duration::from_secs(3);
    let spec = Spec {
        count: 1_000_000,
        millis: lasts.as_millis() as u64,
        rate: 50_000,
        ..Spec::default()
    };
    let body = serde_json::to_string(&spec)?;
    let mut stream = UnixStream::connect(balancer.socket()).context("connect to lbd")?;
    let length = body.len();
    write!(
        stream,
        "POST /v1/capture HTTP/1.1\r\nHost: lbd\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    wait::until_true(PATIENCE, "the program that captures is there", || {
        Ok(attached(&lab)? != normal)
    })?;
    // More than all that is between lbd and its reader has room for.
    lab.client.namespace.enter(|| -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let begun = Instant::now();
        while begun.elapsed() < lasts {
            for n in 0..50_u32 {
                socket.send_to(&n.to_be_bytes(), (VIP, 53))?;
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    })??;
    is_back(&lab, normal)?;
    // The next one may begin, while the first one is still not read.
    let file = lab.folder().join("next.pcapng");
    let path = file.to_string_lossy().into_owned();
    balancer.lbctl(&["capture", "-w", &path, "--duration", "100ms"])?;
    drop(stream);
    Ok(())
}
