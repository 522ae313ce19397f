//! Files that the configuration names and that can't be used, and addresses that can't be had.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use kit::{balancer, can_run, command, namespace::Namespace, wait};

use super::{PATIENCE, PORT, client::get, looking::TOKEN, testbed};

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text)?;
    Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o600))?)
}

#[test]
fn a_listener_without_its_token_is_reported_and_retried_and_nothing_else_waits() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = testbed(|lab| {
        let (address, folder) = (lab.balancer.v4, lab.folder().display());
        format!(
            "[http]\nlisten = [\"{address}:{PORT}\"]\nbearer_token_file = \"{folder}/http.token\"\n"
        )
    })?;
    balancer.launch()?;
    balancer.wait_usable()?;
    let shown = balancer.lbctl(&["status"])?;
    let line = shown.lines().find(|line| line.starts_with("NOT LISTENING for HTTP on "));
    let line = line.with_context(|| shown.clone())?;
    ensure!(line.contains("http.token is missing"), "{line}");
    let from = &lab.client.namespace;
    let to = (lab.balancer.v4, PORT).into();
    ensure!(get(from, to, "/healthz", "").is_err(), "nobody is answered without the token");
    // A reload takes the whole configuration or nothing.
    let refused = balancer.lbctl_output(&["config", "reload"])?;
    let text = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        text.contains("http.token is missing") && text.contains("nothing was changed"),
        "{text}"
    );

    write(&lab.folder().join("http.token"), &format!("{TOKEN}\n"))?;
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    let metrics = wait::until(PATIENCE, "it listens", || get(from, to, "/metrics", &bearer))?;
    ensure!(get(from, to, "/metrics", "")?.status == 401, "the token protects it");
    let listens = format!("lb_http_listening{{address=\"{to}\"}} 1");
    ensure!(metrics.body.contains(&listens), "{}", metrics.body);
    balancer.check()
}

#[test]
fn an_address_that_can_not_be_had_is_in_the_metrics_of_another() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = testbed(|lab| {
        let address = lab.balancer.v4;
        format!(
            "[http]\nlisten = [\"{address}:{PORT}\", \"192.0.2.9:{PORT}\"]\n\
             allow_unprotected = true\n"
        )
    })?;
    balancer.launch()?;
    balancer.wait_usable()?;
    let from = &lab.client.namespace;
    let to = (lab.balancer.v4, PORT).into();
    let lacks = |is: &str| {
        let metrics = get(from, to, "/metrics", "")?.body;
        let line = format!("lb_http_listening{{address=\"192.0.2.9:{PORT}\"}} {is}");
        ensure!(metrics.contains(&line), "{metrics}");
        Ok(())
    };
    wait::until(PATIENCE, "it can't be had", || lacks("0"))?;
    lab.balancer.namespace.ip("address add 192.0.2.9/32 dev lo")?;
    wait::until(PATIENCE, "it is tried again", || lacks("1"))
}

#[test]
fn only_a_mistake_in_the_text_ends_lbd_for_good() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let host = Namespace::new("host")?;
    let folder = tempfile::tempdir()?;
    let (file, key) = (folder.path().join("lb.toml"), folder.path().join("sync.key"));
    let sync = format!(
        "[sync]\nkey_file = \"{}\"\nlisten = \"10.0.0.1:3780\"\npeers = [\"10.0.0.2:3780\"]\n",
        key.display()
    );
    let ends = |arguments: &[&str]| -> Result<Option<i32>> {
        let mut lbd = balancer::program(&host, "lbd")?;
        Ok(command::output(lbd.args(arguments).arg(&file), "")?.status.code())
    };
    for (text, started, checked) in [
        (None, Some(3), Some(1)),
        (Some(format!("interfaces = [\"eth0\"]\n{sync}")), Some(3), Some(1)),
        (Some(format!("interfaces = [\"eth0\"]\nnonsense = 1\n{sync}")), Some(2), Some(2)),
    ] {
        if let Some(text) = &text {
            fs::write(&file, text)?;
        }
        assert_eq!(ends(&["--config"])?, started, "{text:?}");
        assert_eq!(ends(&["--check"])?, checked, "{text:?}");
    }
    Ok(())
}
