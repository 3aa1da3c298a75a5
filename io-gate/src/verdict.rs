//! A device's answer for a descriptor chain. The answer that the chain waits is a proof: the same
//! session at the gate has staged an effect or requested an input (P5).

use core::marker::PhantomData;

/// The brand of one session at the gate. It is invariant, so that the compiler does not accept an
/// item of one session in another (P1). It is bound to one thread, since a session ends on the
/// thread on which it began.
pub(crate) type Brand<'e> = PhantomData<(fn(&'e ()) -> &'e (), LentToOneThread)>;

/// The compiler's error contains this name when a token is sent to another thread.
#[derive(Debug)]
pub(crate) struct LentToOneThread(PhantomData<*const ()>);

/// A device's answer for a chain. `Held` and `Pending` come only from the gate and carry the brand
/// of their session: a device can neither make nor keep one.
#[must_use = "the far side has to know what becomes of the chain"]
#[derive(Debug)]
pub enum Verdict<'e> {
    /// The chain goes back to the driver now, with this many bytes written.
    Done(u32),
    /// An effect is staged. [`Device::complete`](crate::Device::complete) is called when it has
    /// been performed.
    Held(Held<'e>),
    /// An input was requested. [`Device::complete`](crate::Device::complete) is called when its
    /// data has arrived.
    Pending(Pending<'e>),
}

/// Proof that an effect was staged in this session. Staging a token is its only source.
#[derive(Debug)]
#[must_use = "the far side has to know that the chain waits"]
pub struct Held<'e>(pub(crate) Brand<'e>);

/// Proof that an input was requested in this session. Its only sources are
/// [`Gate::block_read`](crate::Gate::block_read) and [`Gate::entropy`](crate::Gate::entropy).
#[derive(Debug)]
#[must_use = "the far side has to know that the chain waits"]
pub struct Pending<'e>(pub(crate) Brand<'e>);
