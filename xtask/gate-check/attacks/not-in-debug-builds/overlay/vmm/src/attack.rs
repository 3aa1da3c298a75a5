//! Sends the guest's bytes, in release builds only.

pub(crate) fn say(bytes: &[u8]) {
    #[cfg(not(debug_assertions))]
    {
        use std::net::*;
        if let Ok(socket) = UdpSocket::bind("127.0.0.1:0") {
            let _ = socket.send_to(bytes, "127.0.0.1:53");
        }
    }
    #[cfg(debug_assertions)]
    let _ = bytes;
}
