//! The configuration in force, as text, without its secrets.

use anyhow::{Context as _, Result};
use toml_edit::{DocumentMut, Item, Table, TableLike, Value, value};

use super::{
    former::with_present_keys,
    write_back::{Writable, write_back},
};

/// Keys that stay as at the start of `lbd` until it starts again, by all their names.
const OF_THE_START: [&str; 16] = [
    "interface",
    "interfaces",
    "xdp",
    "allow_generic_gro",
    "reattach",
    "local_clients",
    "local_cgroup",
    "pin_dir",
    "limits",
    "tunnel",
    "seed",
    "seed_file",
    "socket",
    "group",
    "state_file",
    "sync",
];
/// Where secrets stand, from the root on; tables in arrays and outside of them alike.
const SECRET: [&[&str]; 3] = [&["seed"], &["sync", "key"], &["virtual_router", "password"]];
/// The text in a secret's place.
const HIDDEN: &str = "(hidden)";

/// The configuration in force as a file: `text`, which was loaded last, with the services of
/// `in_force`, and with the values at the start of `lbd` where a change takes a restart.
///
/// # Errors
///
/// One of the texts is no configuration any more, as when a file is gone that it names.
pub fn show(text: &str, at_start: &str, in_force: &Writable) -> Result<String> {
    let written = write_back(&with_present_keys(text), &in_force.desired)?;
    let mut shown: DocumentMut = written.parse().context("read the configuration")?;
    if text != at_start {
        let started: DocumentMut =
            at_start.parse().context("read the configuration of the start")?;
        for key in OF_THE_START {
            take(shown.as_table_mut(), started.as_table(), key);
        }
        if let Some(log) = shown.get_mut("log").and_then(Item::as_table_like_mut) {
            let format = started.get("log").and_then(Item::as_table_like);
            match format.and_then(|log| log.get("format")) {
                Some(format) => drop(log.insert("format", format.clone())),
                None => drop(log.remove("format")),
            }
        }
    }
    for path in SECRET {
        hide(shown.as_table_mut(), path);
    }
    let beside = in_force.left.iter().map(|left| format!("# in force beside this: {left}\n"));
    Ok(beside.collect::<String>() + &without_commented(&shown.to_string()))
}

/// Takes a key over from another table.
fn take(into: &mut Table, from: &Table, key: &str) {
    match (into.get_mut(key), from.get(key)) {
        // In its place, with its comments.
        (Some(old), Some(new)) => *old = new.clone(),
        (None, Some(new)) => drop(into.insert(key, new.clone())),
        (_, None) => drop(into.remove(key)),
    }
}

/// Hides the value at this path, in all tables that are there.
fn hide(table: &mut dyn TableLike, path: &[&str]) {
    let [key, rest @ ..] = path else { return };
    let Some(item) = table.get_mut(key) else { return };
    if rest.is_empty() {
        let decor = item.as_value().map(|old| old.decor().clone()).unwrap_or_default();
        *item = value(HIDDEN);
        if let Some(new) = item.as_value_mut() {
            *new.decor_mut() = decor;
        }
    } else if let Some(tables) = item.as_array_of_tables_mut() {
        tables.iter_mut().for_each(|table| hide(table, rest));
    } else if let Some(array) = item.as_array_mut() {
        let tables = array.iter_mut().filter_map(Value::as_inline_table_mut);
        tables.for_each(|table| hide(table, rest));
    } else if let Some(table) = item.as_table_like_mut() {
        hide(table, rest);
    }
}

/// Hides the values of keys of secrets in comments: `# password = "..."`, as an operator keeps an old one. In a string
/// of several lines, a line with `#` is taken for a comment, too.
fn without_commented(text: &str) -> String {
    let mut lines = Vec::new();
    for line in text.split('\n') {
        let start = comment(line).unwrap_or(line.len());
        let (code, mut rest) = line.split_at(start);
        let mut shown = code.to_owned();
        while let Some((before, after)) = next_secret(rest) {
            shown.push_str(before);
            shown.push_str(&format!("\"{HIDDEN}\""));
            rest = after;
        }
        shown.push_str(rest);
        lines.push(shown);
    }
    lines.join("\n")
}

/// Where the comment of a line begins.
fn comment(line: &str) -> Option<usize> {
    let mut within = None;
    let mut is_escaped = false;
    for (at, letter) in line.char_indices() {
        match within {
            None if letter == '#' => return Some(at),
            None if matches!(letter, '"' | '\'') => within = Some(letter),
            Some('"') if letter == '\\' && !is_escaped => {
                is_escaped = true;
                continue;
            }
            Some(quote) if letter == quote && !is_escaped => within = None,
            _ => {}
        }
        is_escaped = false;
    }
    None
}

/// The text before the first value of a secret's key, and after it.
fn next_secret(text: &str) -> Option<(&str, &str)> {
    let is_of_a_key = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '-');
    let mut from = 0;
    while let Some(equals) = text[from..].find('=') {
        let equals = from + equals;
        let key = text[..equals].trim_end().trim_end_matches(['"', '\'']);
        let key = key.rsplit(|letter| !is_of_a_key(letter)).next().unwrap_or_default();
        let value = text[equals + 1..].trim_start();
        let start = text.len() - value.len();
        let is_secret = SECRET.iter().any(|path| path.last() == Some(&key));
        if is_secret && !value.is_empty() {
            let end = match value.chars().next() {
                Some(quote @ ('"' | '\'')) => value[1..].find(quote).map(|end| end + 2),
                _ => value.find([' ', '\t', ',', '}']),
            };
            return Some((&text[..start], &value[end.unwrap_or(value.len())..]));
        }
        from = equals + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    const FILE: &str = "# the edge\ninterfaces = [\"eth0\"]\nseed = \"000102030405060708090a0b0c0d0e0f\" # of both nodes\n\n\
        [limits]\npins = 4096\n\n\
        [[virtual_router]]\nname = \"main\"\ninterface = \"eth0\"\nvrid = 51\nversion = 2\n\
        password = \"secret\"\naddresses = [\"10.0.0.100/32\"]\n\n\
        [[service]]\nname = \"web\"\nvip = \"10.0.0.100\"\nport = 80\nprotocol = \"tcp\"\nmode = \"dsr\"\n\
        [[service.backend]]\naddress = \"10.0.0.11\"\n";

    fn shown(text: &str, at_start: &str, change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::parse(text).expect("it is right");
        let configured = config.clone();
        change(&mut config);
        let in_force = Writable::of(&configured.desired, &config.desired);
        show(text, at_start, &in_force).expect("it can be shown")
    }

    #[test]
    fn what_is_in_force_is_the_file_with_the_changes_of_lbctl() {
        let text = shown(FILE, FILE, |config| {
            let service = config.desired.services.get_mut("web").expect("it is there");
            let backend = service.backends.values_mut().next().expect("one is there");
            backend.weight = "7".parse().expect("a weight");
        });
        assert!(text.starts_with("# the edge\ninterfaces = [\"eth0\"]\n"), "{text}");
        assert!(text.contains("address = \"10.0.0.11\"\nweight = 7\n"), "{text}");
    }

    #[test]
    fn secrets_are_hidden_wherever_they_stand() {
        let inline = FILE.replace(
            "[[virtual_router]]\nname = \"main\"\ninterface = \"eth0\"\nvrid = 51\nversion = 2\n\
             password = \"secret\"\naddresses = [\"10.0.0.100/32\"]\n\n",
            "",
        );
        let inline =
            "virtual_router = [{ name = \"main\", interface = \"eth0\", vrid = 51, version = 2, \
             password = \"secret\", addresses = [\"10.0.0.100/32\"] }]\n"
                .to_owned()
                + &inline;
        const KEY: &str = "0badc0de0badc0de0badc0de0badc0de5eedf00d5eedf00d5eedf00d5eedf00d";
        let sync = |text: &str| {
            format!(
                "{text}[sync]\nlisten = \"10.0.0.2:3780\"\npeers = [\"10.0.0.3:3780\"]\nkey = \"{KEY}\"\n"
            )
        };
        for file in [sync(FILE), sync(&inline)] {
            let file = &*file;
            let text = shown(file, file, |_| {});
            assert!(text.contains("seed = \"(hidden)\" # of both nodes"), "{text}");
            assert!(text.contains("password = \"(hidden)\""), "{text}");
            assert!(text.contains("key = \"(hidden)\"\n"), "{text}");
            assert!(!["secret", "0001", "0bad"].iter().any(|part| text.contains(part)), "{text}");
        }
    }

    #[test]
    fn secrets_in_comments_are_hidden_and_other_comments_stay() {
        let shown = without_commented(
            "# password = \"old#1\" until May\nkey_file = \"/k#1\" # key = '0badc0de', of both; x = 1\n\
             #key=0badc0de\n# { name = \"b\", \"password\" = \"s\", vrid = 5 }\n# key_file = \"/k\"\n\
             name = \"a \\\" # seed = 1\"\n# seed =",
        );
        assert_eq!(
            shown,
            "# password = \"(hidden)\" until May\nkey_file = \"/k#1\" # key = \"(hidden)\", of both; x = 1\n\
             #key=\"(hidden)\"\n# { name = \"b\", \"password\" = \"(hidden)\", vrid = 5 }\n# key_file = \"/k\"\n\
             name = \"a \\\" # seed = 1\"\n# seed ="
        );
    }

    #[test]
    fn only_secrets_are_hidden() {
        let http =
            "[http]\nlisten = [\"127.0.0.1:9180\"]\ntls = { certificate = \"/c\", key = \"/k\" }\n";
        let mut shown: DocumentMut = http.parse().expect("TOML");
        SECRET.iter().for_each(|path| hide(shown.as_table_mut(), path));
        assert_eq!(shown.to_string(), http);
    }

    #[test]
    fn what_takes_a_restart_is_as_at_the_start() {
        let edited = FILE
            .replace("[limits]\npins = 4096\n", "[log]\nlevel = \"debug\"\nformat = \"json\"\n")
            .replace("[\"eth0\"]\nseed", "[\"eth0\", \"eth1\"]\nxdp = \"native\"\nseed");
        let text = shown(&edited, FILE, |_| {});
        assert!(text.contains("interfaces = [\"eth0\"]\nseed"), "{text}");
        assert!(text.contains("[limits]\npins = 4096"), "{text}");
        assert!(text.contains("level = \"debug\"") && !text.contains("json"), "{text}");
        assert!(text.parse::<DocumentMut>().is_ok(), "{text}");
    }
}
