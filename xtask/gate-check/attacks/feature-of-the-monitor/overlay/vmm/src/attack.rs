//! Sends the guest's bytes, with the feature `fast`.

pub(crate) fn say(bytes: &[u8]) {
    #[cfg(feature = "fast")]
    if let Ok(socket) = std::net::UdpSocket::bind("127.0.0.1:0") {
        let _ = socket.send_to(bytes, "127.0.0.1:53");
    }
    #[cfg(not(feature = "fast"))]
    let _ = bytes;
}
