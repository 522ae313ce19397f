//! The binaries: their outputs and exit statuses.

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use lb_api::status::{Backend, Status};
use lb_model::router::State;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    common::{Place, WEB, eventually},
    pair::{ROUTER, main},
};

/// How a binary ended: status, standard output, standard error.
#[derive(Debug, PartialEq)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

pub fn lbctl_command(socket: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lbctl"));
    command.arg("--socket").arg(socket).args(line.split_whitespace());
    command
}

/// Runs lbctl while the daemon in this process goes on.
pub async fn lbctl(place: &Place, line: &str) -> Ran {
    let mut command = lbctl_command(&place.socket(), line);
    let run = tokio::task::spawn_blocking(move || command.output());
    run.await.expect("no panic").expect("it runs").into()
}

fn lbd(arguments: &[&str]) -> Ran {
    Command::new(env!("CARGO_BIN_EXE_lbd")).args(arguments).output().expect("it runs").into()
}

/// By such an end systemd can't distinguish a stop from a crash, and addresses of an lbd that ran before stay.
#[test]
fn a_stop_before_the_configuration_is_read_kills_no_lbd() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("lb.toml");
    assert!(Command::new("mkfifo").arg(&file).status().expect("it runs").success());
    let mut command = Command::new(env!("CARGO_BIN_EXE_lbd"));
    command.arg("--config").arg(&file).stderr(Stdio::piped());
    let lbd = command.spawn().expect("it runs");
    // Both wait for each other.
    let mut pipe = fs::OpenOptions::new().write(true).open(&file).expect("lbd reads it");
    let pid = Pid::from_raw(lbd.id().try_into().expect("a number of a process"));
    kill(pid, Signal::SIGTERM).expect("it is there");
    // It fails where lbd is dead.
    let _ = pipe.write_all(b"interfaces = []\n");
    drop(pipe);
    let ran = Ran::from(lbd.wait_with_output().expect("it ends"));
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("no interface"), "{ran:?}");
}

#[test]
fn misuse_exits_with_2() {
    let socket = Path::new("/nonexistent");
    for line in
        ["", "servcie list", "backend weight web 10.0.0.1 0", "backend add web", "-o yaml status"]
    {
        let ran = Ran::from(lbctl_command(socket, line).output().expect("it runs"));
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{line}: {ran:?}");
    }
    assert_eq!(lbd(&["--chekc", "x"]).code, Some(2));
}

#[test]
fn every_mistake_of_a_configuration_is_printed() {
    let place = Place::new(&WEB.replace("weight = 3", "weight = 0").replace("dsr", "drs"));
    let file = place.file().display().to_string();
    let expected = format!(
        "{file}:11:8: service[0].mode: `drs` is unknown; did you mean \"dsr\"? (\"dsr\", \"ipip\", \"nat\")\n\
         {file}:13:73: service[0].backend[1].weight: weight 0; use 'drain' to take a backend out of service\n\
         {file}: 2 errors\n"
    );
    let expected = Ran { code: Some(2), out: String::new(), err: expected };
    assert_eq!(lbd(&["--check", &file]), expected);
    let check = lbctl_command(&place.socket(), &format!("config check {file}")).output();
    assert_eq!(Ran::from(check.expect("it runs")), expected);
    // A start prints the same, and touches nothing.
    assert_eq!(lbd(&["--config", &file]), expected);
    assert!(!place.socket().exists());
}

#[test]
fn a_valid_configuration_is_summed_up() {
    let place = Place::new(WEB);
    let file = place.file().display().to_string();
    let ran = lbd(&["--check", &file]);
    let out = format!("{file}: ok: 1 service, 2 backends, on eth0\n");
    assert_eq!(ran, Ran { code: Some(0), out, err: String::new() });
    let ran = lbd(&["--check", "/nonexistent.toml"]);
    assert_eq!(ran.code, Some(1));
    assert_eq!(
        ran.err,
        "read configuration /nonexistent.toml: No such file or directory (os error 2)\n"
    );
}

#[test]
fn a_configuration_that_this_host_can_not_start_with_fails_the_check() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (file, seed) = (folder.path().join("lb.toml"), folder.path().join("seed"));
    let check = |interface: &str| {
        let text = format!("interfaces = [\"{interface}\"]\nseed_file = \"{}\"\n", seed.display());
        fs::write(&file, text).expect("it is written");
        lbd(&["--check", &file.display().to_string()])
    };
    let name = file.display();
    let expected = format!(
        "{name}: interfaces: none0 is no interface of this host; `ip link` lists them\n{name}: 1 error\n"
    );
    // Status 2 is a mistake in the file, which waiting does not mend.
    assert_eq!(check("none0"), Ran { code: Some(1), out: String::new(), err: expected });
    assert_eq!(check("lo").code, Some(0));
    let place = Place::new(&WEB.replace("1009", "2"));
    let ran = lbd(&["--check", &place.file().display().to_string()]);
    assert!(ran.err.contains("lb.toml:12:14: warning: service[0].ring_slots: 2 slots"), "{ran:?}");
    fs::write(&seed, "abc").expect("it is written");
    let ran = check("lo");
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(ran.err.contains("holds no seed of 32 hexadecimal digits"), "{}", ran.err);
}

#[test]
fn a_check_warns_of_a_seed_that_a_node_of_a_pair_would_make_for_itself() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (file, seed) = (folder.path().join("lb.toml"), folder.path().join("seed"));
    let text = format!(
        "interfaces = [\"lo\"]\nseed_file = \"{}\"\n[sync]\nkey = \"{}\"\nlisten = \"10.0.0.2:3780\"\npeers = [\"10.0.0.3:3780\"]\n",
        seed.display(),
        "01".repeat(32)
    );
    fs::write(&file, text).expect("it is written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let check = || lbd(&["--check", &file.display().to_string()]);
    let ran = check();
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("warning:") && ran.err.contains("copy it from there"), "{}", ran.err);
    assert!(!seed.exists(), "a check makes nothing");
    fs::write(&seed, "0123456789abcdef0123456789abcdef").expect("it is written");
    assert!(!check().err.contains("seed is"), "{}", check().err);
}

#[test]
fn a_stopped_daemon_is_one_clear_line() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let socket = dir.path().join("lbd.sock");
    let line = |why: &str| {
        format!(
            "lbctl: lbd is not running ({why} {}): start it with 'lbd --config /etc/lb/lb.toml'\n",
            socket.display()
        )
    };
    let ran = Ran::from(lbctl_command(&socket, "status").output().expect("it runs"));
    assert_eq!(ran, Ran { code: Some(1), out: String::new(), err: line("no socket") });
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("it binds"));
    let ran = Ran::from(lbctl_command(&socket, "backend list").output().expect("it runs"));
    assert_eq!(ran, Ran { code: Some(1), out: String::new(), err: line("nobody listens on") });
}

#[tokio::test]
async fn no_permission_is_one_clear_line() {
    let place = Place::new(WEB);
    let running = place.start().await;
    // Without root the test can't become `nobody`, and is refused by an own mode instead.
    let mode = if nobody_can_be_used() { 0o660 } else { 0o000 };
    fs::set_permissions(place.socket(), fs::Permissions::from_mode(mode)).expect("it is ours");
    fs::set_permissions(place.path(""), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let binary = place.path("lbctl");
    fs::copy(env!("CARGO_BIN_EXE_lbctl"), &binary).expect("it is copied");
    let mut command = Command::new(&binary);
    command.arg("--socket").arg(place.socket()).arg("status");
    if nobody_can_be_used() {
        command.uid(65_534).gid(65_534);
    }
    let run = tokio::task::spawn_blocking(move || command.output());
    let ran = Ran::from(run.await.expect("no panic").expect("it runs"));
    let expected = format!(
        "lbctl: no permission to use {}: be root, or of its group ",
        place.socket().display()
    );
    assert!(ran.err.starts_with(&expected) && ran.err.lines().count() == 1, "{ran:?}");
    assert_eq!(ran.code, Some(1));
    running.stop().await;
}

/// Whether this runs as root.
fn nobody_can_be_used() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

#[tokio::test]
async fn a_session_with_backends() {
    let place = Place::new(WEB);
    let running = place.start().await;
    for (line, code, out, err) in [
        (
            "backend add web 10.0.0.14 --weight 2",
            0,
            "backend 10.0.0.14 of web added with weight 2\n",
            "",
        ),
        ("backend weight web 10.0.0.14 3", 0, "backend 10.0.0.14 of web has weight 3\n", ""),
        (
            "backend disable web 10.0.0.14",
            0,
            "backend 10.0.0.14 of web gets no new flows and keeps the ones it has\n",
            "",
        ),
        (
            "backend disable web 10.0.0.14 --force",
            0,
            "backend 10.0.0.14 of web is down; its flows move at once\n",
            "",
        ),
        ("backend enable web 10.0.0.14", 0, "backend 10.0.0.14 of web takes new flows\n", ""),
        (
            "backend drain web 10.0.0.14 --deadline 10m",
            0,
            "backend 10.0.0.14 of web drains until its last flow has ended, or 10m have passed\n",
            "",
        ),
        (
            "backend remove web 10.0.0.14",
            0,
            "backend 10.0.0.14 of web drains, and is removed when its last flow has ended\n",
            "",
        ),
        (
            "backend remove web 10.0.0.14 --force",
            0,
            "backend 10.0.0.14 of web removed; its flows move at once\n",
            "",
        ),
        (
            "backend show web 10.0.0.14",
            1,
            "",
            "lbctl: service web has no backend 10.0.0.14; did you mean 10.0.0.11?\n",
        ),
        ("backend list wbe", 1, "", "lbctl: no service wbe; did you mean web?\n"),
        (
            "service add dns --vip 10.0.0.100 --port 53 --protocol udp --udp oneshot",
            0,
            "service dns added: udp 10.0.0.100:53 by dsr\n",
            "",
        ),
        (
            "service add dns2 --vip fd00::1 --port 53 --ring-slots 4",
            1,
            "",
            "lbctl: service dns2: 4 slots; Maglev needs a prime: the next one is 5\n",
        ),
        (
            "service remove dns",
            1,
            "",
            "lbctl: this ends service dns, which has 0 backends: its connections break; pass --yes to do it all the same\n",
        ),
        ("service remove dns --yes", 0, "service dns removed\n", ""),
        (
            "config reload",
            0,
            "configuration reloaded, nothing changed: 1 service, 2 backends, on eth0\n",
            "",
        ),
    ] {
        let ran = lbctl(&place, line).await;
        assert_eq!(ran, Ran { code: Some(code), out: out.into(), err: err.into() }, "{line}");
    }
    running.stop().await;
}

#[tokio::test]
async fn tables_and_json_show_the_same() {
    let place = Place::new(WEB);
    let running = place.start().await;
    let status = lbctl(&place, "status").await;
    for expected in [
        "services 1 of 8",
        "service web: tcp 10.0.0.100:80, dsr, 1009 slots",
        "10.0.0.11  up",
        "dropped: none",
    ] {
        assert!(status.out.contains(expected), "{}", status.out);
    }
    assert!(!status.out.contains('\x1b'), "no colours in a pipe");
    let json = lbctl(&place, "-o json status").await.out;
    let parsed: Status = serde_json::from_str(&json).expect(&json);
    assert_eq!(parsed.services["web"].backends.len(), 2);
    let list = lbctl(&place, "service list").await.out;
    assert!(list.starts_with("SERVICE  PROTOCOL  VIP"), "{list}");
    let list = lbctl(&place, "backend list web").await.out;
    assert_eq!(list.lines().count(), 3, "{list}");
    let json = lbctl(&place, "backend show web 10.0.0.12 -o json").await.out;
    assert_eq!(serde_json::from_str::<Backend>(&json).expect(&json).weight, 3);
    running.stop().await;
}

#[tokio::test]
async fn a_drain_is_waited_for() {
    let place = Place::new(&format!("{WEB}idle_timeout = \"2s\"\n"));
    let running = place.start().await;
    let waited = lbctl(&place, "backend drain web 10.0.0.11 --wait --timeout 30s").await;
    assert_eq!(waited.code, Some(0), "{waited:?}");
    assert!(waited.err.contains("backend 10.0.0.11 of web has no flow left, after "), "{waited:?}");
    running.stop().await;

    let place = Place::new(WEB);
    let running = place.start().await;
    let late = lbctl(&place, "backend drain web 10.0.0.12 --wait --timeout 1s").await;
    assert_eq!(late.code, Some(1), "{late:?}");
    let left =
        "lbctl: backend 10.0.0.12 of web still drains: 0 pinned flows, older flows possible in ";
    assert!(late.err.contains(left), "{late:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_backup_without_sync_does_not_say_that_a_drain_is_over() {
    let place = Place::new(&format!("{WEB}idle_timeout = \"2s\"\n{ROUTER}"));
    let running = place.start().await;
    let main = main(&place);
    running.script.becomes(&main, State::Backup, "it begins");
    eventually("it is Backup", async || {
        lbctl(&place, "vrrp status").await.out.to_lowercase().contains("backup")
    })
    .await;
    for until in ["estimated", "proven"] {
        let drain = format!("backend drain web 10.0.0.11 --wait --until {until} --timeout 30s");
        let waited = lbctl(&place, &drain).await;
        assert_eq!(waited.code, Some(1), "{waited:?}");
        for expected in [
            "only the Active sees the traffic of web",
            "run `lbctl backend drain web 10.0.0.11 --wait` on the Active",
        ] {
            assert!(waited.err.contains(expected), "{waited:?}");
        }
        // After an idle timeout without packets, it knows no more.
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    let show = lbctl(&place, "backend show web 10.0.0.11").await.out;
    assert!(show.contains("unknown: only the Active sees the traffic"), "{show}");
    let list = lbctl(&place, "backend list web").await.out;
    assert!(list.contains("draining (only the Active sees its flows)"), "{list}");
    running.script.becomes(&main, State::Active, "the other one is gone");
    eventually("the drain is over", async || {
        lbctl(&place, "backend drain web 10.0.0.11 --wait --timeout 30s").await.code == Some(0)
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn taking_the_last_backend_is_told() {
    let place = Place::new(WEB);
    let running = place.start().await;
    let first = lbctl(&place, "backend disable web 10.0.0.11").await.out;
    assert_eq!(first.lines().count(), 1, "{first}");
    let last = lbctl(&place, "backend drain web 10.0.0.12 --yes").await.out;
    let note = "  no backend of web takes new flows; new connections are dropped until one does\n";
    assert!(last.ends_with(note), "{last}");
    running.stop().await;
}

#[tokio::test]
async fn a_wait_ends_when_the_drain_is_called_off() {
    let place = Place::new(&format!("{WEB}idle_timeout = \"1h\"\n"));
    let running = place.start().await;
    let mut command = lbctl_command(&place.socket(), "backend drain web 10.0.0.11 --wait");
    let waiting = tokio::task::spawn_blocking(move || command.output());
    eventually("it drains", async || lbctl(&place, "backend list").await.out.contains("draining"))
        .await;
    lbctl(&place, "backend enable web 10.0.0.11").await;
    let ran = Ran::from(waiting.await.expect("no panic").expect("it runs"));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("does not drain any more"), "{ran:?}");
    running.stop().await;
}

#[tokio::test]
async fn detach_ends_the_daemon() {
    let place = Place::new(WEB);
    let running = place.start().await;
    let ran = lbctl(&place, "detach --yes").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.out, "detached; nothing is forwarded any more\n  link-eth0\n");
    running.task.await.expect("no panic").expect("no error");
}

#[tokio::test]
async fn a_second_daemon_on_the_socket_is_refused() {
    let place = Place::new(WEB);
    let running = place.start().await;
    let file = place.file().display().to_string();
    let second = tokio::task::spawn_blocking(move || lbd(&["--config", &file]));
    let ran = second.await.expect("no panic");
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let expected = format!(
        "lbd: lbd is running already: it answers on {}; stop it first\n",
        place.socket().display()
    );
    assert_eq!(ran.err, expected);
    running.stop().await;
}
