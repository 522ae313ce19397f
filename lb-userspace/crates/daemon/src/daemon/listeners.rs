//! The HTTP listeners: their state by the configuration's files, and the retries for a file that was
//! missing.

use lb_api::status::Listener;
use lb_plane::DataPlane;

use super::Daemon;

impl<D: DataPlane> Daemon<D> {
    /// Those of the configuration.
    pub(super) fn listeners(&self) -> Vec<Listener> {
        let Some(lacks) = &self.store.config().http_lacks else {
            return self.effects.listeners.list();
        };
        let why = Some(lacks.why());
        let one = |address: &_| Listener { address: *address, obstacle: why.clone() };
        lacks.listen.iter().map(one).collect()
    }

    /// Looks again for the files that the HTTP listener lacks; each second, as for one whose address can't
    /// be had.
    pub(super) fn look_for_listener_files(&mut self) {
        // A disk that hangs gets no second read.
        if !self.files.is_idle() {
            return;
        }
        let Some(lacks) = self.store.config().http_lacks.clone() else { return };
        self.on_disk(
            move || lacks.try_again(),
            |daemon, http| {
                let Some(http) = http else { return };
                tracing::info!("the files of the HTTP listener can be used");
                daemon.store.set_http(http);
                (daemon.effects.set_http)(daemon.store.config().http.as_ref());
            },
        );
    }
}
