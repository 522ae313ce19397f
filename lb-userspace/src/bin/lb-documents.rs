//! Writes what a package has beside the programs: man pages, and completions of lbd for shells (lbctl
//! writes its own). It is run when
//! a package is built and in none, so that neither can be out of date.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use lb_userspace::cli::{Cli, Lbd};

/// Every setting and what it is for.
const SETTINGS: &str = include_str!("../../../deploy/lb.toml");

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
    clap_mangen::generate_to(Cli::command(), &man).context("write the pages of lbctl")?;
    let mut page = Vec::new();
    Man::new(Lbd::command()).section("8").render(&mut page)?;
    write(&man.join("lbd.8"), &page)?;
    write(&man.join("lb.toml.5"), settings(SETTINGS).as_bytes())?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Lbd::command(), "lbd", &completions)?;
    }
    Ok(())
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
