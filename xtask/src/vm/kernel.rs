//! A packaged kernel: from an argument to an unpacked folder.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use kit::command;

use super::{apt::Source, cache};
use crate::cargo;

/// For this long, the kernel of a series that is there counts as its newest.
const FRESH: Duration = Duration::from_secs(7 * 24 * 3600);

/// The argument for the newest kernel that Debian has.
pub const NEWEST: &str = "newest";

/// A kernel and its modules.
#[derive(Debug)]
pub struct Kernel {
    /// As `uname -r` prints.
    pub release: String,
    /// The compressed kernel.
    pub image: PathBuf,
    /// The folder in which `modules/RELEASE` is.
    pub lib: PathBuf,
}

/// The suites of Debian that may have a series, likeliest first.
fn suites(series: &str) -> &'static [&'static str] {
    match series {
        "5.10" => &["bullseye"],
        "6.1" => &["bookworm", "bullseye-backports"],
        "6.12" => &["trixie", "bookworm-backports"],
        NEWEST => &["sid"],
        _ => &["sid", "trixie-backports", "bookworm-backports", "experimental"],
    }
}

impl Kernel {
    /// The kernel of `requested`: a series (`6.12`), `newest`, or a folder of an unpacked package.
    ///
    /// # Errors
    ///
    /// If there is none, or it can't be downloaded.
    pub fn obtain(requested: &str) -> Result<Self> {
        if requested.contains('/') {
            return Self::in_folder(Path::new(requested));
        }
        let is_series = requested.split('.').count() == 2
            && requested.split('.').all(|part| part.parse::<u16>().is_ok());
        ensure!(
            is_series || requested == NEWEST,
            "`{requested}` is no kernel; name a series (6.12), `{NEWEST}`, or the folder of an unpacked \
             kernel package"
        );
        let kernels = cache().join("kernels");
        fs::create_dir_all(&kernels).with_context(|| kernels.display().to_string())?;
        let lock = cache().join("lock");
        let lock = File::create(&lock).with_context(|| lock.display().to_string())?;
        lock.lock().context("wait for another run that fetches kernels")?;
        let known = kernels.join(requested);
        if is_fresh(&known) {
            return Self::in_folder(&known);
        }
        match fetch(requested, &kernels) {
            Ok(folder) => {
                remember(&known, &folder)?;
                Self::in_folder(&folder)
            }
            Err(error) if known.exists() => {
                eprintln!("xtask: {error:#}; Linux {requested} as it was fetched before will do");
                Self::in_folder(&known)
            }
            Err(error) => Err(error),
        }
    }

    fn in_folder(folder: &Path) -> Result<Self> {
        let folder = folder.canonicalize().with_context(|| folder.display().to_string())?;
        // Debian has them in /lib before version 13.
        let libs = ["usr/lib", "lib"].map(|lib| folder.join(lib));
        let lib = libs.into_iter().find(|lib| lib.join("modules").is_dir());
        let lib =
            lib.with_context(|| format!("{} has no modules of a kernel", folder.display()))?;
        let mut releases = fs::read_dir(lib.join("modules")).context("list releases")?;
        let release = releases.next().context("no release")?.context("list releases")?.file_name();
        let release = release.to_string_lossy().into_owned();
        let modules = lib.join("modules").join(&release);
        let images = [folder.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
        let image = images.into_iter().find(|image| image.is_file());
        let image = image.with_context(|| format!("{} has no vmlinuz", folder.display()))?;
        if !modules.join("modules.dep").is_file() {
            let root = lib.parent().context("the folder of lib")?;
            command::run(command::command("depmod").arg("-b").arg(root).arg(&release))?;
        }
        Ok(Self { release, image, lib })
    }
}

/// Downloads and unpacks the newest kernel of a series; its folder.
fn fetch(requested: &str, kernels: &Path) -> Result<PathBuf> {
    let series = (requested != NEWEST).then_some(requested);
    let mut tried = Vec::new();
    let sources = series.map(|_| Ok(Source::configured())).into_iter();
    let sources =
        sources.chain(suites(requested).iter().map(|suite| Source::suite(suite, &cache())));
    for source in sources {
        let source = match source {
            Ok(source) => source,
            Err(error) => {
                tried.push(format!("{error:#}"));
                continue;
            }
        };
        let Some(version) = source.newest(series) else {
            tried.push(format!("{} has none", source.name));
            continue;
        };
        let folder = kernels.join(format!("linux-{version}"));
        if folder.is_dir() {
            return Ok(folder);
        }
        eprintln!("set-up: Linux {version} from {}, into {}", source.name, folder.display());
        let aside = kernels.join(format!(".{}", std::process::id()));
        let _ = fs::remove_dir_all(&aside);
        let unpacked = unpack(&source, &version, &aside, &folder);
        let _ = fs::remove_dir_all(&aside);
        match unpacked {
            Ok(()) => return Ok(folder),
            Err(error) => tried.push(format!("{error:#}")),
        }
    }
    bail!("no kernel {requested}: {}", tried.join("; "))
}

fn unpack(source: &Source, version: &str, aside: &Path, folder: &Path) -> Result<()> {
    let debs = source.download(&source.packages_of(version), &aside.join("debs"))?;
    let tree = aside.join("tree");
    for deb in debs {
        cargo::run(command::command("dpkg-deb").arg("-x").arg(deb).arg(&tree))?;
    }
    fs::rename(&tree, folder).with_context(|| format!("rename to {}", folder.display()))
}

fn is_fresh(link: &Path) -> bool {
    let Ok(data) = fs::symlink_metadata(link) else { return false };
    let age = data.modified().map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
    link.exists() && age.is_ok_and(|age| age < FRESH)
}

/// Lets `known` be the kernel in `folder`. An older one of the series goes.
fn remember(known: &Path, folder: &Path) -> Result<()> {
    if let Ok(old) = known.canonicalize()
        && old != folder.canonicalize().context("the kernel's folder")?
    {
        let others = fs::read_dir(known.parent().context("the folder of kernels")?);
        let links = others.into_iter().flatten().flatten().map(|entry| entry.path());
        let used = links.filter(|path| path.is_symlink() && path != known);
        if !used.into_iter().any(|path| path.canonicalize().is_ok_and(|path| path == old)) {
            fs::remove_dir_all(&old).with_context(|| format!("remove {}", old.display()))?;
        }
    }
    let _ = fs::remove_file(known);
    let name = folder.file_name().context("the kernel's folder has a name")?;
    std::os::unix::fs::symlink(name, known).with_context(|| known.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> Result<PathBuf> {
        let folder = std::env::temp_dir().join(format!("lb-xtask-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    #[test]
    fn an_unpacked_package_is_a_kernel_wherever_its_modules_are() -> Result<()> {
        let root = folder("kernel")?;
        for (name, lib, image) in [
            ("old", "lib", "boot/vmlinuz-6.1.0-1-amd64"),
            ("new", "usr/lib", "usr/lib/modules/6.1.0-1-amd64/vmlinuz"),
        ] {
            let package = root.join(name);
            let modules = package.join(lib).join("modules/6.1.0-1-amd64");
            fs::create_dir_all(&modules)?;
            fs::create_dir_all(package.join("boot"))?;
            fs::write(modules.join("modules.dep"), "")?;
            fs::write(package.join(image), "")?;
            let kernel = Kernel::obtain(&package.to_string_lossy())?;
            assert_eq!(kernel.release, "6.1.0-1-amd64");
            assert!(kernel.image.ends_with(image), "{}", kernel.image.display());
        }
        assert!(Kernel::obtain(&root.to_string_lossy()).is_err(), "no modules are there");
        fs::remove_dir_all(root)?;
        Ok(())
    }

    #[test]
    fn what_is_no_kernel_is_refused_before_anything_is_asked() {
        for requested in ["6", "6.12.1", "six", "6.x", ""] {
            let error = Kernel::obtain(requested).expect_err(requested);
            assert!(error.to_string().contains("name a series"), "{error:#}");
        }
    }

    #[test]
    fn a_newer_kernel_takes_the_place_of_the_older_one() -> Result<()> {
        let root = folder("newer")?;
        for name in ["linux-1", "linux-2"] {
            fs::create_dir(root.join(name))?;
        }
        remember(&root.join("6.1"), &root.join("linux-1"))?;
        remember(&root.join("newest"), &root.join("linux-1"))?;
        assert!(is_fresh(&root.join("6.1")));
        remember(&root.join("6.1"), &root.join("linux-2"))?;
        assert!(root.join("linux-1").exists(), "it is still another one's");
        remember(&root.join("newest"), &root.join("linux-2"))?;
        assert!(!root.join("linux-1").exists(), "nobody needs it");
        assert!(root.join("newest").exists());
        fs::remove_dir_all(root)?;
        Ok(())
    }
}
