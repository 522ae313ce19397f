//! The socket's file: its permissions, and its owner.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _, chown},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use tokio::net::UnixListener;

/// The socket's file, which goes when this does.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // One that can't be removed is recognised as left behind by the next start.
        let _ = fs::remove_file(&self.0);
    }
}

/// The socket, and the group whose members may use it.
#[derive(Debug)]
pub struct Listener {
    pub(super) listener: UnixListener,
    pub(super) group: Arc<str>,
}

/// Makes the socket, for root, the user of this process and `group`.
///
/// # Errors
///
/// Someone answers there, or the file can't be made.
pub fn bind(path: &Path, group: &str) -> Result<(Listener, SocketFile)> {
    make_way(path)?;
    let dir = path.parent().context("the socket's path has no folder")?;
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    // Until its mode is set, only its owner may write to it, which connecting requires.
    let listener =
        UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    let file = SocketFile(path.to_owned());
    match group_id(group) {
        Some(id) => chown(path, None, Some(id))
            .with_context(|| format!("give {} to group {group}", path.display()))?,
        None => tracing::warn!(group, "there is no such group; only root can use lbctl"),
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))
        .with_context(|| format!("set the mode of {}", path.display()))?;
    Ok((Listener { listener, group: group.into() }, file))
}

/// Removes a socket without a listener.
fn make_way(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("look at {}", path.display())),
        Ok(meta) if !meta.file_type().is_socket() => {
            bail!("{} is no socket; remove it, or set `socket` to another path", path.display())
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => bail!("lbd is running already: it answers on {}; stop it first", path.display()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("remove {}", path.display()))
        }
        Err(error) => Err(error).with_context(|| format!("connect to {}", path.display())),
    }
}

/// The id of a group of this machine.
pub(super) fn group_id(name: &str) -> Option<u32> {
    let groups = fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("run/lbd.sock");
        let (first, file) = bind(&path, "no such group").expect("the folder is made");
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let error = bind(&path, "no such group").expect_err("one listens");
        assert!(error.to_string().contains("lbd is running already"), "{error}");
        // The socket of a daemon that was killed.
        std::mem::forget(file);
        drop(first);
        drop(bind(&path, "no such group").expect("there is no listener"));
        assert!(!path.exists(), "it goes with its owner");
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("lbd.sock");
        fs::write(&path, "precious").expect("it is written");
        let error = bind(&path, "root").expect_err("it is a file");
        assert!(error.to_string().contains("is no socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "precious");
    }

    #[test]
    fn groups_are_found_by_name() {
        assert_eq!(group_id("root"), Some(0));
        assert_eq!(group_id("no such group"), None);
    }
}
