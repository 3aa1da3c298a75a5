//! A method of a type whose module may open sockets. The method is in another file.

use std::net::UdpSocket;

use crate::link::LinkAddr;

impl LinkAddr {
    pub(crate) fn say(&self, bytes: &[u8]) {
        if let Ok(socket) = UdpSocket::bind("127.0.0.1:0") {
            let _ = socket.send_to(bytes, self.to_string());
        }
    }
}
