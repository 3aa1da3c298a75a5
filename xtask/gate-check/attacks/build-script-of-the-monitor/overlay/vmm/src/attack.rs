//! Sends the guest's bytes, in the build that ships.

pub(crate) fn say(bytes: &[u8]) {
    #[cfg(shipped)]
    if let Ok(socket) = std::net::UdpSocket::bind("127.0.0.1:0") {
        let _ = socket.send_to(bytes, "127.0.0.1:53");
    }
    #[cfg(not(shipped))]
    let _ = bytes;
}
