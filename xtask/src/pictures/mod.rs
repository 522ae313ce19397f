//! `cargo xtask pictures`: the pictures of the README, of a pair in the lab at work.
//!
//! Clients download and send requests, backends drain and die, the addresses go to the other node and come back; then
//! the dashboard is looked at by a real browser, and `lbctl top` by a real terminal.

mod terminal;

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    browser::{Browser, Screen},
    command,
    ha_pair::HaPair,
    lab::{self, Options},
    load::{Load, Plan},
    process::Orphan,
    signals, tmux,
    ways::Way,
};

use crate::{cargo, pair, root, setup};

#[derive(clap::Args)]
pub struct Arguments {
    /// How long the clients are at work before the pictures are taken, in seconds
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// All is set up and built
    #[arg(long, hide = true)]
    built: bool,
}

/// Where the pictures are.
const FOLDER: &str = "docs/pictures";
/// A picture in the README is to be smaller, in bytes.
const MOST: usize = 300_000;

const ADDRESS: &str = "http://127.0.0.1:9105/";
const HTTP: &str = "\n[http]\nlisten = [\"127.0.0.1:9105\"]\n";

const DESK: Screen = Screen { width: 1280, height: 960, scale: 1.0, dark: false };
const PHONE: Screen = Screen { width: 390, height: 844, scale: 1.5, dark: false };

/// Makes the pictures.
///
/// # Errors
///
/// If the lab does not come up, or a picture is not as it should be.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.built {
        setup::tools()?;
        setup::lab_with(&["chromium"])?;
        if let Err(error) = setup::typeface() {
            println!("the pictures get another typeface than those that are there: {error:#}");
        }
        cargo::build(false)?;
    }
    let seconds = arguments.seconds.to_string();
    root::become_root(&["pictures", "--built", "--seconds", &seconds], "the lab")?;
    signals::catch();
    lab::sweep()?;
    let folder = crate::workspace().join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    println!("starting lb1, lb2, three web hosts and a client");
    let mut ha_pair = start()?;
    println!("clients are at work for {seconds} s");
    let loads = let_happen(&mut ha_pair, Duration::from_secs(arguments.seconds))?;
    let kept = take(&ha_pair, &folder);
    for load in loads {
        // Errors while hosts are killed do not matter for a picture.
        let _ = load.finish();
    }
    kept
}

/// The pair, with the dashboard on.
fn start() -> Result<HaPair> {
    let mut ha_pair = HaPair::new(&Options::default(), pair::plan())?;
    let services = ha_pair.plan.services(&ha_pair.lab);
    for n in [0, 1] {
        let tables = ha_pair.plan.tables(&ha_pair.lab, n)?;
        ha_pair.nodes[n].set_more(&(tables + HTTP));
        ha_pair.nodes[n].configure(&services)?;
        ha_pair.nodes[n].launch()?;
        ha_pair.nodes[n].wait_usable()?;
    }
    ha_pair.wait_active(0)?;
    ha_pair.wait_synced()?;
    Ok(ha_pair)
}

/// Load that varies, and faults of a pair, over so long a time.
fn let_happen(ha_pair: &mut HaPair, time: Duration) -> Result<Vec<Load>> {
    let begin = Instant::now();
    let wait_until = |part: f64| {
        while begin.elapsed() < time.mul_f64(part) && !signals::caught() {
            thread::sleep(Duration::from_millis(50));
        }
        ensure!(!signals::caught(), "interrupted");
        Ok(())
    };
    let client = ha_pair.lab.client.namespace.path();
    let client = client.file_name().context("a namespace's name")?.to_string_lossy().into_owned();
    let client = kit::namespace::Namespace::existing(&client);
    let load = |way: Way, steady, passing, millis| {
        let pause = Duration::from_millis(millis);
        Load::start(&client, Plan { target: way.target(), steady, passing, pause })
    };
    let both = |ha_pair: &HaPair, words: &[&str]| {
        ha_pair.nodes.iter().try_for_each(|node| node.lbctl(words).map(drop))
    };
    let mut loads = vec![load(Way::DsrV4, 60, 30, 60)?, load(Way::DsrV6, 20, 10, 90)?];
    both(ha_pair, &["backend", "weight", "dsr-v4", "10.0.0.11", "2"])?;
    wait_until(0.25)?;
    loads.push(load(Way::DsrV4, 30, 20, 45)?);
    wait_until(0.40)?;
    ha_pair.hand_over(0)?;
    ha_pair.wait_active(1)?;
    wait_until(0.50)?;
    ha_pair.hand_over(1)?;
    ha_pair.wait_active(0)?;
    wait_until(0.55)?;
    drop(loads.remove(1));
    loads.push(load(Way::DsrV6, 30, 20, 50)?);
    wait_until(0.60)?;
    ha_pair.lab.webs[2].nginx.kill()?;
    wait_until(0.72)?;
    let web = &mut ha_pair.lab.webs[2];
    web.nginx.restart(&web.host.namespace, Orphan::Dies)?;
    wait_until(0.88)?;
    both(ha_pair, &["backend", "drain", "dsr-v4", "10.0.0.12", "--deadline", "10m"])?;
    both(ha_pair, &["backend", "disable", "dsr-v6", "fd00::12"])?;
    wait_until(0.95)?;
    ha_pair.lab.webs[2].nginx.kill()?;
    wait_until(1.0)?;
    Ok(loads)
}

/// Takes the pictures.
fn take(ha_pair: &HaPair, folder: &Path) -> Result<()> {
    let host = ha_pair.host(0);
    let browser = Browser::start(&host.namespace, &ha_pair.lab.folder().join("chromium"))?;
    for (name, screen) in [
        ("dashboard-light", DESK),
        ("dashboard-dark", Screen { dark: true, ..DESK }),
        ("dashboard-phone", PHONE),
    ] {
        let page = browser.open(ADDRESS, screen)?;
        let soon = Duration::from_secs(20);
        page.wait(soon, "document.querySelector('#link').dataset.link", "live")?;
        let drawn = "document.querySelector('.strip path[d^=M]') !== null";
        page.wait(soon, drawn, true)?;
        let drawn = "document.querySelector('.backends .line').getAttribute('d').length > 20";
        page.wait(soon, drawn, true)?;
        if name != "dashboard-phone" {
            // More than a screen: down to the holder of the addresses.
            let height = page.evaluate("document.documentElement.scrollHeight")?;
            let height = u32::try_from(height.as_u64().context("a height")?)?.min(1_320);
            page.look(Screen { height, ..screen })?;
            // Parts are drawn when they are seen.
            page.evaluate("new Promise((done) => setTimeout(done, 1500))")?;
        }
        keep(folder, &format!("{name}.png"), &page.picture()?)?;
    }
    let screen = tmux::picture_of_top(&ha_pair.nodes[0], (110, 30), Duration::from_secs(5))?;
    keep(folder, "top.svg", terminal::svg(&screen, "lbctl top").as_bytes())
}

fn keep(folder: &Path, name: &str, picture: &[u8]) -> Result<()> {
    let path = folder.join(name);
    ensure!(picture.len() < MOST, "{name} has {} bytes, {MOST} are the most", picture.len());
    fs::write(&path, picture).with_context(|| format!("write {}", path.display()))?;
    // The user that called sudo is to own the files in the work tree.
    if let Ok(user) = std::env::var("SUDO_UID") {
        command::run(command::command("chown").arg(user).arg(&path))?;
    }
    println!("{FOLDER}/{name}: {} kB", picture.len().div_ceil(1_000));
    Ok(())
}
