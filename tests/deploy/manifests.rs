//! The files of `deploy/` for containers: each program, path, port and probe that it names is there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{self, Balancer},
    can_run, command,
    lab::{Lab, Options},
    wait,
    ways::Way,
};
use yaml_rust2::{Yaml, YamlLoader};

const SOON: std::time::Duration = std::time::Duration::from_secs(10);

fn deploy(name: &str) -> Result<String> {
    let path = workspace().join("deploy").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

fn workspace() -> PathBuf {
    let mut folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    folder.pop();
    folder
}

/// An object of the manifest.
fn object(kind: &str) -> Result<Yaml> {
    let all = YamlLoader::load_from_str(&deploy("kubernetes/lb.yaml")?)?;
    let mut found = all.into_iter().filter(|object| object["kind"].as_str() == Some(kind));
    let object = found.next().with_context(|| format!("there is no {kind}"))?;
    ensure!(found.next().is_none(), "there are several of {kind}");
    Ok(object)
}

fn words(list: &Yaml) -> Vec<&str> {
    list.as_vec().into_iter().flatten().filter_map(Yaml::as_str).collect()
}

/// The configuration in the manifest, which `lbd --check` must take.
fn config() -> Result<String> {
    let map = object("ConfigMap")?;
    Ok(map["data"]["lb.toml"].as_str().context("the ConfigMap has lb.toml")?.to_owned())
}

/// The arguments of an instruction of the Containerfile, by line.
fn instructions<'a>(text: &'a str, instruction: &str) -> Vec<Vec<&'a str>> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(instruction)?.strip_prefix(' '));
    lines.map(|line| line.split_whitespace().collect()).collect()
}

/// The list of an instruction as JSON.
fn list(text: &str, instruction: &str) -> Result<Vec<String>> {
    let line = text.lines().find_map(|line| line.strip_prefix(instruction));
    Ok(serde_json::from_str(line.with_context(|| format!("there is no {instruction}"))?)?)
}

#[test]
fn the_container_is_built_of_what_is_there() -> Result<()> {
    let text = deploy("Containerfile")?;
    let toolchain = fs::read_to_string(workspace().join("rust-toolchain.toml"))?;
    let stages = instructions(&text, "FROM");
    let rust = stages[0][0].rsplit_once(':').context("the image has a tag")?.1;
    let version = rust.split('-').next().context("a version")?;
    ensure!(toolchain.contains(&format!("channel = \"{version}.")), "{rust} is another toolchain");
    let named: Vec<_> =
        stages.iter().filter(|words| words.get(1) == Some(&"AS")).map(|words| words[2]).collect();
    let mut programs = BTreeSet::new();
    for copy in instructions(&text, "COPY") {
        let (to, from) = copy.split_last().context("COPY has a destination")?;
        match from[0].strip_prefix("--from=") {
            Some(stage) => {
                ensure!(named.contains(&stage), "no stage is called {stage}");
                programs.insert((*to).to_owned());
            }
            None => {
                for source in from {
                    ensure!(workspace().join(source).exists(), "{source} does not exist");
                }
            }
        }
    }
    // Every member of the workspace is there, by itself or in another's folder, or cargo would refuse it.
    let members = fs::read_to_string(workspace().join("Cargo.toml"))?;
    let members =
        members.lines().find_map(|line| line.strip_prefix("members = ")).context("members")?;
    for member in serde_json::from_str::<Vec<String>>(members)? {
        let holds = |copy: &Vec<&str>| Path::new(&member).starts_with(copy[0]);
        let copied = instructions(&text, "COPY").iter().any(holds);
        ensure!(copied, "{member} is not copied");
    }
    let mut command = list(&text, "ENTRYPOINT ")?;
    // Process 1 gets the orphans of a killed script, and lbd reaps only what it has started itself.
    let (init, program) = command.split_at(2);
    assert_eq!(init, ["/usr/bin/tini", "--"]);
    let installed = text.lines().filter(|line| line.contains("apt-get install"));
    let installed: Vec<_> = installed.flat_map(str::split_whitespace).collect();
    for package in ["tini", "nftables", "ca-certificates"] {
        ensure!(installed.contains(&package), "{package} is not installed");
    }
    ensure!(programs.contains(&program[0]), "{program:?} is none of {programs:?}");
    command.extend(list(&text, "CMD ")?);
    let pod = object("DaemonSet")?;
    let container = &pod["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(words(&container["command"]), command, "the pod starts the same");
    let image = format!("lb:{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(container["image"].as_str(), Some(image.as_str()));
    Ok(())
}

#[test]
fn the_pod_has_what_the_unit_has() -> Result<()> {
    let unit = deploy("lbd.service")?;
    let capabilities = unit.lines().find_map(|line| line.strip_prefix("AmbientCapabilities="));
    let expected: BTreeSet<_> =
        capabilities.context("the unit has some")?.split_whitespace().collect();
    let pod = object("DaemonSet")?;
    let pod = &pod["spec"]["template"]["spec"];
    assert_eq!(pod["hostNetwork"].as_bool(), Some(true));
    let container = &pod["containers"][0];
    let context = &container["securityContext"];
    assert_eq!(context["privileged"].as_bool(), Some(false));
    assert_eq!(words(&context["capabilities"]["drop"]), ["ALL"]);
    let added: Vec<String> =
        words(&context["capabilities"]["add"]).iter().map(|name| format!("CAP_{name}")).collect();
    assert_eq!(added.iter().map(String::as_str).collect::<BTreeSet<_>>(), expected);

    let volumes = pod["volumes"].as_vec().context("volumes")?;
    let mounts = container["volumeMounts"].as_vec().context("mounts")?;
    assert_eq!(volumes.len(), mounts.len());
    let paths: Vec<_> = mounts.iter().filter_map(|mount| mount["mountPath"].as_str()).collect();
    for mount in mounts {
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]);
        let volume = volume.with_context(|| format!("{mount:?} mounts nothing"))?;
        let host = volume["hostPath"]["path"].as_str();
        ensure!(host.is_none() || host == mount["mountPath"].as_str(), "{mount:?}");
    }
    // Nodes that share VIPs have one seed, which is no part of the readable files.
    let config = config()?;
    let seed = config.lines().find_map(|line| line.strip_prefix("seed_file = "));
    let seed: String = serde_json::from_str(seed.context("a seed's file")?)?;
    let secret = volumes.iter().find(|volume| !volume["secret"].is_badvalue());
    let secret = &secret.context("a volume of secrets")?["name"];
    let mounted = mounts.iter().find(|mount| mount["name"] == *secret).context("it is mounted")?;
    let folder = mounted["mountPath"].as_str().context("a path")?;
    ensure!(seed.strip_prefix(folder) == Some("/seed"), "{seed} is not in {folder}");
    // Where lbd pins, keeps and listens unless configured otherwise.
    for default in [
        lb_model::defaults::CONFIG,
        lb_model::defaults::PIN_DIR,
        lb_model::defaults::STATE_FILE,
        lb_model::defaults::SOCKET,
    ] {
        ensure!(paths.iter().any(|path| default.starts_with(path)), "{default} is nowhere");
    }
    Ok(())
}

/// The words of the `podman run` line in the Containerfile's comment.
fn run_line(text: &str) -> Result<Vec<&str>> {
    let comment = text.lines().map_while(|line| line.strip_prefix('#'));
    let mut lines = comment.map(str::trim).skip_while(|line| !line.starts_with("podman run "));
    let mut words = Vec::new();
    loop {
        let line = lines.next().context("a whole `podman run` line")?;
        let Some(more) = line.strip_suffix('\\') else {
            words.extend(line.split_whitespace());
            return Ok(words);
        };
        words.extend(more.split_whitespace());
    }
}

/// Neither AppArmor's default profile for containers nor SELinux's `container_t` lets a container write
/// below /sys/fs/bpf.
#[test]
fn the_pod_is_not_confined_by_what_denies_pins() -> Result<()> {
    let pod = object("DaemonSet")?;
    let template = &pod["spec"]["template"];
    for container in template["spec"]["containers"].as_vec().context("containers")? {
        let name = container["name"].as_str().context("a container has a name")?;
        let context = &container["securityContext"];
        assert_eq!(context["appArmorProfile"]["type"].as_str(), Some("Unconfined"), "{name}");
        // Both may be there only if they are equal.
        let key = format!("container.apparmor.security.beta.kubernetes.io/{name}");
        let older = &template["metadata"]["annotations"][key.as_str()];
        assert_eq!(older.as_str(), Some("unconfined"), "{name}");
        assert_eq!(context["seLinuxOptions"]["type"].as_str(), Some("spc_t"), "{name}");
        assert_eq!(context["seLinuxOptions"]["level"].as_str(), Some("s0"), "{name}");
    }
    Ok(())
}

#[test]
fn podman_runs_the_container_with_what_the_pod_has() -> Result<()> {
    let text = deploy("Containerfile")?;
    let line = run_line(&text)?;
    let values = |option: &str| -> BTreeSet<&str> {
        line.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1]).collect()
    };
    let pod = object("DaemonSet")?;
    let container = &pod["spec"]["template"]["spec"]["containers"][0];
    let context = &container["securityContext"];
    let kind = context["seLinuxOptions"]["type"].as_str().context("a type")?;
    let label = format!("label=type:{kind}");
    assert_eq!(values("--security-opt"), ["apparmor=unconfined", label.as_str()].into());
    assert_eq!(values("--network"), ["host"].into());
    assert_eq!(values("--cap-drop"), ["all"].into());
    let capabilities = words(&context["capabilities"]["add"]).join(",").to_lowercase();
    assert_eq!(values("--cap-add"), [capabilities.as_str()].into());
    // The seed is in the configuration's folder, unless a cluster keeps it as a secret.
    let mounts = container["volumeMounts"].as_vec().context("mounts")?;
    let paths = mounts.iter().filter_map(|mount| mount["mountPath"].as_str());
    let expected: BTreeSet<_> = paths
        .filter(|path| *path != "/etc/lb-secret")
        .map(|path| format!("{path}:{path}"))
        .collect();
    assert_eq!(values("-v"), expected.iter().map(String::as_str).collect());
    Ok(())
}

#[test]
fn lbd_takes_the_configurations_and_answers_the_probes() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    let config = config()?;
    for (name, text) in [("map", config.clone()), ("package", deploy("debian/lb.toml")?)] {
        let file = lab.folder().join(format!("{name}.toml"));
        fs::write(&file, text)?;
        let mut lbd = balancer::program(&lab.balancer.namespace, "lbd")?;
        let checked = command::output(lbd.arg("--check").arg(&file), "")?;
        let printed = String::from_utf8_lossy(&checked.stderr);
        ensure!(checked.status.success() && printed.is_empty(), "{name}: {printed}");
    }

    let pod = object("DaemonSet")?;
    let container = &pod["spec"]["template"]["spec"]["containers"][0];
    let http = config.split("[http]\n").nth(1).context("the configuration has a listener")?;
    let listen = http.lines().next().context("a line")?;
    let mut balancer = Balancer::on(
        &lab,
        &lab.balancer,
        &[Way::DsrV4.service(&lab)],
        &format!("[http]\n{listen}\n"),
    )?;
    balancer.launch()?;
    balancer.wait_usable()?;
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &container[probe]["httpGet"];
        let (host, port) =
            (get["host"].as_str().context("a host")?, get["port"].as_i64().context("a port")?);
        assert_eq!(container["ports"][0]["containerPort"].as_i64(), Some(port), "{probe}");
        ensure!(listen.contains(&format!("\"{host}:{port}\"")), "{probe}: {listen}");
        let path = get["path"].as_str().context("a path")?;
        let url = format!("http://{host}:{port}{path}");
        wait::until(SOON, probe, || {
            let mut curl = lab.balancer.namespace.command("curl");
            command::run(curl.args(["-sSf", "--max-time", "5", &url]))
        })?;
    }
    Ok(())
}
