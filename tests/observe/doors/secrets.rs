//! No secret is printed: known secrets are put into a configuration, and looked for in all
//! outputs of `lbd` and `lbctl`.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::{Context as _, Result, ensure};
use kit::{balancer, can_run, command};

use super::{PORT, WAY, client::get, testbed};

const SEED: &str = "a1b2c3d4e5f60718293a4b5c6d7e8f90";
const SYNC_KEY: &str = "0badc0de0badc0de0badc0de0badc0de5eedf00d5eedf00d5eedf00d5eedf00d";
const OLD_KEY: &str = "01d0c0de01d0c0de01d0c0de01d0c0de01d0f00d01d0f00d01d0f00d01d0f00d";
const HMAC_KEY: &str = "vrrp-hmac-secret-0123456789abcdef";
const PASSWORD: &str = "pa55w0rd";
const TOKEN: &str = "token-5e2d1c0b9a8f7e6d5c4b3a29";
const HASH: &str = "$2y$05$hQCfj8TG9wJ29Y0W9EXl.OPYxkijuibs/vKZ62rn88Jn6Aul4UBea";
const LOGIN: &str = "correct horse";

/// A secret in the forms in which it might slip out.
fn forms(secret: &str) -> Vec<String> {
    let mut forms = vec![secret.to_owned(), secret.to_uppercase()];
    let digits =
        secret.len().is_multiple_of(2) && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bytes: Vec<u8> = match digits {
        true => (0..secret.len())
            .step_by(2)
            .filter_map(|at| u8::from_str_radix(&secret[at..at + 2], 16).ok())
            .collect(),
        false => secret.bytes().collect(),
    };
    // As `{:?}` prints bytes: the first eight will do.
    let debug: Vec<_> = bytes.iter().take(8).map(ToString::to_string).collect();
    forms.push(debug.join(", "));
    forms.push(debug.join(","));
    forms.push(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
    forms
}

#[test]
fn nothing_secret_is_in_anything_that_is_told() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = testbed(|lab| {
        let folder = lab.folder().display();
        let address = lab.balancer.v4;
        let peer = lab.client.v4;
        format!(
            "[log]\nlevel = \"trace\"\n[http]\nlisten = [\"{address}:{PORT}\"]\n\
             tls = {{ certificate = \"{folder}/http.crt\", key = \"{folder}/http.key\" }}\n\
             basic_auth_file = \"{folder}/http.users\"\nbearer_token_file = \"{folder}/http.token\"\n\
             [sync]\nkey = \"{SYNC_KEY}\" # before: key = \"{OLD_KEY}\"\nlisten = \"{address}:3780\"\npeers = [\"{peer}:3780\"]\n\
             [[virtual_router]]\nname = \"signed\"\ninterface = \"eth0\"\nvrid = 51\n\
             addresses = [\"10.77.77.77/32\"]\nhmac_key_file = \"{folder}/vrrp.key\"\n\
             [[virtual_router]]\nname = \"plain\"\ninterface = \"eth0\"\nvrid = 52\nversion = 2\n\
             addresses = [\"10.77.77.78/32\"]\npassword = \"{PASSWORD}\"\n"
        )
    })?;
    let folder = lab.folder();
    let made = rcgen::generate_simple_self_signed(["lb.test".to_owned()])?;
    let key = made.signing_key.serialize_pem();
    for (name, text) in [
        ("http.crt", made.cert.pem()),
        ("http.key", key.clone()),
        ("http.users", format!("ann:{HASH}\n")),
        ("http.token", format!("{TOKEN}\n")),
        ("vrrp.key", HMAC_KEY.to_owned()),
    ] {
        fs::write(folder.join(name), text)?;
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o600))?;
    }
    let config = fs::read_to_string(balancer.config())?;
    let config = config.replace("000102030405060708090a0b0c0d0e0f", SEED);
    fs::write(balancer.config(), &config)?;
    balancer.launch()?;
    balancer.wait_usable()?;

    let mut outputs: Vec<(String, String)> = Vec::new();
    // The answers over HTTP, with and without credentials.
    let from = &lab.client.namespace;
    let url = |path: &str| format!("https://{}:{PORT}{path}", lab.balancer.v4);
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let login = format!("ann:{LOGIN}");
    let paths = [
        "/v1/status",
        "/v1/services",
        "/v1/node",
        "/v1/vrrp",
        "/v1/peers",
        "/v1/events",
        "/readyz",
        "/healthz",
        "/",
        "/metrics",
        "/v1/samples",
        "/v1/config/diff",
        "/v1/log",
    ];
    for path in paths {
        for with in [&[][..], &["-H", &bearer], &["-u", &login], &["-u", "ann:wrong"]] {
            let mut curl = from.command("curl");
            curl.args(["-ski", "--max-time", "10"]).args(with).arg(url(path));
            outputs.push((
                format!("{path} with {with:?}").replace(TOKEN, "").replace(LOGIN, ""),
                command::run(&mut curl)?,
            ));
        }
    }
    let _ = get(from, (lab.balancer.v4, PORT).into(), "/", &format!("{bearer}\r\n"));

    // The outputs of lbctl.
    let host = lab.webs[0].host.v4.to_string();
    for words in [
        "status",
        "-o json status",
        "events",
        "-o json events",
        "service list",
        "service show dsr-v4",
        "backend list",
        "node drain",
        "node enable",
        "vrrp status",
        "-o json vrrp status",
        "sync status",
        "-o json sync status",
        "config diff",
        "-o json config diff",
        "config show",
        "-o json config show",
        "config save --dry-run",
        "config reload --dry-run",
        "log level",
        &format!("backend weight dsr-v4 {host} 3"),
        "config diff",
        "config save --dry-run",
        "-o json config save --dry-run",
        "config reload",
    ] {
        let args: Vec<_> = words.split(' ').collect();
        let output = balancer.lbctl_output(&args)?;
        outputs.push((format!("lbctl {words}"), text(&output)));
    }
    // A configuration that has changed, in everything that is secret.
    let other = config.replace(SEED, &SEED.replace('a', "b")).replace(PASSWORD, "0therpw");
    fs::write(balancer.config(), &other)?;
    for words in
        ["config diff", "config reload --dry-run", "config reload", "config show", "events"]
    {
        let args: Vec<_> = words.split(' ').collect();
        outputs.push((format!("lbctl {words}, changed"), text(&balancer.lbctl_output(&args)?)));
    }
    fs::write(balancer.config(), &config)?;
    outputs.push((
        "lbctl config reload, back".into(),
        text(&balancer.lbctl_output(&["config", "reload"])?),
    ));
    // The output of a check, of a file that is right and of one that is wrong where it is secret.
    let mut check = balancer::program(&lab.balancer.namespace, "lbd")?;
    outputs.push((
        "lbd --check".into(),
        text(&command::output(check.arg("--check").arg(balancer.config()), "")?),
    ));
    let wrong = config
        .replace(SEED, &format!("{SEED}00"))
        .replace(SYNC_KEY, &format!("{SYNC_KEY}00"))
        .replace(PASSWORD, &format!("{PASSWORD}{PASSWORD}"));
    for (name, content) in [
        ("http.users", format!("ann:{LOGIN}\n{HASH}\n")),
        ("http.token", format!("{TOKEN} {TOKEN}\n")),
        ("http.key", key.replace("PRIVATE KEY", "SECRET")),
    ] {
        fs::write(folder.join(name), content)?;
    }
    let file = folder.join("wrong.toml");
    fs::write(&file, wrong)?;
    let mut check = balancer::program(&lab.balancer.namespace, "lbd")?;
    let output = command::output(check.arg("--check").arg(&file), "")?;
    ensure!(output.status.code() == Some(2), "there are mistakes");
    outputs.push(("lbd --check, wrong".into(), text(&output)));

    // The state file, and the log.
    let state = balancer.config().with_file_name("state.json");
    let mode = fs::metadata(&state)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the state file has mode {mode:o}");
    outputs.push(("state.json".into(), fs::read_to_string(&state)?));
    balancer.stop()?;
    let log = balancer.log();
    ensure!(log.contains("TRACE") || log.contains("DEBUG"), "the log's level is low:\n{log}");
    outputs.push(("the log".into(), log));

    let middle = key.lines().nth(1).context("a line of the key")?;
    let secrets = [SEED, SYNC_KEY, OLD_KEY, HMAC_KEY, PASSWORD, TOKEN, HASH, LOGIN, middle];
    let mut found = Vec::new();
    for (whence, printed) in &outputs {
        for secret in secrets {
            for form in forms(secret) {
                if let Some(at) = printed.find(&form) {
                    let line = printed[..at].rfind('\n').map_or(0, |start| start + 1);
                    let end = printed[at..].find('\n').map_or(printed.len(), |end| at + end);
                    found.push(format!("{whence}: {secret} in: {}", &printed[line..end]));
                }
            }
        }
    }
    ensure!(found.is_empty(), "{}", found.join("\n"));
    ensure!(
        outputs.iter().any(|(whence, printed)| whence == "the log" && printed.contains(WAY.name())),
        "it is all there"
    );
    Ok(())
}

fn text(output: &std::process::Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}
