//! The last request of each client and its reply. With them the guest recognises a repeated
//! request, which must change nothing.

use crate::memory::Zeroed;
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

/// The kind of a request, by its client and sequence number.
pub enum Seen<'a> {
    /// A new request of the client at this index.
    New(usize),
    /// A repetition of an answered request; the reply.
    Answered(&'a [u8; REPLY_LEN]),
    /// A repetition of a request whose operation is not complete.
    UnderWay,
    /// A request older than the client's last one.
    Stale,
    /// A request of a further client, for which there is no room.
    NoRoom,
}

/// All clients. An entry of zeros is unused.
pub struct Clients {
    clients: [Client; MAX_CLIENTS],
}

// SAFETY: integers and booleans; an unused entry is all zeros.
unsafe impl Zeroed for Clients {}

impl Clients {
    /// Classifies a request. A reply to a repeated request goes to the address of the repetition.
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

    /// Records that the operation of request `seq` of client `id` at index `place` begins.
    pub fn begin(&mut self, place: usize, id: u32, seq: u64, peer: &Peer) {
        let client = &mut self.clients[place];
        (client.id, client.used, client.seq) = (id, true, seq);
        (client.answered, client.peer) = (false, *peer);
    }

    /// Records the reply to request `seq` of the client at index `place`. Returns the client's
    /// address, unless the client has sent a newer request.
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
