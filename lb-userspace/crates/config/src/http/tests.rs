//! The values that `[http]` accepts, and the errors for others.

use std::{fs, os::unix::fs::PermissionsExt as _};

use tempfile::TempDir;

use super::*;
use crate::Config as Whole;

/// The bcrypt hash of `correct horse`, at its least cost here.
fn hash() -> String {
    bcrypt::hash_with_salt("correct horse", 5, [7; 16]).expect("it is hashed").to_string()
}

/// A folder with all the files that may be named.
fn files() -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let made = rcgen::generate_simple_self_signed(["lb".to_owned()]).expect("a certificate");
    for (name, content) in [
        ("http.crt", made.cert.pem()),
        ("http.key", made.signing_key.serialize_pem()),
        ("http.users", format!("# who may look\nann:{}\n", hash())),
        ("http.token", "0123456789abcdef0123456789abcdef\n".into()),
    ] {
        let file = dir.path().join(name);
        fs::write(&file, content).expect("it is written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it is ours");
    }
    dir
}

/// A file with these lines in `[http]`, of which the first one has number 1.
fn with(dir: &TempDir, lines: &str) -> String {
    let lines = lines.replace("/etc/lb", &dir.path().display().to_string());
    format!("interfaces = [\"eth0\"]\n[http]\n{lines}\n")
}

fn whole(dir: &TempDir, lines: &str) -> Whole {
    Whole::parse(&with(dir, lines)).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn describe(dir: &TempDir, problems: Vec<super::super::Problem>) -> Vec<String> {
    let lines = problems.into_iter().map(|problem| {
        let message = problem.message.replace(&dir.path().display().to_string(), "/etc/lb");
        format!("{}: {}: {message}", problem.line - 2, problem.path)
    });
    lines.collect()
}

fn mistakes(dir: &TempDir, lines: &str) -> Vec<String> {
    describe(dir, Whole::parse(&with(dir, lines)).expect_err(lines))
}

#[test]
fn without_the_table_nobody_is_answered() {
    let config = Whole::parse("interfaces = [\"eth0\"]").expect("it is valid");
    assert_eq!(config.http, None);
}

#[test]
fn what_the_example_says_is_valid_and_the_default() {
    let dir = files();
    let example = include_str!("../../../../../deploy/lb.toml");
    let at = example.find("#     [http]").expect("it is there");
    let lines: Vec<_> = example[at..]
        .lines()
        .map_while(|line| line.strip_prefix("#     "))
        .filter(|line| !line.starts_with("[http]"))
        .collect();
    assert_eq!(lines.len(), 10);
    let config = whole(&dir, &lines.join("\n"));
    assert_eq!(config.warnings, []);
    let example = config.http.expect("there is one");
    assert!(example.tls.is_some() && example.users.is_some() && example.tokens.is_some());
    let short = whole(&dir, "listen = [\"127.0.0.1:9105\"]").http.expect("there is one");
    assert!(!short.asks_who());
    let allowed_hosts = example.allowed_hosts.clone();
    assert_eq!(allowed_hosts, ["lb.example.com"]);
    assert_eq!(
        Config { allowed_hosts, ..short },
        Config { tls: None, users: None, tokens: None, ..example }
    );
}

#[test]
fn an_address_that_others_reach_takes_protection() {
    let dir = files();
    const LISTEN: &str = "listen = [\"0.0.0.0:9105\", \"[::1]:9105\"]\n";
    const TLS: &str = "tls = { certificate = \"/etc/lb/http.crt\", key = \"/etc/lb/http.key\" }\n";
    const TOKENS: &str = "bearer_token_file = \"/etc/lb/http.token\"\n";
    assert_eq!(
        mistakes(&dir, LISTEN),
        [
            "1: http.listen[0]: 0.0.0.0:9105 is no loopback address, and anybody who reaches it could \
          look: add bearer_token_file = \"/etc/lb/http.token\" and tls = { certificate = \
          \"/etc/lb/http.crt\", key = \"/etc/lb/http.key\" }, listen at 127.0.0.1, or set \
          allow_unprotected = true"
        ]
    );
    let doubts = |lines: &str| {
        let config = whole(&dir, &format!("{LISTEN}{lines}"));
        describe(&dir, config.warnings)
    };
    assert_eq!(doubts("allow_unprotected = true"), [""; 0]);
    assert_eq!(doubts(&format!("{TLS}{TOKENS}")), [""; 0]);
    assert_eq!(
        doubts(TLS),
        ["1: http.listen[0]: anybody who reaches 0.0.0.0:9105 can look; add bearer_token_file = \
          \"/etc/lb/http.token\", or basic_auth_file = \"/etc/lb/http.users\""]
    );
    assert_eq!(
        doubts(TOKENS),
        ["1: http.listen[0]: passwords and tokens travel to 0.0.0.0:9105 in the clear; add tls = \
          { certificate = \"/etc/lb/http.crt\", key = \"/etc/lb/http.key\" }"]
    );
}

#[test]
fn every_mistake_is_told_with_what_would_be_right() {
    let dir = files();
    for (lines, expected) in [
        ("", "0: http: `listen` is missing; add listen = [\"127.0.0.1:9105\"]"),
        (
            "listen = []",
            "1: http.listen: no address; write listen = [\"127.0.0.1:9105\"], or leave [http] out",
        ),
        (
            "listen = [\"127.0.0.1\"]",
            "1: http.listen[0]: `127.0.0.1` has no port; write \"127.0.0.1:9105\"",
        ),
        ("listen = [\"::1\"]", "1: http.listen[0]: `::1` has no port; write \"[::1]:9105\""),
        (
            "listen = [\"lb1\"]",
            "1: http.listen[0]: `lb1` is no address with a port; write one as \"127.0.0.1:9105\"",
        ),
        (
            "listen = [\"127.0.0.1:0\"]",
            "1: http.listen[0]: `127.0.0.1:0` has port 0; a number from 1 to 65535 is expected",
        ),
        (
            "listen = [\"127.0.0.1:1\", \"127.0.0.1:1\"]",
            "1: http.listen[1]: 127.0.0.1:1 is named twice; once is enough",
        ),
        (
            "listen = [\"127.0.0.1:1\"]\ntls = true",
            "2: http.tls: a table is expected; write tls = { certificate = \"/etc/lb/http.crt\", key = \"/etc/lb/http.key\" }",
        ),
        (
            "listen = [\"127.0.0.1:1\"]\ntls = { certificate = \"/etc/lb/http.crt\", key = \"/etc/lb/http.token\" }",
            "2: http.tls.key: no private key in it; it begins with -----BEGIN PRIVATE KEY-----",
        ),
        (
            "listen = [\"127.0.0.1:1\"]\ntls = { certificate = \"/etc/lb/http.crt\", key = \"/etc/lb/none\" }",
            "2: http.tls.key: /etc/lb/none is missing; it has the key of the certificate, in PEM",
        ),
        (
            "listen = [\"127.0.0.1:1\"]\nbasic_auth_file = \"/etc/lb/none\"",
            "2: http.basic_auth_file: /etc/lb/none is missing; make it with 'htpasswd -cB /etc/lb/none NAME'",
        ),
        (
            "listen = [\"127.0.0.1:1\"]\nbasic_auth_file = \"/etc/lb/http.token\"",
            "2: http.basic_auth_file: /etc/lb/http.token:1: no `:` behind a name; write what 'htpasswd -nB NAME' prints",
        ),
        (
            "listen = [\"127.0.0.1:1\"]\nbearer_token_file = \"http.token\"",
            "2: http.bearer_token_file: `http.token` is not absolute; begin it with `/`",
        ),
        (
            "listen = [\"127.0.0.1:1\"]\nconnections = 7",
            "2: http.connections: 7 is out of range; a number from 8 to 65536 is expected",
        ),
        (
            "listen = [\"127.0.0.1:1\"]\nconnections = 16\nstreams = 9",
            "3: http.streams: 9 streams of 16 connections leave too few for the rest; up to 8 are possible",
        ),
        (
            "listen = [\"127.0.0.1:1\"]\nallowed_hosts = [\"https://lb.example.com\"]",
            "2: http.allowed_hosts[0]: `https://lb.example.com` is no name of a host; write it without scheme, port and \
             wildcards, as \"lb.example.com\"",
        ),
        (
            "listen = [\"127.0.0.1:1\"]\ndashbord = true",
            "2: http.dashbord: unknown key; did you mean `dashboard`?",
        ),
    ] {
        assert_eq!(mistakes(&dir, lines), [expected], "{lines}");
    }
}

#[test]
fn mistakes_in_the_files_are_told_by_line_and_without_secrets() {
    let dir = files();
    let hash = hash();
    let costly = hash.replace("$05$", "$16$");
    let users = format!("ann:{hash}\nbob:plain secret\nann:{hash}\n:{hash}\neve:{costly}\n");
    fs::write(dir.path().join("http.users"), users).expect("it is written");
    fs::write(dir.path().join("http.token"), "short secret\nwith space 0123456789\n")
        .expect("as well");
    const HOW: &str = "write what 'htpasswd -nB NAME' prints";
    let listen = "listen = [\"127.0.0.1:1\"]\n";
    let found = mistakes(&dir, &format!("{listen}basic_auth_file = \"/etc/lb/http.users\""));
    assert_eq!(
        found,
        [
            format!(
                "2: http.basic_auth_file: /etc/lb/http.users:2: bob: its password is not hashed by bcrypt; {HOW}"
            ),
            "2: http.basic_auth_file: /etc/lb/http.users:3: ann is there already".into(),
            format!("2: http.basic_auth_file: /etc/lb/http.users:4: no name; {HOW}"),
            format!(
                "2: http.basic_auth_file: /etc/lb/http.users:5: eve: a cost of 16, where 5 to 15 is possible (htpasswd -C); {HOW}"
            ),
        ]
    );
    let found = mistakes(&dir, &format!("{listen}bearer_token_file = \"/etc/lb/http.token\""));
    const TOKEN: &str = "write one as 'openssl rand -hex 32' prints it";
    assert_eq!(
        found,
        [
            format!(
                "2: http.bearer_token_file: /etc/lb/http.token:1: a token of 12 characters; {TOKEN}"
            ),
            format!(
                "2: http.bearer_token_file: /etc/lb/http.token:2: a token with a character that it can't have; {TOKEN}"
            ),
        ]
    );
}

#[test]
fn who_else_can_read_a_secret_is_told() {
    let dir = files();
    for name in ["http.key", "http.users", "http.token", "http.crt"] {
        let open = fs::Permissions::from_mode(0o644);
        fs::set_permissions(dir.path().join(name), open).expect("it is ours");
    }
    let config = whole(
        &dir,
        "listen = [\"127.0.0.1:1\"]\nbasic_auth_file = \"/etc/lb/http.users\"\n\
         bearer_token_file = \"/etc/lb/http.token\"\n\
         tls = { certificate = \"/etc/lb/http.crt\", key = \"/etc/lb/http.key\" }",
    );
    let files = ["http.users", "http.token", "http.key"];
    let warnings = describe(&dir, config.warnings);
    assert_eq!(warnings.len(), files.len(), "{warnings:#?}");
    for (warning, file) in warnings.iter().zip(files) {
        assert!(warning.contains(&format!("/etc/lb/{file} has mode 0644")), "{warning}");
    }
}

#[test]
fn files_that_have_changed_make_another_configuration() {
    let dir = files();
    let lines = "listen = [\"127.0.0.1:1\"]\nbearer_token_file = \"/etc/lb/http.token\"";
    let before = whole(&dir, lines);
    assert_eq!(before.http, whole(&dir, lines).http);
    fs::write(dir.path().join("http.token"), "fedcba9876543210fedcba9876543210").expect("written");
    let after = whole(&dir, lines);
    assert_ne!(before.http, after.http);
    assert_eq!(before.needs_restart(&after), [""; 0]);
}
