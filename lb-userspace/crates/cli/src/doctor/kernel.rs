//! Checks of the kernel.

use lb_datapath::kernel::{LEAST, judge, version};

use super::{Finding, snapshot::NodeSnapshot};

/// The newest that the tests ran on.
const NEWEST: (u32, u32) = (7, 2);

/// On Debian 11 the same installs one that is too old as well.
const NEWER: &str = "apt-get install -y linux-image-amd64 && systemctl reboot # Debian 12 or later";

pub(super) fn release(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "kernel";
    let release = &snapshot.kernel.release;
    let found = format!("Linux {release}");
    let why = "the program was never tried on a kernel that old: the verifier may refuse it";
    // `lbd` starts where all is there that it needs, whatever the release.
    let has_all = |features: &Vec<_>| judge(release, features).is_ok();
    let suffices = snapshot.kernel.features.as_ref().is_some_and(has_all);
    vec![match version(release) {
        Some(version) if version > NEWEST => {
            Finding::ok(CHECK, format!("{found}; newer than what this version was tried on"))
        }
        Some(version) if version >= LEAST => Finding::ok(CHECK, found),
        Some(_) if suffices => Finding::warning(CHECK, found, why).fixed_by(NEWER),
        Some(_) => Finding::error(CHECK, found, why).fixed_by(NEWER),
        None => Finding::warning(CHECK, format!("`{release}` is no version that is known"), why),
    }]
}

pub(super) fn features(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "bpf";
    let Some(features) = &snapshot.kernel.features else {
        return vec![
            Finding::warning(
                CHECK,
                "this user may not probe the kernel's features",
                "without CAP_BPF a part of the examination is left out",
            )
            .fixed_by("sudo lbctl doctor"),
        ];
    };
    let mut findings = Vec::new();
    for feature in features.iter().filter(|feature| !feature.there) {
        let found = format!("the kernel lacks {} (Linux {})", feature.name, feature.since);
        findings.push(match feature.without {
            None => Finding::error(CHECK, found, "the program can't be loaded without it")
                .fixed_by(NEWER),
            Some(without) => Finding::warning(CHECK, found, without),
        });
    }
    if findings.is_empty() {
        let names: Vec<_> = features.iter().map(|feature| feature.name).collect();
        findings.push(Finding::ok(CHECK, format!("the kernel has {}", names.join(", "))));
    }
    findings
}

pub(super) fn settings(snapshot: &NodeSnapshot) -> Vec<Finding> {
    let jit = match snapshot.kernel.jit {
        Some(0) => Finding::error(
            "jit",
            "the JIT compiler of BPF is off",
            "the program is interpreted, and costs about ten times as much for each packet",
        )
        .fixed_by("sysctl -w net.core.bpf_jit_enable=1"),
        Some(2) => Finding::warning(
            "jit",
            "the JIT compiler of BPF writes what it makes into the kernel's log",
            "that is for debugging, and shows addresses of the kernel",
        )
        .fixed_by("sysctl -w net.core.bpf_jit_enable=1"),
        Some(_) => Finding::ok("jit", "the JIT compiler of BPF is on"),
        // The file is missing where the kernel can't do without the compiler, or has no network
        // sysctls of its own to show, as in some containers.
        None => Finding::ok("jit", "the kernel has no switch for the JIT compiler of BPF"),
    };
    let btf = match snapshot.kernel.btf {
        true => Finding::ok("btf", "the kernel describes its types (/sys/kernel/btf/vmlinux)"),
        false => Finding::warning(
            "btf",
            "the kernel does not describe its types (/sys/kernel/btf/vmlinux)",
            "the balancer does without; tools that look into it (bpftool, pwru) need it",
        ),
    };
    vec![jit, btf]
}

pub(super) fn bpffs(snapshot: &NodeSnapshot) -> Vec<Finding> {
    const CHECK: &str = "bpffs";
    let Ok(config) = &snapshot.config else { return Vec::new() };
    let pins = &config.pin_dir;
    let mounted = snapshot.kernel.bpffs.iter().find(|at| pins.starts_with(at));
    vec![match mounted {
        Some(at) => Finding::ok(CHECK, format!("a BPF file system is mounted at {}", at.display())),
        None => Finding::error(
            CHECK,
            format!("{} is in no BPF file system", pins.display()),
            "program and maps are pinned there, so that forwarding goes on without lbd",
        )
        .fixed_by("mount -t bpf bpf /sys/fs/bpf"),
    }]
}
