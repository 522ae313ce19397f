//! A state file on a disk that is full, or that nothing can be written to.

use std::{
    ffi::CString,
    fs, io,
    os::{fd::AsRawFd as _, unix::ffi::OsStrExt as _},
    path::Path,
    ptr,
    time::Duration,
};

use hyper::{Method, body::Bytes};
use lb_api::{
    requests::{ConfigDiff, Done, Reloaded},
    status::Status,
};
use lb_model::edit::BackendChange;
use tokio::time::timeout;

use crate::common::{Place, Running, WEB, eventually};

const A: &str = "/v1/services/web/backends/10.0.0.11";

/// Whether this can mount; where it can't, prints it, which in CI is a failure.
fn can_mount() -> bool {
    // SAFETY: no arguments, no effect.
    if unsafe { libc::geteuid() } == 0 {
        return true;
    }
    let ci = std::env::var("CI").is_ok_and(|ci| !ci.is_empty() && ci != "false" && ci != "0");
    assert!(!ci, "needs root, to mount a small disk");
    eprintln!("SKIPPED: needs root, to mount a small disk");
    false
}

fn check(result: libc::c_int) {
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Mounts, or changes a mount.
fn mount(kind: &str, at: &Path, flags: libc::c_ulong, options: &str) {
    let text = |text: &[u8]| CString::new(text).expect("no zero in it");
    let (kind, at, options) =
        (text(kind.as_bytes()), text(at.as_os_str().as_bytes()), text(options.as_bytes()));
    // SAFETY: the strings live, and end with a zero.
    check(unsafe {
        libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast())
    });
}

/// A disk of 64 KiB in a folder, which only this thread and its children see.
fn small_disk(at: &Path) {
    // SAFETY: no memory is involved; only this thread moves to a namespace of its own.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) });
    // Mounts here must not reach the namespace that it was copied from.
    // SAFETY: the string lives, and unused arguments may be null.
    check(unsafe {
        libc::mount(
            ptr::null(),
            c"/".as_ptr(),
            ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            ptr::null(),
        )
    });
    fs::create_dir(at).expect("the folder is new");
    mount("tmpfs", at, 0, "size=64k");
}

async fn weigh(lbd: &Running, weight: &str) -> Vec<String> {
    let change = BackendChange { weight: Some(weight.parse().expect(weight)), admin: None };
    let done: Done = lbd.client.send_json(Method::PATCH, A, &change).await.expect("it is done");
    done.notes
}

/// Whether the exported metric is 1.
async fn is_failing(lbd: &Running) -> bool {
    let mut lines = lbd.client.lines("/metrics").await.expect("it answers");
    while let Some(line) = lines.next().await.expect("it is read to its end") {
        let line = String::from_utf8_lossy(&line);
        if let Some(value) = line.trim_end().strip_prefix("lb_state_file_failing ") {
            return value == "1";
        }
    }
    panic!("it is exported")
}

#[tokio::test]
async fn what_no_disk_keeps_is_in_force_told_and_kept_later() {
    if !can_mount() {
        return;
    }
    let place = Place::new(WEB);
    let disk = place.path("disk");
    small_disk(&disk);
    let text = fs::read_to_string(place.file()).expect("it is there");
    fs::write(place.file(), text.replace("state.json", "disk/state.json")).expect("it is ours");
    let file = disk.join("state.json");
    let kept = |weight: u16| {
        let text = fs::read_to_string(&file).expect("it is there");
        let state: serde_json::Value = serde_json::from_str(&text).expect("it is whole");
        let change = &state["overrides"]["services"]["web"]["backends"]["10.0.0.11"]["changed"];
        change["weight"] == weight
    };
    let in_force = async |lbd: &Running, weight: u16| {
        let backend: lb_api::status::Backend = lbd.client.get(A).await.expect("it is there");
        backend.weight == weight
    };
    let lbd = place.start().await;
    assert_eq!(weigh(&lbd, "5").await, [""; 0]);
    assert!(kept(5));
    assert!(!is_failing(&lbd).await);

    // The state takes more than is left.
    let filler = disk.join("filler");
    let mut room = 128 << 10;
    while room > 256 {
        let mut all = fs::read(&filler).unwrap_or_default();
        all.resize(all.len() + room, 0);
        if fs::write(&filler, &all).is_err() {
            room /= 2;
            all.truncate(all.len() - room * 2);
            fs::write(&filler, &all).expect("it fitted before");
        }
    }
    let notes = weigh(&lbd, "6").await;
    assert!(notes.len() == 1 && notes[0].contains("not kept over a restart"), "{notes:?}");
    assert!(notes[0].contains("No space left on device"), "{notes:?}");
    assert!(in_force(&lbd, 6).await);
    assert!(kept(5), "the old state survives");
    eventually("the metric is 1", async || is_failing(&lbd).await).await;
    fs::remove_file(&filler).expect("it is ours");
    eventually("it is kept when there is room", async || kept(6)).await;
    eventually("the metric is 0", async || !is_failing(&lbd).await).await;

    mount("tmpfs", &disk, libc::MS_REMOUNT | libc::MS_RDONLY, "size=64k");
    let notes = weigh(&lbd, "7").await;
    assert!(notes.len() == 1 && notes[0].contains("Read-only file system"), "{notes:?}");
    assert!(in_force(&lbd, 7).await && kept(6));
    mount("tmpfs", &disk, libc::MS_REMOUNT, "size=64k");
    eventually("it is kept when it can be written", async || kept(7)).await;
    lbd.stop().await;

    let lbd = place.start().await;
    assert!(in_force(&lbd, 7).await);
    lbd.stop().await;
    let path = CString::new(disk.as_os_str().as_bytes()).expect("no zero in it");
    // SAFETY: the string lives, and ends with a zero.
    check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) });
}

#[tokio::test]
async fn a_disk_that_stalls_stops_neither_changes_nor_checks() {
    let place = Place::new(WEB);
    let lbd = place.start().await;
    assert_eq!(weigh(&lbd, "5").await, [""; 0]);
    // The opening of a pipe for writing waits for a reader, as for a disk that is frozen.
    let pipe = place.path("state.json.partial");
    let name = CString::new(pipe.as_os_str().as_bytes()).expect("no zero in it");
    // SAFETY: the string lives, and ends with a zero.
    check(unsafe { libc::mkfifo(name.as_ptr(), 0o600) });
    let in_time = std::time::Duration::from_secs(5);
    for weight in ["6", "7"] {
        let notes = tokio::time::timeout(in_time, weigh(&lbd, weight)).await.expect("an answer");
        assert!(notes.len() == 1 && notes[0].contains("applied and not kept yet"), "{notes:?}");
    }
    // While a change waits for its answer, others are answered at once.
    let mut waits = Box::pin(weigh(&lbd, "8"));
    let status = lbd.client.get::<lb_api::status::Status>("/v1/status");
    tokio::select! {
        biased;
        notes = &mut waits => panic!("the disk stalls: {notes:?}"),
        status = status => assert!(status.is_ok()),
    }
    waits.await;
    eventually("the metric is 1", async || is_failing(&lbd).await).await;
    let status: lb_api::status::Status = lbd.client.get("/v1/status").await.expect("it answers");
    let error = status.state_file_error.expect("the write does not end");
    assert!(error.contains("more than 5 s"), "{error}");
    let reader = fs::File::options().read(true).open(&pipe).expect("it is there");
    fs::remove_file(&pipe).expect("it is ours");
    let kept = || fs::read_to_string(place.path("state.json")).expect("it is there");
    eventually("the last one is kept", async || kept().contains("\"weight\": 8")).await;
    drop(reader);
    eventually("the metric is 0", async || !is_failing(&lbd).await).await;
    lbd.stop().await;
}

/// Opening a file waits while this lease on it is held, as for a disk that hangs.
fn freeze(path: &Path) -> fs::File {
    // The kernel signals a waiting open by SIGIO, which is to end nothing.
    // SAFETY: a handler is replaced by none.
    assert_ne!(unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) }, libc::SIG_ERR);
    let lease = fs::File::open(path).expect("it is there");
    // SAFETY: only integers are passed, and the descriptor is open.
    check(unsafe { libc::fcntl(lease.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) });
    lease
}

#[tokio::test]
async fn a_configuration_on_a_disk_that_stalls_holds_up_who_needs_it_and_nobody_else() {
    let in_time = Duration::from_secs(5);
    let place = Place::new(WEB);
    let lbd = place.start().await;
    place.configure(&WEB.replace("weight = 3", "weight = 7"));
    let frozen = freeze(&place.file());
    let mut reload =
        Box::pin(lbd.client.send::<Reloaded>(Method::POST, "/v1/reload", Bytes::new()));
    for weight in ["5", "6"] {
        tokio::select! {
            biased;
            reloaded = &mut reload => panic!("the disk stalls: {reloaded:?}"),
            notes = timeout(in_time, weigh(&lbd, weight)) => {
                assert_eq!(notes.expect("an answer"), [""; 0]);
            }
        }
    }
    let mut diff = Box::pin(lbd.client.get::<ConfigDiff>("/v1/config/diff"));
    tokio::select! {
        biased;
        diff = &mut diff => panic!("the disk stalls: {diff:?}"),
        status = timeout(in_time, lbd.client.get::<Status>("/v1/status")) => {
            assert!(status.expect("an answer").is_ok());
        }
    }
    drop(frozen);
    let reloaded = timeout(in_time, reload).await.expect("in time").expect("it is valid");
    assert_eq!(reloaded.differences.len(), 1, "{reloaded:?}");
    let diff = timeout(in_time, diff).await.expect("in time").expect("it answers");
    assert!(diff.reload.differences.is_empty(), "the reload was asked for before: {diff:?}");
    assert_eq!(diff.runtime.len(), 1, "what was changed meanwhile stays: {diff:?}");
    lbd.stop().await;
}
