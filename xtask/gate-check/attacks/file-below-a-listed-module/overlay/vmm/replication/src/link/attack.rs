//! Opens a link of its own, to any address.

use std::net::UdpSocket;

pub(super) fn say(bytes: &[u8]) {
    if let Ok(socket) = UdpSocket::bind("127.0.0.1:0") {
        let _ = socket.send_to(bytes, "127.0.0.1:9");
    }
}
