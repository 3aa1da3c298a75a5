//! Sends the guest's bytes by a socket of a crate that the monitor uses for another purpose.

pub(crate) fn say(bytes: &[u8]) {
    if let Ok(socket) = tokio::net::UnixDatagram::unbound() {
        let _ = socket.try_send_to(bytes, "/tmp/socket");
    }
}
