//! The last request of each client and its reply, so that a repeated request changes nothing.

use crate::packet::Peer;
use kemari_workload::{MAX_CLIENTS, REPLY_LEN};

#[derive(Clone, Copy)]
struct Client {
    id: u32,
    used: bool,
    seq: u64,
    answered: bool,
    reply: [u8; REPLY_LEN],
    peer: Peer,
}

/// Classification of a request, by its client and number.
pub enum Seen<'a> {
    /// New: to be done, for the client at this index.
    New(usize),
    /// A repetition of an answered request, with its reply.
    Answered(&'a [u8; REPLY_LEN]),
    /// A repetition of a request that is still being done.
    UnderWay,
    /// Older than the client's last request.
    Stale,
    /// There is no room for another client.
    NoRoom,
}

/// All clients; an entry of zeros is unused.
pub struct Clients {
    clients: [Client; MAX_CLIENTS],
}

impl Clients {
    /// Looks the request up. Its reply goes to the address that it came from last.
    pub fn look_up(&mut self, id: u32, seq: u64, peer: &Peer) -> Seen<'_> {
        let place = (0..MAX_CLIENTS)
            .map(|step| (id as usize).wrapping_add(step) % MAX_CLIENTS)
            .find(|&place| !self.clients[place].used || self.clients[place].id == id);
        let Some(place) = place else {
            return Seen::NoRoom;
        };
        let client = &mut self.clients[place];
        if !client.used || seq > client.seq {
            return Seen::New(place);
        }
        if seq < client.seq {
            return Seen::Stale;
        }
        client.peer = *peer;
        if client.answered { Seen::Answered(&client.reply) } else { Seen::UnderWay }
    }

    /// Records that the request `seq` of the client `id` at `place` is being done.
    pub fn begin(&mut self, place: usize, id: u32, seq: u64, peer: &Peer) {
        let client = &mut self.clients[place];
        (client.id, client.used, client.seq) = (id, true, seq);
        (client.answered, client.peer) = (false, *peer);
    }

    /// Records the reply to the request `seq` of the client at `place`; returns its address, unless the client
    /// has sent a newer request.
    pub fn finish(&mut self, place: usize, seq: u64, reply: &[u8; REPLY_LEN]) -> Option<Peer> {
        let client = &mut self.clients[place];
        if client.seq != seq {
            return None;
        }
        client.answered = true;
        client.reply = *reply;
        Some(client.peer)
    }
}
