//! Records of measurements: results, machine, versions.
//!
//! A measuring command with `--save` keeps its results in `docs/results/NAME.json`, and the documents are
//! written of all that is there. A record names neither a person nor a place.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One command's results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The measurement, one word: the file's name.
    pub name: String,
    /// The command that repeats it.
    pub command: String,
    /// When it ended: RFC 3339, in UTC.
    pub date: String,
    /// The commit that the tree was at when it ended, with a `+` behind it if the tree had changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The machine.
    pub machine: Machine,
    /// Versions of the programs, by name.
    pub versions: BTreeMap<String, String>,
    /// The results of the command as JSON.
    pub results: Value,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Its CPU's name.
    pub cpu: String,
    /// CPUs that can be used.
    pub cores: usize,
    /// Memory.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Whether it is a guest of a hypervisor.
    pub virtualised: bool,
}

/// The source of a program's version.
enum VersionSource {
    /// The program itself, by this word.
    Itself(&'static str),
    /// Debian's package of the same name.
    Package,
}

/// Programs with a known source of their version.
const VERSIONS: &[(&str, VersionSource)] = &[
    ("chromium", VersionSource::Itself("--version")),
    ("curl", VersionSource::Itself("--version")),
    ("haproxy", VersionSource::Itself("-v")),
    ("iperf3", VersionSource::Itself("--version")),
    // It looks for IPVS in the kernel before it reads its options. Where there is none, it does not print
    // its version, and modprobe prints the kernel's.
    ("ipvsadm", VersionSource::Package),
    ("keepalived", VersionSource::Itself("--version")),
    ("nft", VersionSource::Itself("--version")),
    ("nginx", VersionSource::Itself("-v")),
    ("perf", VersionSource::Itself("--version")),
    ("prometheus", VersionSource::Itself("--version")),
    ("qemu-system-x86_64", VersionSource::Itself("--version")),
    ("rustc", VersionSource::Itself("--version")),
    ("wrk", VersionSource::Itself("-v")),
];

impl Record {
    /// These results, of now and of this machine, without a revision. `programs` took part beside lb
    /// itself.
    ///
    /// # Errors
    ///
    /// If this machine does not name its model, or a program is not there.
    pub fn new(name: &str, command: String, programs: &[&str], results: Value) -> Result<Self> {
        let versions = versions(programs)?;
        let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let (name, machine) = (name.to_owned(), Machine::here()?);
        Ok(Self { name, command, date, revision: None, machine, versions, results })
    }

    /// Keeps it in `folder`, in place of the one of the same name.
    ///
    /// # Errors
    ///
    /// If it can't be written.
    pub fn save(&self, folder: &Path) -> Result<PathBuf> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let path = folder.join(format!("{}.json", self.name));
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// All records of a folder, by name. None, if it is not there.
    ///
    /// # Errors
    ///
    /// If one is no record, or has another name than its file.
    pub fn all(folder: &Path) -> Result<BTreeMap<String, Self>> {
        let mut records = BTreeMap::new();
        if !folder.exists() {
            return Ok(records);
        }
        for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let name = path.display().to_string();
            let text = fs::read_to_string(&path).with_context(|| format!("read {name}"))?;
            let record: Self = serde_json::from_str(&text).with_context(|| name.clone())?;
            let stem = path.file_stem().unwrap_or_default();
            ensure!(*stem == *record.name, "{name} is the record of `{}`", record.name);
            records.insert(record.name.clone(), record);
        }
        Ok(records)
    }
}

impl Machine {
    /// This one.
    ///
    /// # Errors
    ///
    /// If `/proc` can't be read.
    pub fn here() -> Result<Self> {
        let cpus = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
        let memory = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel")?;
        Ok(Self {
            cpu: field(&cpus, "model name").unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().context("count the CPUs")?.get(),
            memory_bytes: memory_bytes(&memory).context("MemTotal in /proc/meminfo")?,
            kernel: kernel.trim().to_owned(),
            virtualised: field(&cpus, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
        })
    }
}

/// The value of the first `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

fn memory_bytes(meminfo: &str) -> Option<u64> {
    let kib: u64 = field(meminfo, "MemTotal")?.strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// The versions of these programs, of lb and of the compiler. A long measurement reads them first.
///
/// # Errors
///
/// If one is not there, or does not print its version.
pub fn versions(programs: &[&str]) -> Result<BTreeMap<String, String>> {
    let lb = env!("CARGO_PKG_VERSION").to_owned();
    let mut versions = BTreeMap::from([("lb".to_owned(), lb)]);
    for program in programs.iter().chain(&["rustc"]) {
        versions.insert((*program).to_owned(), version_of(program)?);
    }
    Ok(versions)
}

fn version_of(program: &str) -> Result<String> {
    let (_, source) = VERSIONS
        .iter()
        .find(|(name, _)| *name == program)
        .with_context(|| format!("no known source of the version of {program}"))?;
    // Debian's sbin is not in everybody's PATH.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let (executable, words) = match source {
        VersionSource::Itself(word) => (program, vec![*word]),
        VersionSource::Package => {
            ("dpkg-query", vec!["--show", "--showformat=${Version}", program])
        }
    };
    let mut command = Command::new(executable);
    let output = command
        .args(words)
        .env("PATH", path)
        .output()
        .with_context(|| format!("run {executable} for the version of {program}"))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    number(&text)
        .map(str::to_owned)
        .with_context(|| format!("no version in the output of {executable}"))
}

/// The first word that looks like a version: `nginx version: nginx/1.22.1` has 1.22.1. A package's epoch,
/// as in `1:1.31-1`, is none of it.
fn number(text: &str) -> Option<&str> {
    text.split(|c: char| c.is_whitespace() || "/,()[]:".contains(c))
        .map(|word| word.trim_start_matches('v'))
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (output, version) in [
            ("nginx version: nginx/1.22.1\n", "1.22.1"),
            ("HAProxy version 2.6.12-1+deb12u4 2026/01/01 - https://x.y/", "2.6.12-1+deb12u4"),
            ("Keepalived v2.2.7 (01/16,2022)\n", "2.2.7"),
            ("wrk debian/4.1.0-3+b2 [epoll] Copyright", "4.1.0-3+b2"),
            ("nftables v1.0.6 (Lester Gooch #5)", "1.0.6"),
            ("iperf 3.12 (cJSON 1.7.15)", "3.12"),
            ("perf version 6.1.187", "6.1.187"),
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", "7.2.22"),
            ("1:1.31-1+b1", "1.31-1+b1"),
        ] {
            assert_eq!(number(output), Some(version));
        }
        assert_eq!(number("no version here"), None);
    }

    #[test]
    fn a_record_that_is_saved_is_read_again() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let results = serde_json::json!({ "median_ns": 44.5 });
        let record = Record::new("packets", "cargo xtask bench packets".into(), &[], results)?;
        let path = record.save(folder.path())?;
        assert!(!fs::read_to_string(path)?.contains("revision"));
        assert_eq!(Record::all(folder.path())?.get("packets"), Some(&record));
        let record = Record { revision: Some("1455f7c0a1b2+".into()), ..record };
        record.save(folder.path())?;
        assert_eq!(Record::all(folder.path())?.get("packets"), Some(&record));
        assert!(record.machine.cores > 0 && record.machine.memory_bytes > 1 << 20);
        assert!(record.date.ends_with('Z'));
        Ok(())
    }

    #[test]
    fn a_record_under_another_name_is_refused() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let record = Record::new("one", "command".into(), &[], Value::Null)?;
        let path = record.save(folder.path())?;
        fs::rename(path, folder.path().join("two.json"))?;
        let err = Record::all(folder.path()).expect_err("it is the record of one");
        assert!(err.to_string().ends_with("two.json is the record of `one`"), "{err}");
        assert!(Record::all(&folder.path().join("nowhere"))?.is_empty());
        Ok(())
    }
}
