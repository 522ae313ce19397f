//! The secret that rings and flow hashes are keyed with, and the file that keeps it.

use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// Where the seed comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum Source {
    /// The configuration holds it.
    Given([u8; 16]),
    /// A file holds it; one that is missing is made with random bytes.
    File(PathBuf),
    /// The same for a file that the configuration does not name. If it is missing and there is an
    /// `earlier` one, where version 0.1.0 kept every seed, it is made with that one's: flows stay.
    Default {
        /// The file.
        file: PathBuf,
        /// Where the seed may be from before.
        earlier: PathBuf,
    },
}

impl fmt::Debug for Source {
    /// The seed is secret: with it, a client can aim at one backend.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(_) => f.write_str("Given(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Default { file, .. } => f.debug_tuple("Default").field(file).finish(),
        }
    }
}

/// Reads 32 hexadecimal digits.
#[must_use]
pub fn parse(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

impl Source {
    /// The seed; makes the file if there is none.
    ///
    /// # Errors
    ///
    /// The file can't be read or made, or holds no seed.
    pub(crate) fn obtain(&self) -> Result<[u8; 16]> {
        self.obtain_by(|path| fs::read_to_string(path))
    }

    /// The file that keeps it.
    #[must_use]
    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Self::Given(_) => None,
            Self::File(file) | Self::Default { file, .. } => Some(file),
        }
    }

    /// Whether there is a seed already. Makes none.
    ///
    /// # Errors
    ///
    /// A file can't be read, or holds no seed.
    pub(crate) fn is_there(&self) -> Result<bool> {
        let there = |path: &Path| read(path, fs::read_to_string(path)).map(|seed| seed.is_some());
        match self {
            Self::Given(_) => Ok(true),
            Self::File(path) => there(path),
            Self::Default { file, earlier } => Ok(there(file)? || there(earlier).unwrap_or(true)),
        }
    }

    fn obtain_by(&self, text: impl Fn(&Path) -> io::Result<String>) -> Result<[u8; 16]> {
        let read = |path: &Path| read(path, text(path));
        let (path, earlier) = match self {
            Self::Given(seed) => return Ok(*seed),
            Self::File(path) => (path, None),
            Self::Default { file, earlier } => (file, Some(earlier).filter(|other| *other != file)),
        };
        if let Some(seed) = read(path)? {
            return Ok(seed);
        }
        let earlier = match earlier.map(|earlier| (earlier, read(earlier))) {
            // An instance that had made it could read it: it is of another one, of another user.
            Some((earlier, Err(error))) if is_denied(&error) => {
                let earlier = earlier.display();
                tracing::info!(%earlier, "a seed is there that can't be read; this instance makes its own");
                None
            }
            earlier => earlier.map(|(_, seed)| seed).transpose()?.flatten(),
        };
        let seed = match earlier {
            Some(seed) => seed,
            None => random()?,
        };
        keep(seed, path)?;
        let file = path.display();
        tracing::info!(%file, "made a seed; give the same to every node that shares the VIPs");
        Ok(seed)
    }
}

/// The seed that a file holds; none if there is no file.
fn read(path: &Path, text: io::Result<String>) -> Result<Option<[u8; 16]>> {
    match text {
        Ok(text) => parse(text.trim()).map(Some).with_context(|| {
            format!(
                "{} holds no seed of 32 hexadecimal digits; copy it from another node, or remove it to have one made",
                path.display()
            )
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(error).with_context(|| {
                format!(
                    "read {}; make it readable for the user of lbd, or if another instance has made it, name an own \
                     file by `seed_file`, or by `state_file`, beside which it is kept",
                    path.display()
                )
            })
        }
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Whether a file may not be read by this process' user.
pub(crate) fn is_denied(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<io::Error>();
    cause.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("read /dev/urandom")?;
    Ok(bytes)
}

/// Makes the file that keeps a seed, readable for the owner only.
fn keep(seed: [u8; 16], path: &Path) -> Result<()> {
    let Some(dir) = path.parent() else { bail!("{} is no file", path.display()) };
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let partial = path.with_extension("partial");
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&partial)
        .and_then(|mut file| {
            writeln!(file, "{:032x}", u128::from_be_bytes(seed))?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&partial, path))
        .and_then(|()| fs::File::open(dir)?.sync_all());
    written.with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn seeds_are_32_hexadecimal_digits() {
        assert_eq!(
            parse("000102030405060708090a0b0c0d0e0f"),
            Some(std::array::from_fn(|i| i as u8))
        );
        assert_eq!(parse("000102030405060708090a0b0c0d0e0"), None);
        assert_eq!(parse("+00102030405060708090a0b0c0d0e0f"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_seed_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("lb/seed");
        let source = Source::File(path.clone());
        let seed = source.obtain().expect("it is made");
        assert_eq!(source.obtain().expect("it is read"), seed);
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_seed_from_before_the_state_file_was_elsewhere_is_taken_over() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (file, earlier) = (dir.path().join("state/seed"), dir.path().join("seed"));
        let seed = Source::File(earlier.clone()).obtain().expect("it is made");
        let source = Source::Default { file: file.clone(), earlier: earlier.clone() };
        assert_eq!(source.obtain().expect("it is copied"), seed);
        fs::remove_file(&earlier).expect("it is there");
        assert_eq!(source.obtain().expect("it is read"), seed);
        fs::remove_file(&file).expect("it is there");
        assert_ne!(source.obtain().expect("it is made"), seed);
        assert!(!earlier.exists(), "nothing is written elsewhere");
    }

    /// Reads as a user without the right to read `closed`; root, which may run the tests, reads everything.
    fn reader(closed: PathBuf) -> impl Fn(&Path) -> io::Result<String> {
        move |path| match path == closed {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => fs::read_to_string(path),
        }
    }

    #[test]
    fn a_seed_of_another_instance_that_can_not_be_read_is_not_taken_over() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (file, earlier) = (dir.path().join("state/seed"), dir.path().join("seed"));
        let other = Source::File(earlier.clone()).obtain().expect("it is made");
        let source = Source::Default { file: file.clone(), earlier: earlier.clone() };
        let own = source.obtain_by(reader(earlier)).expect("an own one is made");
        assert_ne!(own, other);
        assert_eq!(source.obtain().expect("it is read"), own);
    }

    #[test]
    fn a_seed_that_can_not_be_read_says_which_key_names_another() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("seed");
        Source::File(file.clone()).obtain().expect("it is made");
        let source = Source::Default { file: file.clone(), earlier: file.clone() };
        for source in [source, Source::File(file.clone())] {
            let error = source.obtain_by(reader(file.clone())).expect_err("it can't be read");
            let error = format!("{error:#}");
            assert!(error.contains("`seed_file`"), "{error}");
            assert!(error.contains("permission denied"), "{error}");
        }
    }

    #[test]
    fn a_file_without_a_seed_is_left_alone() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("seed");
        fs::write(&path, "not a seed").expect("it is written");
        let error = Source::File(path.clone()).obtain().expect_err("it is no seed");
        assert!(format!("{error:#}").contains("32 hexadecimal digits"));
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "not a seed");
    }
}
