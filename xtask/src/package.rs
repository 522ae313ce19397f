//! `cargo xtask package`: the Debian package, of the programs and of the files in `deploy/`.
//!
//! `dpkg-deb` packs a folder; its content is the list below. The same folder and the same time
//! (`SOURCE_DATE_EPOCH`) make the same package.
//!
//! `lb-documents` writes man pages and completions from the command grammars, so they are never out of date. `lbd`
//! runs as user `lb`; the unit's `ExecStartPre=+` gives it a folder in the BPF file system, which belongs to root.
//! The maintainer scripts in `deploy/debian` make one decision: an upgrade restarts `lbd`, a removal stops it and
//! detaches.

use std::{
    env, fs,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use kit::command;

use crate::cargo;

#[derive(clap::Args)]
pub struct Arguments {
    /// How the programs are built
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// Programs that are built already: the folder with lbd, lbctl and lb-documents
    #[arg(long, value_name = "FOLDER", conflicts_with = "profile")]
    binaries: Option<PathBuf>,
    /// Make the package with the symbols for debuggers, too, as is done of release builds
    #[arg(long)]
    symbols: bool,
    /// The package's revision of this version
    #[arg(long, default_value_t = 1)]
    revision: u32,
    /// Where the package goes; target/package unless given
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// Optimised, with the symbols for debuggers in a package of their own
    #[default]
    Release,
    /// As the tests have it: built quickly, slow
    Dev,
}

const NAME: &str = "lb";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const MAINTAINER: &str = "The lb authors <lb@packages.invalid>";
const PROGRAMS: [(&str, &str); 2] = [("lbd", "usr/sbin"), ("lbctl", "usr/bin")];
/// The daemon's, and that of backends.
const UNITS: [&str; 2] = ["lbd.service", "lb-decap@.service"];
const DOC: &str = "usr/share/doc/lb";

/// Builds the package and prints its path.
///
/// # Errors
///
/// If a program does not build, or a tool is missing; the error names the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    for (program, package) in [("dpkg-deb", "dpkg"), ("strip", "binutils"), ("gzip", "gzip")] {
        let there = command::find(program).is_some();
        ensure!(there, "{program} is missing; on Debian and Ubuntu: apt-get install -y {package}");
    }
    let binaries = match &arguments.binaries {
        Some(folder) => folder.clone(),
        None => {
            crate::setup::tools()?;
            cargo::build(arguments.profile == Profile::Release)?
        }
    };
    let output =
        arguments.output.clone().unwrap_or_else(|| crate::workspace().join("target/package"));
    fs::create_dir_all(&output).with_context(|| output.display().to_string())?;
    let quick = arguments.binaries.is_some() || arguments.profile == Profile::Dev;
    let recipe = Recipe {
        version: format!("{VERSION}-{}", arguments.revision),
        architecture: output_of(Command::new("dpkg").arg("--print-architecture"))?
            .trim()
            .to_owned(),
        binaries,
        output,
        compression: if quick { "-Znone" } else { "-Zxz" },
    };
    println!("built {}", recipe.package()?.display());
    if arguments.symbols || !quick {
        println!("built {}", recipe.symbols()?.display());
    }
    Ok(())
}

struct Recipe {
    version: String,
    architecture: String,
    binaries: PathBuf,
    output: PathBuf,
    compression: &'static str,
}

/// The folder of a package that is being made; removed when it is packed.
struct Tree(PathBuf);

impl Tree {
    fn new(at: PathBuf) -> Result<Self> {
        if at.exists() {
            fs::remove_dir_all(&at).with_context(|| at.display().to_string())?;
        }
        fs::create_dir_all(at.join("DEBIAN")).with_context(|| at.display().to_string())?;
        Ok(Self(at))
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        let folder = path.parent().context("a file has a folder")?;
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        Ok(path)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> Result<PathBuf> {
        let path = self.path(name)?;
        let context = || path.display().to_string();
        fs::write(&path, content).with_context(context)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).with_context(context)?;
        Ok(path)
    }

    fn copy(&self, from: &Path, name: &str, mode: u32) -> Result<PathBuf> {
        let content = fs::read(from).with_context(|| from.display().to_string())?;
        self.write(name, content, mode)
    }

    /// The same without name and time of the file in it.
    fn zip(&self, name: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.write(name, content, 0o644)?;
        command::run(Command::new("gzip").args(["-9", "-n"]).arg(path)).map(drop)
    }
}

impl Recipe {
    fn package(&self) -> Result<PathBuf> {
        let tree = Tree::new(self.output.join(NAME))?;
        let mut least = (2, 0);
        for (program, folder) in PROGRAMS {
            let path =
                tree.copy(&self.binaries.join(program), &format!("{folder}/{program}"), 0o755)?;
            command::run(Command::new("strip").args(["--strip-unneeded"]).arg(&path))?;
            least = least.max(libc_of(&output_of(Command::new("objdump").arg("-T").arg(&path))?));
        }
        self.documents(&tree)?;
        self.deployment(&tree)?;
        let depends = format!(
            "libc6 (>= {}.{}), libgcc-s1, default-systemd-sysusers | systemd-sysusers",
            least.0, least.1
        );
        let more = format!(
            "Depends: {depends}\nRecommends: iproute2\nSuggests: prometheus, grafana\n\
             Description: layer-4 load balancer with XDP\n \
             An XDP program takes packets for a virtual IP at the network driver and sends\n \
             each to a backend, chosen by consistent hashing. A daemon checks the backends,\n \
             shares the virtual IP with other nodes by VRRP, and sends them its flows.\n"
        );
        self.pack(&tree, NAME, "net", &more)
    }

    /// The symbols for debuggers, by the programs' build ids.
    fn symbols(&self) -> Result<PathBuf> {
        let name = format!("{NAME}-dbgsym");
        let tree = Tree::new(self.output.join(&name))?;
        for (program, _) in PROGRAMS {
            let binary = self.binaries.join(program);
            let id = build_id(&output_of(Command::new("readelf").arg("-n").arg(&binary))?)
                .with_context(|| format!("{program} has no build id"))?;
            let (first, rest) = id.split_at(2);
            let path = tree.path(&format!("usr/lib/debug/.build-id/{first}/{rest}.debug"))?;
            let mut objcopy = Command::new("objcopy");
            objcopy.args(["--only-keep-debug", "--compress-debug-sections"]);
            command::run(objcopy.arg(&binary).arg(&path))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        }
        // Its documentation is the other one's.
        let doc = tree.path(&format!("usr/share/doc/{name}"))?;
        symlink(NAME, &doc).with_context(|| doc.display().to_string())?;
        let more = format!(
            "Depends: {NAME} (= {})\nDescription: debug symbols for {NAME}\n \
             What gdb and perf need to name the functions of lbd and lbctl.\n",
            self.version
        );
        self.pack(&tree, &name, "debug", &more)
    }

    /// Man pages and completions, written by the programs' own grammars.
    fn documents(&self, tree: &Tree) -> Result<()> {
        let folder = self.output.join("documents");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        command::run(Command::new(self.binaries.join("lb-documents")).arg(&folder))
            .context("write man pages and completions")?;
        for page in files(&folder.join("man"))? {
            let name = file_name(&page)?;
            let section = name.rsplit_once('.').context("a page has a section")?.1;
            tree.zip(&format!("usr/share/man/man{section}/{name}"), fs::read(&page)?)?;
        }
        for (shell, ours, theirs) in [
            ("bash", "lbd.bash", "bash-completion/completions/"),
            ("zsh", "_lbd", "zsh/vendor-completions/_"),
            ("fish", "lbd.fish", "fish/vendor_completions.d/"),
        ] {
            let end = if shell == "fish" { ".fish" } else { "" };
            let to = |program: &str| format!("usr/share/{theirs}{program}{end}");
            tree.copy(&folder.join("completions").join(ours), &to("lbd"), 0o644)?;
            // It runs lbctl, by its name: whichever is in PATH.
            let mut asks = Command::new(self.binaries.join("lbctl"));
            let mut asks = output_of(asks.arg0("lbctl").env("COMPLETE", shell))?;
            if shell == "zsh" {
                // A file of this folder is a function, which is called when it is loaded.
                asks += "_clap_dynamic_completer_lbctl \"$@\"\n";
            }
            tree.write(&to("lbctl"), asks, 0o644)?;
        }
        fs::remove_dir_all(&folder)?;
        Ok(())
    }

    /// The files of `deploy/`, and the package's documentation.
    fn deployment(&self, tree: &Tree) -> Result<()> {
        let workspace = crate::workspace();
        let deploy = workspace.join("deploy");
        for name in UNITS {
            let text = unit(&read(&deploy.join(name))?);
            tree.write(&format!("lib/systemd/system/{name}"), text, 0o644)?;
        }
        tree.copy(&deploy.join("sysusers.conf"), "usr/lib/sysusers.d/lb.conf", 0o644)?;
        tree.copy(&deploy.join("debian/lb.toml"), "etc/lb/lb.toml", 0o644)?;
        tree.write("DEBIAN/conffiles", "/etc/lb/lb.toml\n", 0o644)?;
        for script in ["postinst", "prerm", "postrm"] {
            let from = deploy.join("debian").join(script);
            tree.copy(&from, &format!("DEBIAN/{script}"), 0o755)?;
        }
        tree.copy(&deploy.join("lb.toml"), &format!("{DOC}/examples/lb.toml"), 0o644)?;
        // Alert rules and dashboards, as many as there are.
        for kind in ["prometheus", "grafana"] {
            for file in files_below(&deploy.join(kind))? {
                let name = file.strip_prefix(&deploy)?.to_str().context("a name as text")?;
                // The tests of the rules are of no use on an installed machine.
                if !name.contains(".test.") {
                    tree.copy(&file, &format!("usr/share/lb/{name}"), 0o644)?;
                }
            }
        }
        tree.zip(&format!("{DOC}/README.md"), read(&workspace.join("README.md"))?)?;
        // As they stand in the tree, so that the links between them lead somewhere.
        for folder in ["docs/guide", "docs/dev"] {
            for file in files(&workspace.join(folder))? {
                tree.copy(&file, &format!("{DOC}/{folder}/{}", file_name(&file)?), 0o644)?;
            }
        }
        tree.copy(&workspace.join("docs/METRICS.md"), &format!("{DOC}/docs/METRICS.md"), 0o644)?;
        tree.zip(&format!("{DOC}/changelog"), read(&workspace.join("CHANGELOG.md"))?)?;
        let date =
            output_of(Command::new("date").args(["-R", "-u", "-d", &format!("@{}", epoch()?)]))?;
        let changelog = format!(
            "{NAME} ({}) unstable; urgency=medium\n\n  * What has changed is in changelog.gz.\n\n \
             -- {MAINTAINER}  {date}",
            self.version
        );
        tree.zip(&format!("{DOC}/changelog.Debian"), changelog)?;
        tree.write(&format!("{DOC}/copyright"), COPYRIGHT, 0o644)?;
        Ok(())
    }

    fn pack(&self, tree: &Tree, name: &str, section: &str, more: &str) -> Result<PathBuf> {
        let root = &tree.0;
        let size = output_of(Command::new("du").args(["-sk", "--apparent-size"]).arg(root))?;
        let size = size.split_whitespace().next().context("du prints a size")?;
        let control = format!(
            "Package: {name}\nVersion: {}\nArchitecture: {}\nMaintainer: {MAINTAINER}\n\
             Section: {section}\nPriority: optional\nInstalled-Size: {size}\n{more}",
            self.version, self.architecture
        );
        tree.write("DEBIAN/control", control, 0o644)?;
        let sums = output_of(
            Command::new("sh")
                .args(["-c", "find . -type f -not -path './DEBIAN/*' -printf '%P\\0' | sort -z | xargs -0r md5sum"])
                .current_dir(root),
        )?;
        tree.write("DEBIAN/md5sums", sums, 0o644)?;
        command::run(Command::new("chmod").args(["-R", "u+rwX,go+rX,go-w"]).arg(root))?;
        let to = self.output.join(format!("{name}_{}_{}.deb", self.version, self.architecture));
        let mut pack = Command::new("dpkg-deb");
        pack.env("SOURCE_DATE_EPOCH", epoch()?).args(["--root-owner-group", self.compression]);
        command::run(pack.arg("--build").arg(root).arg(&to))?;
        fs::remove_dir_all(root).with_context(|| root.display().to_string())?;
        Ok(to)
    }
}

const COPYRIGHT: &str = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
    Upstream-Name: lb\n\nFiles: *\nCopyright: 2026 The lb authors\nLicense: MIT or Apache-2.0\n\n\
    License: MIT\n Permission is hereby granted, free of charge, to any person obtaining a copy of\n \
    this software and associated documentation files (the \"Software\"), to deal in\n the Software \
    without restriction, including without limitation the rights to\n use, copy, modify, merge, \
    publish, distribute, sublicense, and/or sell copies\n of the Software, and to permit persons to \
    whom the Software is furnished to do\n so, subject to the following conditions:\n .\n The above \
    copyright notice and this permission notice shall be included in all\n copies or substantial \
    portions of the Software.\n .\n THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND, \
    EXPRESS OR\n IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS\n \
    FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR\n COPYRIGHT \
    HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER\n IN AN ACTION OF CONTRACT, \
    TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN\n CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER \
    DEALINGS IN THE SOFTWARE.\n\nLicense: Apache-2.0\n On Debian systems, the full text of the \
    Apache License, Version 2.0, is in\n /usr/share/common-licenses/Apache-2.0.\n";

/// The unit with the places that the package has.
fn unit(text: &str) -> String {
    text.replace("/usr/local/sbin/lbd", "/usr/sbin/lbd")
        .replace("/usr/local/sbin/lbctl", "/usr/bin/lbctl")
}

/// The time of the package: given, or that of the last commit, or of a moment that never changes.
fn epoch() -> Result<String> {
    if let Ok(given) = env::var("SOURCE_DATE_EPOCH") {
        if given.parse::<u64>().is_err() {
            bail!("SOURCE_DATE_EPOCH is `{given}`, which is no number of seconds");
        }
        return Ok(given);
    }
    let mut git = Command::new("git");
    git.current_dir(crate::workspace()).args(["log", "-1", "--format=%ct"]);
    Ok(output_of(&mut git).map_or_else(|_| "1".into(), |time| time.trim().to_owned()))
}

/// The newest version of the C library that a program needs, by the output of `objdump -T`.
fn libc_of(symbols: &str) -> (u32, u32) {
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(rest.len());
        let mut numbers = rest[..end].split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    versions.max().unwrap_or((2, 0))
}

/// The build id, by the output of `readelf -n`.
fn build_id(notes: &str) -> Option<String> {
    let id = notes.lines().find_map(|line| line.trim().strip_prefix("Build ID:"))?.trim();
    (id.len() > 2).then(|| id.to_owned())
}

/// The files of a folder in order; none if there is no such folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<_> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.retain(|path| path.is_file());
    files.sort();
    Ok(files)
}

/// The files of a folder and of those in it.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = files(folder)?;
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        if path.is_dir() {
            found.extend(files_below(&path)?);
        }
    }
    found.sort();
    Ok(found)
}

fn file_name(path: &Path) -> Result<&str> {
    path.file_name().and_then(|name| name.to_str()).context("a file has a name")
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn output_of(command: &mut Command) -> Result<String> {
    kit::command::run(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_libc_that_is_asked_for_counts() {
        let symbols =
            "0000  DF *UND* (GLIBC_2.2.5) write\n0000 DF *UND* (GLIBC_2.34) x\n(GLIBC_2.9) y";
        assert_eq!(libc_of(symbols), (2, 34));
        assert_eq!(libc_of("(GLIBC_PRIVATE) z"), (2, 0));
    }

    #[test]
    fn the_build_id_is_found_among_notes() {
        assert_eq!(build_id("Owner\n    Build ID: 0a1b2c\n"), Some("0a1b2c".into()));
        assert_eq!(build_id("no notes"), None);
    }

    #[test]
    fn units_start_what_the_package_has() -> Result<()> {
        let read = |name| {
            Ok::<_, anyhow::Error>(unit(&read(&crate::workspace().join("deploy").join(name))?))
        };
        let [lbd, decap] = [read(UNITS[0])?, read(UNITS[1])?];
        assert!(lbd.contains("ExecStart=/usr/sbin/lbd "));
        assert!(lbd.contains("ExecReload=/usr/bin/lbctl "));
        assert!(decap.contains("ExecStart=/usr/bin/lbctl decap run "));
        for unit in [lbd, decap] {
            let lines = unit.lines().filter(|line| !line.starts_with('#'));
            let left: Vec<_> = lines.filter(|line| line.contains("/usr/local")).collect();
            assert!(left.is_empty(), "{left:?}");
        }
        Ok(())
    }
}
