//! The configuration: any text is a list of mistakes, or a configuration that is equal when it was
//! written and read again.

use std::fmt::Write as _;

use lb_config::{
    Config,
    write_back::{Writable, write_back},
};
use lb_model::{
    desired::{Desired, Service},
    settings::Limits,
};

/// Takes the bytes of a file.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Config::parse(text) {
        Ok(config) => accepted(text, &config),
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a problem");
            let lines = text.lines().count().max(1) + 1;
            for problem in problems {
                assert!(!problem.message.is_empty(), "a mistake without a message");
                assert!(problem.line <= lines, "{problem}: of {lines} lines");
            }
        }
    }
}

fn accepted(text: &str, config: &Config) {
    let _ = config.summary();
    let desired = &config.desired;
    assert_eq!(
        write_back(text, desired).expect("the file has them already"),
        text,
        "nothing was to be changed"
    );
    for (name, service) in &desired.services {
        let json = serde_json::to_string(service).expect("a service can be written");
        let read: Service = serde_json::from_str(&json).expect("what was written is read");
        assert_eq!(read, *service, "{name}, as the state file has it");
    }
    let nothing = Desired::default();
    let writable = Writable::of(&nothing, desired);
    assert_eq!(
        writable.left,
        Vec::<String>::new(),
        "these were read from a file, so a file can hold them"
    );
    assert_eq!(writable.desired, *desired);
    let written =
        write_back(&skeleton(&config.limits), desired).expect("the services can be written");
    let again = Config::parse(&written).expect("what was written is read");
    assert_eq!(again.desired, config.desired);
    // Tables may be laid out so that nothing can be cut out of them; that is an error, then.
    if let Ok(empty) = write_back(text, &nothing) {
        let config = Config::parse(&empty).expect("what was written is read");
        assert!(config.desired.services.is_empty());
    }
}

/// A file without services, but with room for them.
fn skeleton(limits: &Limits) -> String {
    let Limits {
        services,
        backends,
        pins,
        tracked_flows,
        nat_connections,
        connections,
        fragments,
        icmp_errors,
    } = limits;
    let mut text = "interfaces = [\"eth0\"]\n[limits]\n".to_owned();
    for (key, limit) in [
        ("services", services),
        ("backends", backends),
        ("pins", pins),
        ("tracked_flows", tracked_flows),
        ("nat_connections", nat_connections),
        ("connections", connections),
        ("fragments", fragments),
        ("icmp_errors", icmp_errors),
    ] {
        let _ = writeln!(text, "{key} = {limit}");
    }
    text
}
