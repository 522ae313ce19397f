//! Keys with a former name, which is still read.

use std::ops::Range;

use toml_edit::{Document, Item, Key, Value};

/// A key of a `[[service]]` and its former name.
pub(super) const SYN_FAILOVER: (&str, &str) = ("syn_failover", "second_choice");

/// The text of a configuration with the present names of its keys. A text that can't be parsed stays as it is.
#[must_use]
pub(super) fn with_present_keys(text: &str) -> String {
    let Ok(document) = Document::parse(text) else { return text.to_owned() };
    let (present, former) = SYN_FAILOVER;
    let mut spans: Vec<Range<usize>> = match document.as_table().get("service") {
        Some(Item::ArrayOfTables(tables)) => {
            let keys = tables.iter().filter_map(|table| table.get_key_value(former));
            keys.filter_map(|(key, _)| key.span()).collect()
        }
        Some(Item::Value(Value::Array(array))) => {
            let tables = array.iter().filter_map(Value::as_inline_table);
            let keys = tables.filter_map(|table| table.get_key_value(former));
            keys.filter_map(|(key, _): (&Key, _)| key.span()).collect()
        }
        _ => Vec::new(),
    };
    spans.sort_by_key(|span| span.start);
    let mut renamed = text.to_owned();
    for span in spans.into_iter().rev() {
        renamed.replace_range(span, present);
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, write_back::write_back};

    const SERVICE: &str =
        "name = \"web\"\nvip = \"10.0.0.100\"\nport = 80\nprotocol = \"tcp\"\nmode = \"dsr\"\n";

    fn file(keys: &str) -> String {
        format!("interfaces = [\"eth0\"]\n[[service]]\n{SERVICE}{keys}")
    }

    fn parse(text: &str) -> Config {
        Config::parse(text).expect(text)
    }

    #[test]
    fn a_former_name_means_the_same() {
        for value in [true, false] {
            let (present, former) = (
                file(&format!("syn_failover = {value}\n")),
                file(&format!("second_choice = {value}\n")),
            );
            assert_eq!(parse(&present).desired, parse(&former).desired);
            assert_eq!(parse(&former).desired.services["web"].policy.second_choice, value);
        }
    }

    #[test]
    fn both_names_are_a_mistake() {
        let text = file("syn_failover = true\nsecond_choice = true\n");
        let problems = Config::parse(&text).expect_err("one of them is too much");
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        assert_eq!(problem.path, "service[0].second_choice");
        assert_eq!(
            problem.message,
            "this is the former name of `syn_failover`, which is set as well; remove `second_choice`"
        );
    }

    #[test]
    fn a_mistaken_key_is_told_the_present_names_only() {
        let problems = Config::parse(&file("second_chance = true\n")).expect_err("no such key");
        assert!(problems.iter().all(|one| !one.message.contains("second_choice")), "{problems:?}");
    }

    #[test]
    fn a_file_gets_the_present_name_in_place_of_the_former() {
        let before = file("# as measured\nsecond_choice = false # for now\n");
        let after = file("# as measured\nsyn_failover = false # for now\n");
        assert_eq!(with_present_keys(&before), after);
        assert_eq!(with_present_keys(&after), after);
        let keys = SERVICE.trim_end().replace('\n', ", ");
        let inline = |key: &str| {
            format!("interfaces = [\"eth0\"]\nservice = [{{ {keys}, \"{key}\" = false }}]\n")
        };
        let renamed = inline("syn_failover").replace("\"syn_failover\"", "syn_failover");
        assert_eq!(with_present_keys(&inline("second_choice")), renamed);
        assert_eq!(parse(&renamed).desired, parse(&inline("second_choice")).desired);
        assert_eq!(with_present_keys("second_choice = [\n"), "second_choice = [\n");
    }

    #[test]
    fn a_change_of_a_key_with_the_former_name_can_be_saved() {
        let before = file("second_choice = false\n");
        let mut wanted = parse(&before).desired;
        wanted.services.get_mut("web").expect("it is there").policy.second_choice = true;
        let after = write_back(&before, &wanted).expect("it can be written");
        assert_eq!(after, file("syn_failover = true\n"));
        let marked = |text: &str| format!("\u{feff}{}", text.replace('\n', "\r\n"));
        let after = write_back(&marked(&before), &wanted).expect("it can be written");
        assert_eq!(after, marked(&file("syn_failover = true\n")));
        // With nothing to save the file stays.
        let unchanged = write_back(&before, &parse(&before).desired).expect("it can be written");
        assert_eq!(unchanged, before);
    }
}
