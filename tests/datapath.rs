//! Does the BPF object decide and rewrite as the core does on the host, byte for byte?

use std::{collections::HashMap, rc::Rc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap as BpfHashMap},
    programs::{Program, Xdp},
    util::nr_cpus,
};
use kit::datapath::{
    Twins, frames,
    generate::{self, BACKENDS, INGRESS, Random},
    hex,
    hook::Hook,
    kernel::{self, Kernel},
    model::{Action, BackendCount, Neighbours},
    routes, steady_nanos,
};
use lb_common::{
    abi::{RETURN_EGRESS_TC, VipKey, backend_flags, mapped},
    decap::{Source, Unlisted},
    icmp_error::rate_of_source,
    packet::{
        Packet as _, ethernet, icmp,
        ipv6::{self, Ipv6},
        number,
    },
    returns::decide,
    rewrite, unfinished,
    verdict::{ReplyKind, Verdict},
};
use lb_datapath::objects;
use lb_model::time;
use zerocopy::IntoBytes as _;

const PINS: u32 = 208;
/// Random states, each with frames of its own.
const EPOCHS: u64 = 30;
/// Frames after which the lease of pins changes.
const LEASES: usize = 150;
/// No frame takes longer.
const MARGIN: Duration = Duration::from_millis(50);

/// Runs `frames` random frames over one random state through both. What went to backends, and how many
/// pins were made within the lease, and past it.
fn run_epoch(
    hook: Hook,
    seed: u64,
    frames: usize,
    met: &mut HashMap<u32, u64>,
) -> Result<(BackendCount, [usize; 2])> {
    let mut random = Random(seed);
    // Time passes for the program while it does not for the core: either no ICMP error may be sent, or
    // any number.
    let icmp_rate = if seed % 4 == 3 { 0 } else { u32::MAX };
    let mut twins = Twins::load_at(hook, objects::BALANCER, PINS, icmp_rate)?;
    let nanos = steady_nanos(MARGIN);
    let mut state = generate::state(&mut random, (nanos / 1_000_000_000) as u32);
    // In place of a base owner that is soft down a pin needs no lease.
    let leased = seed.is_multiple_of(3);
    if leased {
        for backend in &mut state.backends {
            backend.flags &= !backend_flags::SOFT_DOWN;
        }
    }
    hook.fit_state(&mut state);
    twins.install(&state)?;
    ensure!(twins.kernel.index_is_of_use()?, "the buckets of the services' index are all alike");
    let mut sent: Vec<Vec<u8>> = Vec::new();
    let mut made = [0, 0];
    let mut number = 0;
    while number < frames {
        // Some of those that were sent on are sent again.
        let frame = if random.one_in(4) && !sent.is_empty() {
            sent[random.below(sent.len())].clone()
        } else {
            let mut frame = frames::frame(&mut random);
            hook.fit_frame(&mut frame);
            frame
        };
        if !hook.takes(&frame) {
            continue;
        }
        if number % LEASES == 0 {
            // In turn there is none, one that lasts, and one that is over.
            let lease = [0, u64::MAX, 1][number / LEASES % 3];
            twins.kernel.lease_pins(lease)?;
            twins.model.tables.lease.set(lease);
        }
        twins.model.tables.nanos.set(steady_nanos(MARGIN));
        let pins = twins.model.tables.pins.borrow().len();
        let action = twins.run(&frame).with_context(|| format!("frame {number}"))?;
        let model = &twins.model;
        made[usize::from(model.tables.lease.get() == 1)] += model.tables.pins.borrow().len() - pins;
        if matches!(action, Action::Tx | Action::Redirect) {
            sent.push(frame);
        }
        if number % 100 == 99 {
            twins.compare_tables().with_context(|| format!("after {number}"))?;
        }
        number += 1;
    }
    twins.compare_tables()?;
    let model = &twins.model;
    ensure!(!leased || made[1] == 0, "{} pins were made past the lease", made[1]);
    let noted = !model.tables.notes.borrow().is_empty();
    ensure!(noted || made[0] == 0, "{} pins were made without a note", made[0]);
    for (&reason, count) in &model.verdicts {
        *met.entry(reason).or_default() += count[0];
    }
    let mut sum = BackendCount::default();
    for mut count in model.counts.values().copied() {
        // The unanswered SYNs are no number: there is a moment in them, and no sum.
        count[5] = 0;
        for (sum, count) in sum.iter_mut().zip(count) {
            *sum += count;
        }
    }
    sum[5] = model.silences_ended;
    Ok((sum, made))
}

/// `LB_EPOCHS` asks for fewer, for a machine on which all take minutes; they are the same ones.
fn epochs() -> Result<u64> {
    let Ok(asked) = std::env::var("LB_EPOCHS") else { return Ok(EPOCHS) };
    asked.parse().with_context(|| format!("LB_EPOCHS={asked} is no number"))
}

#[test]
fn program_and_core_agree_on_every_frame_and_table() -> Result<()> {
    agree_on_every_frame_and_table(Hook::Xdp)
}

#[test]
fn classifier_and_core_agree_on_every_frame_and_table() -> Result<()> {
    agree_on_every_frame_and_table(Hook::Tc)
}

#[test]
fn classifier_without_link_layer_and_core_agree_on_every_frame_and_table() -> Result<()> {
    agree_on_every_frame_and_table(Hook::RawIp)
}

fn agree_on_every_frame_and_table(hook: Hook) -> Result<()> {
    kernel::stay_on_one_cpu()?;
    let mut met = HashMap::new();
    let mut sums = BackendCount::default();
    let mut pins = [0, 0];
    let epochs = epochs()?;
    for epoch in 0..epochs {
        let seed = 0x1b_0000 + epoch;
        let (sum, made) =
            run_epoch(hook, seed, 1_500, &mut met).with_context(|| format!("seed {seed:#x}"))?;
        for (all, one) in pins.iter_mut().zip(made) {
            *all += one;
        }
        for (all, one) in sums.iter_mut().zip(sum) {
            *all += one;
        }
    }
    if epochs < EPOCHS {
        return Ok(());
    }
    // The compared runs must have covered everything.
    use lb_common::verdict::{Drop, Pass};
    // They are of a link layer.
    let absent: &[Pass] = match hook {
        Hook::Xdp | Hook::Tc => &[],
        Hook::RawIp => &[Pass::OtherHost, Pass::VlanDepth, Pass::NotIp],
    };
    for reason in Pass::ALL.iter().filter(|reason| !absent.contains(reason)) {
        ensure!(met.contains_key(&reason.index()), "no frame was passed as {}", reason.name());
    }
    for reason in Drop::ALL.iter().filter(|&&reason| reason != Drop::NoHeadroom) {
        ensure!(met.contains_key(&reason.index()), "no frame was dropped as {}", reason.name());
    }
    let names = [
        "packets",
        "bytes",
        "new flows",
        "unpinned",
        "SYNs sent again",
        "silences that ended",
        "second choices",
    ];
    for (name, sum) in names.iter().zip(sums) {
        ensure!(sum > 20, "{sum} {name} in all runs");
    }
    ensure!(pins[0] > 50, "{} pins in all runs", pins[0]);
    ensure!(pins[1] > 0, "{} pins past the lease in all runs", pins[1]);
    Ok(())
}

/// A test run has no GSO frame that can be tunnelled: it has the size of the segments, and not their protocol.
#[test]
fn classifier_and_core_agree_on_frames_that_leave_in_segments() -> Result<()> {
    kernel::stay_on_one_cpu()?;
    let (mut forwarded, mut packets, mut replied) = (0, 0, 0);
    for seed in 0..4 {
        let mut random = Random(0x65_0000 + seed);
        let mut twins = Twins::load_at(Hook::Tc, objects::BALANCER, PINS, u32::MAX)?;
        let mut state = generate::state(&mut random, (steady_nanos(MARGIN) / 1_000_000_000) as u32);
        for backend in &mut state.backends {
            backend.flags &= !backend_flags::TUNNEL;
        }
        twins.install(&state)?;
        for number in 0..1_500 {
            let frame = frames::frame(&mut random);
            if !Hook::Tc.takes(&frame) {
                continue;
            }
            twins.model.segment = 1 + random.below(1_600) as u32;
            twins.model.tables.nanos.set(steady_nanos(MARGIN));
            let action = twins.run(&frame).with_context(|| format!("frame {number}"))?;
            forwarded += u64::from(matches!(action, Action::Tx | Action::Redirect));
        }
        twins.compare_tables()?;
        let model = &twins.model;
        packets += model.counts.values().map(|count| count[0]).sum::<u64>();
        let too_big = lb_common::verdict::Drop::TooBigReplied.index();
        replied += model.verdicts.get(&too_big).map_or(0, |count| count[0]);
    }
    ensure!(replied > 20, "only {replied} frames were answered");
    ensure!(packets > forwarded + 500, "{forwarded} frames left in {packets} packets");
    Ok(())
}

#[test]
fn program_and_core_agree_on_answers_that_have_a_route() -> Result<()> {
    agree_on_answers(Hook::Xdp)
}

#[test]
fn classifier_and_core_agree_on_answers_that_have_a_route() -> Result<()> {
    agree_on_answers(Hook::Tc)
}

/// By an interface that asks for no MAC address, and no answer is longer than its MTU.
#[test]
fn classifier_without_link_layer_and_core_agree_on_answers_that_have_a_route() -> Result<()> {
    agree_on_answers(Hook::RawIp)
}

fn agree_on_answers(hook: Hook) -> Result<()> {
    kernel::stay_on_one_cpu()?;
    let tap = if hook == Hook::RawIp { None } else { Some(routes::by_tap()?) };
    let mut by_action: HashMap<u32, u64> = HashMap::new();
    let mut resolved = [0; 2];
    for seed in 0..7 {
        let mut random = Random(0x77_0000 + seed);
        let mut twins = Twins::load_at(hook, objects::BALANCER, PINS, u32::MAX)?;
        let mut state = generate::state(&mut random, (steady_nanos(MARGIN) / 1_000_000_000) as u32);
        hook.fit_state(&mut state);
        twins.install(&state)?;
        let mut routes = match &tap {
            Some((_, routes)) => *routes,
            None => routes::from_vip()?,
        };
        let flags = if hook == Hook::Tc { RETURN_EGRESS_TC } else { 0 };
        twins.kernel.put_return_egress(routes::TAP | flags)?;
        twins.model.routes = Some(routes);
        for number in 0..2_000 {
            if tap.is_some() && (seed, number) == (6, 1_000) {
                routes::forget_neighbours()?;
                routes.neighbours = Neighbours::None;
                twins.model.routes = Some(routes);
            }
            let mut frame = frames::frame_of_backend(&mut random);
            hook.fit_frame(&mut frame);
            if !hook.takes(&frame) {
                continue;
            }
            twins.model.tables.nanos.set(steady_nanos(MARGIN));
            let mut before: u64 = twins.model.returns.values().map(|count| count[0]).sum();
            // The second time the program may have kept the route.
            for _ in 0..2 {
                let action =
                    twins.run(&frame).with_context(|| format!("seed {seed}, frame {number}"))?;
                let after: u64 = twins.model.returns.values().map(|count| count[0]).sum();
                *by_action.entry(action as u32).or_default() += after - before;
                before = after;
            }
        }
        twins.compare_tables()?;
        resolved = [0, 1].map(|by| resolved[by] + twins.resolved[by]);
    }
    let at_tc = hook == Hook::Tc;
    ensure!(resolved.map(|count| count > 20) == [at_tc; 2], "{resolved:?}");
    let count = |action: Action| by_action.get(&(action as u32)).copied().unwrap_or_default();
    ensure!(count(Action::Redirect) > 100, "{by_action:?}");
    let passed = match hook {
        Hook::Xdp => 50,
        Hook::Tc => 5,
        Hook::RawIp => return Ok(()),
    };
    ensure!(count(Action::Pass) > passed, "{by_action:?}");
    Ok(())
}

#[test]
fn a_cpu_sends_as_many_icmp_errors_as_its_buckets_have() -> Result<()> {
    kernel::stay_on_one_cpu()?;
    icmp_errors_of(ReplyKind::TtlExceeded, RATE)?;
    icmp_errors_of(ReplyKind::TooBig, rate_of_source(RATE))
}

const RATE: u32 = 5;

/// A frame that is answered by an error of this kind is answered so often, and then no more.
fn icmp_errors_of(kind: ReplyKind, rate: u32) -> Result<()> {
    let mut random = Random(3);
    let mut twins = Twins::load_limited(objects::BALANCER, PINS, RATE)?;
    // One token in 200 ms, so that none comes within the margin.
    let nanos = steady_nanos(MARGIN);
    let state = generate::state(&mut random, (nanos / 1_000_000_000) as u32);
    twins.install(&state)?;
    // The frame is looked for in tables of its own: the program does not have others' entries there.
    let mut search = Twins::load_limited(objects::BALANCER, PINS, RATE)?;
    search.install(&state)?;
    search.model.tables.nanos.set(nanos);
    let mut frame = frames::frame(&mut random);
    for _ in 0..10_000 {
        if matches!(decide(&*frame, &search.model.tables), Verdict::Reply(reply) if reply.kind == kind)
        {
            break;
        }
        frame = frames::frame(&mut random);
        search.model.tables.icmp_budget = Rc::default();
        search.model.tables.too_big_budgets.borrow_mut().clear();
    }
    twins.model.tables.nanos.set(steady_nanos(MARGIN));
    for number in 0..2 * rate {
        let action = twins.run(&frame).with_context(|| format!("{kind:?}, frame {number}"))?;
        let answered = action == Action::Tx;
        ensure!(answered == (number < rate), "{action:?} for {kind:?}, frame {number}");
    }
    let limited = lb_common::verdict::Drop::IcmpRateLimited.index();
    ensure!(twins.model.verdicts[&limited][0] == u64::from(rate));
    twins.compare_tables()
}

#[test]
fn maps_of_the_object_have_the_sizes_of_the_types() -> Result<()> {
    Kernel::load(objects::BALANCER, u32::from(BACKENDS), PINS)?.check_sizes()
}

#[test]
fn frame_of_several_buffers_is_forwarded_whole() -> Result<()> {
    kernel::stay_on_one_cpu()?;
    let mut random = Random(7);
    let mut twins = Twins::load(objects::BALANCER, PINS)?;
    let now = (steady_nanos(MARGIN) / 1_000_000_000) as u32;
    let mut state = generate::state(&mut random, now);
    for backend in &mut state.backends {
        backend.mtu = 9_000;
        backend.flags |= lb_common::abi::backend_flags::USABLE;
    }
    twins.install(&state)?;
    let Twins { kernel, model, .. } = &mut twins;
    let mut sent = 0;
    for _ in 0..2_000 {
        let frame = frames::frame(&mut random);
        model.tables.nanos.set(steady_nanos(MARGIN));
        kernel.run(&frame)?;
        if model.run(&frame, INGRESS).0 != Action::Tx || frame[12..14] != [8, 0] {
            continue;
        }
        // The same headers with 8,000 bytes more: the first buffer does not hold them.
        let mut long = frame.clone();
        let len = u16::from_be_bytes([frame[16], frame[17]]);
        if usize::from(len) + 14 != frame.len() {
            continue;
        }
        long[16..18].copy_from_slice(&(len + 7_000).to_be_bytes());
        long.resize(frame.len() + 7_000, 0xa5);
        model.tables.nanos.set(steady_nanos(MARGIN));
        let (action, out) = kernel.run(&long)?;
        let (expected, expected_out) = model.run(&long, INGRESS);
        ensure!(action == expected as u32, "the program returns {action}, the core {expected:?}");
        let at = out.iter().zip(&expected_out).position(|(a, b)| a != b);
        ensure!(
            out == expected_out,
            "{} bytes, the core {}; the first that differs is {at:?}",
            out.len(),
            expected_out.len()
        );
        sent += 1;
    }
    ensure!(sent > 50, "only {sent} frames were of use");
    Ok(())
}

/// Where the IPv6 headers of a frame end, those that an ICMP error quotes among them; 0 of another.
fn headers_end(frame: &[u8]) -> usize {
    let Ok(link) = ethernet::parse(frame) else { return 0 };
    let (mut at, mut end) = (link.l3, 0);
    while let (ethernet::IPV6, Some(ip)) = (link.ethertype, frame.load::<Ipv6>(at)) {
        let Ok(found) = ipv6::transport(frame, ip.next, at + ipv6::LEN) else { return usize::MAX };
        end = found.offset;
        if found.proto != number::ICMPV6 || end > frame.len() {
            break;
        }
        at = end + icmp::LEN;
    }
    end
}

#[test]
fn frame_is_treated_alike_however_short_its_first_buffer_is() -> Result<()> {
    kernel::stay_on_one_cpu()?;
    if !lb_datapath::pulls_data() {
        println!("skipped: this kernel has no bpf_xdp_pull_data, which came with Linux 6.18");
        return Ok(());
    }
    let (mut met, mut forwarded) = (HashMap::new(), 0);
    for seed in 0..4 {
        let mut random = Random(0x9_0000 + seed);
        let mut twins = Twins::load(objects::BALANCER, PINS)?;
        let now = (steady_nanos(MARGIN) / 1_000_000_000) as u32;
        twins.install(&generate::state(&mut random, now))?;
        for number in 0..1_500 {
            let frame = frames::frame(&mut random);
            // Headers that go on beyond the first buffer pass as truncated.
            if frame.len() <= ethernet::LEN || headers_end(&frame) > 200 {
                continue;
            }
            // A checksum is computed only of a packet that is in the first buffer, also by what has been pulled.
            let is_unfinished = ethernet::parse(&frame[..]).is_ok_and(|link| {
                unfinished::find(&frame[..], link.l3, link.ethertype == ethernet::IPV6) != 0
            });
            if is_unfinished {
                continue;
            }
            // The kernel's test run takes no less than an Ethernet header.
            let first = ethernet::LEN + random.below(frame.len().min(120) - ethernet::LEN);
            let Twins { kernel, model, .. } = &mut twins;
            model.tables.nanos.set(steady_nanos(MARGIN));
            model.first_buffer = first;
            let (action, out) = kernel.run_in_buffers(&frame, first)?;
            let (expected, expected_out) = model.run(&frame, INGRESS);
            ensure!(
                action == expected as u32,
                "frame {number}, {first} bytes first: the program returns {action}, the core {expected:?}"
            );
            ensure!(
                out == expected_out || expected == Action::Drop,
                "frame {number}, {first} bytes first: {expected:?}\nin      {}\nprogram {}\ncore    {}",
                hex(&frame),
                hex(&out),
                hex(&expected_out)
            );
            forwarded += usize::from(matches!(expected, Action::Tx | Action::Redirect));
        }
        // The bytes that are counted are those that were looked at.
        let counted = twins.kernel.verdicts()?;
        for (reason, sum) in &mut twins.model.verdicts {
            sum[1] = counted.get(reason).map_or(0, |sum| sum[1]);
            *met.entry(*reason).or_default() += sum[0];
        }
        twins.compare_tables()?;
    }
    use lb_common::verdict::Drop;
    ensure!(forwarded > 500, "only {forwarded} frames were forwarded");
    for reason in [Drop::TooBigReplied, Drop::TtlExceededReplied, Drop::FragmentWithoutFirst] {
        ensure!(met.get(&reason.index()) > Some(&0), "no frame was {}", reason.name());
    }
    Ok(())
}

const OWN: [u8; 4] = [10, 0, 0, 2];
const VIP: [u8; 4] = [10, 0, 0, 100];

/// The decapsulator with these addresses, and one prefix of sources.
fn decapsulator(source: Source) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    let object = lb_datapath::with_pull_data(objects::DECAP, &mut loader);
    let cpus = nr_cpus().map_err(|(_, error)| error)?;
    loader.map_max_entries("DECAP_UNLISTED", u32::try_from(cpus)?);
    let mut object = loader.load(&object).context("load the maps")?;
    for (name, address) in [("DECAP_ADDRESSES", OWN), ("DECAP_VIPS", VIP)] {
        let map = object.map_mut(name).context(name)?;
        let mut map: BpfHashMap<_, VipKey, u32> = map.try_into()?;
        map.insert(VipKey { address: mapped(address) }, 1, 0)?;
    }
    let map = object.map_mut("DECAP_SOURCES").context("no sources")?;
    let mut sources: Array<_, Source> = map.try_into()?;
    sources.set(0, source, 0)?;
    let program: &mut Xdp = object.program_mut("decapsulate").context("no program")?.try_into()?;
    lb_datapath::load_program(program).context("load the program")?;
    Ok(object)
}

/// A frame with a packet for the VIP in a tunnel from `source`, and the same without its tunnel.
fn tunnelled(source: [u8; 4], payload: usize) -> [Vec<u8>; 2] {
    let ip = |proto, len: usize, from, to| {
        let mut ip = rewrite::ipv4_template(from, to);
        ip.proto = proto;
        ip.total_len.set(len as u16);
        ip.as_bytes().to_vec()
    };
    let link = [&[2; 6][..], &[4; 6], &[8, 0]].concat();
    let inner = ip(number::TCP, 20 + payload, [10, 0, 0, 1], VIP);
    let inner = [inner, vec![0xa5; payload]].concat();
    let outer = ip(number::IPV4, 20 + inner.len(), source, OWN);
    [[&link[..], &outer, &inner].concat(), [&link[..], &inner].concat()]
}

#[test]
fn decapsulator_keeps_the_last_source_that_is_not_listed() -> Result<()> {
    let prefix = u128::from_be_bytes(mapped([172, 16, 0, 0]));
    let mut object = decapsulator(Source::new(prefix, 96 + 16))?;
    for source in [[10, 1, 2, 3], [10, 1, 2, 4], [172, 16, 3, 4]] {
        let program: &mut Xdp =
            object.program_mut("decapsulate").context("no program")?.try_into()?;
        let [frame, inner] = tunnelled(source, 100);
        let is_listed = source[0] == 172;
        let (action, out) = kernel::run_in_buffers(program, &frame, frame.len())?;
        ensure!(action == Action::Pass as u32, "{source:?}: {action}");
        ensure!(out == if is_listed { inner } else { frame }, "{source:?}: {}", hex(&out));
    }
    let map: Array<_, Unlisted> = object.map("DECAP_UNLISTED").context("no map")?.try_into()?;
    let all = (0..map.len()).map(|cpu| map.get(&cpu, 0)).collect::<Result<Vec<_>, _>>()?;
    let last = all.iter().max_by_key(|one| one.at).context("no CPU")?;
    ensure!(last.source == mapped([10, 1, 2, 4]), "{last:?}");
    ensure!(all.iter().map(|one| one.packets).sum::<u64>() == 2, "{all:?}");
    let now = time::monotonic().as_nanos();
    ensure!(u128::from(last.at).abs_diff(now) < 10_000_000_000, "{last:?} at {now}");
    Ok(())
}

#[test]
fn decapsulator_unwraps_a_frame_whose_first_buffer_has_no_headers() -> Result<()> {
    if !lb_datapath::pulls_data() {
        println!("skipped: this kernel has no bpf_xdp_pull_data, which came with Linux 6.18");
        return Ok(());
    }
    let mut object = decapsulator(Source::new(0, 0))?;
    let program: &mut Xdp = object.program_mut("decapsulate").context("no program")?.try_into()?;
    let [frame, inner] = tunnelled([10, 0, 0, 1], 6_000);
    for first in [14, 20, 33, 34, 50, 54, 200] {
        let (action, out) = kernel::run_in_buffers(program, &frame, first)?;
        ensure!(action == Action::Pass as u32, "{first} bytes first: {action}");
        ensure!(out == inner, "{first} bytes first: {}", hex(&out));
    }
    Ok(())
}

/// Instructions of all ways that the verifier walks (Linux 5.2, `BPF_COMPLEXITY_LIMIT_INSNS`): a quarter is left for
/// other versions of Linux, which tell more states apart.
const VERIFIED: u32 = 1_000_000 / 4 * 3;

#[test]
fn no_program_takes_more_than_three_quarters_of_what_the_verifier_walks() -> Result<()> {
    for object in [objects::BALANCER, objects::CAPTURE] {
        let mut loader = EbpfLoader::new();
        let object = lb_datapath::with_pull_data(object, &mut loader);
        let mut ebpf = loader.load(&object)?;
        let mut programs = 0;
        for (name, program) in ebpf.programs_mut() {
            match program {
                Program::Xdp(program) => program.load()?,
                Program::SchedClassifier(program) => program.load()?,
                other => bail!("{name} is {other:?}"),
            }
            let walked = program.info()?.verified_instruction_count().context("Linux 5.16")?;
            ensure!(walked <= VERIFIED, "{name}: the verifier walks {walked} instructions");
            programs += 1;
        }
        ensure!(programs == 4, "{programs} programs");
    }
    Ok(())
}
