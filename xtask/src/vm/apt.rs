//! Kernels as Debian packages them: found and downloaded by apt, from this machine's own sources or
//! from another suite of the same mirror, whose lists are kept aside so that the machine's apt stays
//! as it is.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use kit::command;

use crate::cargo;

/// The mirror where this machine has none of Debian's: it may be another distribution.
const MIRROR: &str = "http://deb.debian.org/debian";
/// The keys of Debian's archive; another distribution may lack them.
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Older lists may name files that the mirror has dropped.
const FRESH: Duration = Duration::from_secs(12 * 3600);

/// Where packages come from.
#[derive(Debug)]
pub(super) struct Source {
    /// Its name in messages.
    pub name: String,
    options: Vec<String>,
}

impl Source {
    /// The configuration of apt.
    pub fn configured() -> Self {
        Self { name: "the configured sources".into(), options: common() }
    }

    /// A suite of Debian: `trixie`, `sid`. Its lists are in a folder under `cache`.
    ///
    /// # Errors
    ///
    /// If the mirror does not answer.
    pub fn suite(suite: &str, cache: &Path) -> Result<Self> {
        let state = cache.join("apt").join(suite);
        for folder in ["lists/partial", "cache/archives/partial"] {
            let folder = state.join(folder);
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        let list = state.join("suite.sources");
        let mirror = mirror();
        let entry = format!(
            "Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n\
             Architectures: amd64\nSigned-By: {KEYRING}\n"
        );
        fs::write(&list, entry).with_context(|| list.display().to_string())?;
        let mut options = common();
        for (option, value) in [
            ("Dir::Etc::sourcelist", list),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::State::lists", state.join("lists")),
            ("Dir::Cache", state.join("cache")),
        ] {
            options.extend(["-o".to_owned(), format!("{option}={}", value.display())]);
        }
        let source = Self { name: format!("Debian's {suite}"), options };
        if !is_fresh(&state.join("lists")) {
            let update = source.apt("apt-get", &["-qq", "update"]);
            update.with_context(|| format!("{} by {mirror}", source.name))?;
        }
        Ok(source)
    }

    /// The newest kernel of a series, `6.12`, or of all: the version in its packages' names.
    pub fn newest(&self, series: Option<&str>) -> Option<String> {
        let names = self.apt("apt-cache", &["pkgnames", "linux-image-"]).ok()?;
        newest(names.lines(), series)
    }

    /// The packages that hold a kernel: one, or from Debian 14 on several.
    pub fn packages_of(&self, version: &str) -> Vec<String> {
        let name = |part: &str| format!("linux-{part}-{version}-amd64");
        let parts = ["binary", "modules", "base"].map(name).to_vec();
        let split =
            self.apt("apt-cache", &["show", &parts[0]]).is_ok_and(|output| !output.is_empty());
        if split { parts } else { vec![name("image")] }
    }

    /// Downloads packages into a folder, which must be empty; their files.
    ///
    /// # Errors
    ///
    /// If one can't be had.
    pub fn download(&self, packages: &[String], folder: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let mut apt = command::command("apt-get");
        apt.current_dir(folder).args(&self.options).args(["-q", "download"]).args(packages);
        // apt's progress messages are no output of ours.
        apt.stdout(std::io::stderr());
        cargo::run(&mut apt).with_context(|| format!("download from {}", self.name))?;
        let files = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
        let files = files.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        ensure!(files.len() == packages.len(), "{} of {packages:?} came", files.len());
        Ok(files)
    }

    fn apt(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut apt: Command = command::command(program);
        command::run(apt.args(&self.options).args(args))
    }
}

fn common() -> Vec<String> {
    // apt's own user can't write to folders of others; descriptions in all languages are not needed.
    let options = ["APT::Sandbox::User=root", "Acquire::Languages=none"];
    options.iter().flat_map(|option| ["-o".to_owned(), (*option).to_owned()]).collect()
}

/// The mirror of Debian that apt is configured with.
fn mirror() -> String {
    let mut apt = command::command("apt-get");
    let format = "$(ORIGIN) $(COMPONENT) $(REPO_URI)";
    let output =
        command::run(apt.args(["indextargets", "--format", format, "Identifier: Packages"]));
    mirror_in(&output.unwrap_or_default()).unwrap_or_else(|| MIRROR.to_owned())
}

fn mirror_in(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let uri = line.strip_prefix("Debian main ")?;
        (!uri.contains("security")).then(|| uri.trim_end_matches('/').to_owned())
    })
}

fn is_fresh(lists: &Path) -> bool {
    let Ok(entries) = fs::read_dir(lists) else { return false };
    entries.flatten().any(|entry| {
        let modified = entry.metadata().and_then(|data| data.modified());
        let age = modified.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        entry.file_name().to_string_lossy().ends_with("InRelease")
            && age.is_ok_and(|age| age < FRESH)
    })
}

/// The newest version among names of packages.
fn newest<'a>(names: impl Iterator<Item = &'a str>, series: Option<&str>) -> Option<String> {
    let versions = names.filter_map(|name| {
        let version = name.strip_prefix("linux-image-")?.strip_suffix("-amd64")?;
        let other = ["-rt", "-cloud", "~"].iter().any(|part| version.contains(part));
        let of_series = match series {
            // A series ends where the number does: 6.1 is not 6.12.
            Some(series) => {
                let rest = version.strip_prefix(series)?;
                rest.starts_with(['.', '+', '-'])
            }
            None => version.starts_with(|c: char| c.is_ascii_digit()),
        };
        (of_series && !other).then_some(version)
    });
    versions.max_by_key(|version| numbers(version)).map(str::to_owned)
}

/// The numbers in a version, by which it is compared.
pub(super) fn numbers(version: &str) -> Vec<u64> {
    let parts = version.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    parts.filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 9] = [
        "linux-image-6.1.0-9-amd64",
        "linux-image-6.1.0-56-amd64",
        "linux-image-6.1.0-56-amd64-dbg",
        "linux-image-6.1.0-57-cloud-amd64",
        "linux-image-6.1.0-57-rt-amd64",
        "linux-image-6.12.9+deb12-amd64",
        "linux-image-6.12.117+deb12-amd64",
        "linux-image-amd64",
        "linux-image-7.2~rc3-amd64",
    ];

    #[test]
    fn the_newest_of_a_series_is_found_by_its_numbers() {
        let newest = |series| newest(NAMES.into_iter(), series);
        assert_eq!(newest(Some("6.1")).as_deref(), Some("6.1.0-56"));
        assert_eq!(newest(Some("6.12")).as_deref(), Some("6.12.117+deb12"));
        assert_eq!(newest(Some("5.10")), None);
        assert_eq!(newest(None).as_deref(), Some("6.12.117+deb12"), "no candidate of a release");
    }

    #[test]
    fn the_mirror_is_debians_main_archive() {
        let targets = "Debian main http://deb.debian.org/debian-security/\n\
                       Other main https://packages.example.org/\n\
                       Debian main http://ftp.example.org/debian/\n";
        assert_eq!(mirror_in(targets).as_deref(), Some("http://ftp.example.org/debian"));
        assert_eq!(mirror_in("Ubuntu main http://archive.example.org/ubuntu/\n"), None);
    }
}
