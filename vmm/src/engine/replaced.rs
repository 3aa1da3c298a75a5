//! A machine that has been replaced finds out by itself.
//!
//! The fence is asked before each effect, so a guest that lets nothing out would run on beside its successor for as long as
//! it is idle: its vCPUs, its reads of a disk that another machine writes, a status that says it runs. So the fence is also
//! asked from time to time (P2). In a thread of its own: a directory or a server on a network may take its time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ft_core::primary::Event;
use io_gate_host::{Fence, Permission};

use super::Engine;
use crate::seccomp::{self, Role};

/// A machine that has been replaced performs nothing from that moment on, and ends within twice this time, plus what the
/// arbiter takes to answer.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Engine {
    /// Starts the thread, where there is an arbiter to ask.
    pub(super) fn watch_right(self: &Arc<Self>) -> io::Result<()> {
        let Some(arbiter) = &self.arbiter else { return Ok(()) };
        let (engine, fence) = (self.clone(), arbiter.fence());
        std::thread::Builder::new().name("right".to_owned()).spawn(move || {
            // It asks as the lanes do.
            seccomp::enter(Role::Lane, &[]);
            engine.look_for_successor(&*fence);
        })?;
        Ok(())
    }

    fn look_for_successor(self: &Arc<Self>, fence: &dyn Fence) {
        loop {
            std::thread::sleep(LOOK_EVERY);
            if self.machine.events().ended().is_some() {
                return;
            }
            // Where nobody can tell, nothing changes: effects wait by themselves.
            if fence.ask() == Permission::Lost {
                let reason = fence.reason();
                return self.event(Event::Fenced { reason });
            }
        }
    }
}
