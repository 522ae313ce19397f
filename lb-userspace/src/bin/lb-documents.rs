//! Writes what a package has beside the programs: man pages, and completions of lbd for shells (lbctl
//! writes its own). It is run when
//! a package is built and in none, so that neither can be out of date.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::{Arg, ArgAction, Command, CommandFactory as _, Parser};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use lb_cli::cli::{Cli, Lbd, examples};

/// Every setting and what it is for.
const SETTINGS: &str = include_str!("../../../deploy/lb.toml");

/// As many words of an option are in a synopsis.
const FEW: usize = 8;

/// Writes man pages and completions.
#[derive(Debug, Parser)]
struct Args {
    /// The folder that gets `man` and `completions`.
    folder: PathBuf,
}

fn main() -> Result<()> {
    let Args { folder } = Args::parse();
    let man = folder.join("man");
    let completions = folder.join("completions");
    for folder in [&man, &completions] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut lbctl = Cli::command().disable_help_subcommand(true);
    lbctl.build();
    write_pages(&lbctl, "", &man).context("write the pages of lbctl")?;
    let mut lbd = Lbd::command();
    lbd.build();
    write(&man.join("lbd.8"), &page(&lbd, "8", &[])?)?;
    write(&man.join("lb.toml.5"), settings(SETTINGS).as_bytes())?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Lbd::command(), "lbd", &completions)?;
    }
    Ok(())
}

/// Writes the pages of a command, which is `path` after `lbctl`, and of those within.
fn write_pages(command: &Command, path: &str, folder: &Path) -> Result<()> {
    for one in command.get_subcommands().filter(|one| !one.is_hide_set()) {
        write_pages(one, format!("{path} {}", one.get_name()).trim_start(), folder)?;
    }
    let name = Man::new(command.clone()).get_filename();
    write(&folder.join(name), &page(command, "1", examples(path))?)
}

/// A page: as clap_mangen makes it, but for the synopsis, where options have their values, and with
/// examples.
fn page(command: &Command, section: &str, examples: &[(&str, &str)]) -> Result<Vec<u8>> {
    let man = Man::new(command.clone()).section(section);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    page.extend(synopsis(command).into_bytes());
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if !examples.is_empty() {
        page.extend(b".SH EXAMPLES\n");
    }
    for (what, lines) in examples {
        let lines: Vec<_> = lines.lines().map(escaped).collect();
        let (what, lines) = (escaped(what), lines.join("\n"));
        page.extend(format!(".PP\n{what}\n.PP\n.RS 4\n.nf\n{lines}\n.fi\n.RE\n").into_bytes());
    }
    if command.get_version().is_some() {
        man.render_version_section(&mut page)?;
    }
    Ok(page)
}

/// How a command is written: its options with what they take, its arguments, its commands.
fn synopsis(command: &Command) -> String {
    let bold = |text: &str| format!("\\fB{}\\fR", escaped(text));
    let mut words = vec![bold(command.get_bin_name().unwrap_or_else(|| command.get_name()))];
    let shown = |arg: &&Arg| !arg.is_hide_set();
    for arg in command.get_arguments().filter(shown).filter(|arg| !arg.is_positional()) {
        let short = arg.get_short().map(|short| bold(&format!("-{short}")));
        let long = arg.get_long().map(|long| bold(&format!("--{long}")));
        let names: Vec<_> = short.into_iter().chain(long).collect();
        let value = if arg.get_action().takes_values() { values(arg) } else { String::new() };
        words.push(bracketed(arg, &(names.join("|") + &value)));
    }
    for arg in command.get_positionals().filter(shown) {
        words.push(bracketed(arg, values(arg).trim_start()));
    }
    if command.has_subcommands() {
        let command = if command.is_subcommand_required_set() { "COMMAND" } else { "[COMMAND]" };
        words.push(command.to_owned());
    }
    format!(".SH SYNOPSIS\n{}\n", words.join(" "))
}

/// In brackets, what may be left out; with dots, what may be repeated.
fn bracketed(arg: &Arg, text: &str) -> String {
    let many = matches!(arg.get_action(), ArgAction::Append | ArgAction::Count);
    let dots = if many { "..." } else { "" };
    if arg.is_required_set() { format!("{text}{dots}") } else { format!("[{text}]{dots}") }
}

/// What an argument takes: its words, if they are few, or a name for it.
fn values(arg: &Arg) -> String {
    let possible = arg.get_possible_values();
    let possible = possible.iter().filter(|one| !one.is_hide_set());
    let words: Vec<_> = possible.map(|one| escaped(one.get_name())).collect();
    let named = arg.get_value_names().into_iter().flatten();
    let names: Vec<_> = named.map(|name| format!("\\fI{}\\fR", escaped(name))).collect();
    match words.len() {
        1..=FEW => format!(" {}", words.join("|")),
        _ => format!(" {}", names.join(" ")),
    }
}

fn write(file: &Path, content: &[u8]) -> Result<()> {
    fs::write(file, content).with_context(|| file.display().to_string())
}

/// The page of the configuration, of the example that has every setting: sentences become
/// paragraphs, settings are shown as they are.
fn settings(example: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut page = format!(
        ".TH lb.toml 5 \"\" \"lb {version}\" \"File formats\"\n.SH NAME\nlb.toml \\- configuration of \
         lbd, the load balancer\n.SH DESCRIPTION\nThe file is TOML. Settings that are commented out \
         are shown with their defaults.\n"
    );
    for block in example.split("\n\n") {
        let lines: Vec<&str> = block.lines().collect();
        let prose = lines.iter().take_while(|line| is_prose(line)).count();
        let (prose, shown) = lines.split_at(prose);
        let sentences: Vec<_> =
            prose.iter().map(|line| escaped(line.trim().trim_start_matches('#').trim())).collect();
        if !sentences.is_empty() {
            page += &format!(".PP\n{}\n", sentences.join("\n"));
        }
        if !shown.is_empty() {
            let shown: Vec<_> = shown.iter().map(|line| escaped(line)).collect();
            page += &format!(".PP\n.RS 4\n.nf\n{}\n.fi\n.RE\n", shown.join("\n"));
        }
    }
    page + ".SH FILES\n/etc/lb/lb.toml\n.SH SEE ALSO\n.BR lbd (8),\n.BR lbctl (1)\n"
}

/// Whether a line is a sentence, or a part of one: a comment that is no setting.
fn is_prose(line: &str) -> bool {
    let Some(comment) = line.trim_start().strip_prefix('#') else { return false };
    let comment = comment.trim_start();
    let key = comment.split([' ', '=']).next().unwrap_or_default();
    let is_key =
        !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || "_0123456789".contains(c));
    let is_setting = is_key && comment[key.len()..].trim_start().starts_with('=');
    !is_setting && !comment.starts_with('[')
}

/// As roff takes it for what it is.
fn escaped(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-");
    // A dot or a quote at the beginning would be a request.
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_told_from_settings() {
        for prose in ["# A service: a VIP, a port.", "    # go to the VIP (via = \"vip\")", "#"] {
            assert!(is_prose(prose), "{prose}");
        }
        for setting in
            ["# xdp = \"native\"", "interfaces = [\"eth0\"]", "#     [sync]", "    # body = 1"]
        {
            assert!(!is_prose(setting), "{setting}");
        }
    }

    #[test]
    fn synopsis_has_the_values_of_options() {
        let mut lbctl = Cli::command();
        lbctl.build();
        let find = |path: &str| {
            let mut words = path.split(' ');
            let found = words.try_fold(&lbctl, |at, word| at.find_subcommand(word));
            synopsis(found.expect(path)).replace("\\fB", "").replace("\\fI", "").replace("\\fR", "")
        };
        let drain = find("backend drain");
        for part in [
            "lbctl backend drain ",
            "[\\-o|\\-\\-output text|json]",
            "[\\-\\-wait]",
            "[\\-\\-until estimated|proven]",
            "[\\-\\-deadline TIME]",
            " SERVICE BACKEND\n",
        ] {
            assert!(drain.contains(part), "{part} is not in {drain}");
        }
        assert!(find("service add").contains(" \\-\\-vip VIP"), "{}", find("service add"));
        assert!(find("vrrp failover").ends_with(" [ROUTERS]...\n"), "{}", find("vrrp failover"));
        assert!(find("backend").ends_with(" COMMAND\n"));
    }

    #[test]
    fn a_page_has_the_examples_of_its_command() {
        let mut lbctl = Cli::command();
        lbctl.build();
        let drain = lbctl.find_subcommand("backend").and_then(|one| one.find_subcommand("drain"));
        let page = page(drain.expect("it is there"), "1", examples("backend drain"));
        let page = String::from_utf8(page.expect("it is written")).expect("text");
        let example = "lbctl backend drain web 10.0.0.11 \\-\\-wait \\-\\-timeout 1h\n.fi";
        assert!(page.contains(".SH EXAMPLES\n") && page.contains(example), "{page}");
    }

    #[test]
    fn the_page_has_every_setting_of_the_example() {
        let page = settings(SETTINGS);
        for line in SETTINGS.lines().filter(|line| !line.trim().is_empty() && !is_prose(line)) {
            assert!(page.contains(&escaped(line)), "{line}");
        }
        let requests = page.lines().filter(|line| line.starts_with('.'));
        for request in requests {
            let known = [".TH", ".SH", ".PP", ".RS", ".RE", ".nf", ".fi", ".BR"];
            assert!(known.iter().any(|one| request.starts_with(one)), "{request}");
        }
    }
}
