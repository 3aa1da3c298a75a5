//! Sends what it is given by a socket of a crate that is here for something else.

pub(crate) fn say(bytes: &[u8]) {
    if let Ok(socket) = tokio::net::UnixDatagram::unbound() {
        let _ = socket.try_send_to(bytes, "/tmp/socket");
    }
}
