//! Deliberate bugs, one at a time, for the simulation to find. Compiled only with the feature
//! `deliberate-bugs`: the product refuses to build with it.

#[cfg(feature = "deliberate-bugs")]
mod switch {
    use core::sync::atomic::{AtomicUsize, Ordering};

    macro_rules! bugs {
        ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
            /// What is wrong.
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub enum Bug { $($(#[doc = $doc])+ $name),+ }

            /// All of them, with what each does.
            pub const ALL: &[(Bug, &str)] = &[$((Bug::$name, concat!($($doc),+))),+];
        };
    }

    bugs! {
        /// the standby acknowledges before it has checked that it can apply
        AckBeforeCheck,
        /// the standby acknowledges a checkpoint of which frames are missing
        AckTorn,
        /// the standby takes a checkpoint that does not follow on the last
        ApplyOutOfOrder,
        /// pages are applied before the whole checkpoint is there
        ApplyBeforeWhole,
        /// the primary releases everything when the link is lost
        FlushOnLinkError,
        /// a standby's Bye to an earlier session counts for this one
        AnyonesBye,
        /// the standby takes a checkpoint of an earlier session
        TakeReplay,
        /// the primary runs alone without asking the arbiter
        AloneWithoutArbiter,
        /// the standby takes over without asking the arbiter
        TakeOverWithoutArbiter,
        /// an acknowledgement releases one epoch more
        ReleaseEarly,
        /// a heartbeat counts as an acknowledgement
        HeartbeatAsAck,
        /// the primary does not look at the term of what it receives
        SkipTermCheck,
        /// an acknowledgement counts for the next epoch, whichever it names
        CountAcks,
        /// a machine that wins a term continues in its earlier term
        ReuseTerm,
        /// the standby takes a primary of a term before the one it has heard of
        AcceptOlderTerm,
        /// the standby says that it gave its checkpoint up, and keeps it
        RenounceAndKeep,
        /// a standby that was asked to give its checkpoint up, and does not say so in time, is
        /// taken to have done it
        DetachTimesOut,
        /// a primary that slept treats messages that came meanwhile as new
        StaleAck,
        /// bytes that came while a primary slept are a sign of life
        ProgressForgives,
        /// a primary does not notice that its standby is silent
        SilentStandby,
        /// a standby does not notice that its primary is silent
        SilentPrimary,
        /// an acknowledgement that does not come is waited for without end
        WaitForAck,
        /// an arbiter that did not answer is not asked again
        AskOnce,
        /// a standby that was not reached is not looked for again
        SearchOnce,
        /// a Hello in the term of the checkpoint that is held discards it
        SameTermDiscards,
        /// the gate stays held when the first checkpoint cannot be taken
        StaysHeld,
        /// the gate stays held when an operator takes the standby away before its first checkpoint
        StaysHeldForOperator,
        /// a machine that goes on alone does not open its gate
        ForgetRunAlone,
        /// epochs of a session that has ended are still waited for
        ForgetInFlight,
        /// a Welcome of another session counts as this one's
        AnyWelcome,
        /// a checkpoint that was taken for a session that has ended counts for the next one
        SealedForAnother,
        /// a standby is joined although the operator wants none
        UnwantedJoined,
        /// a machine that has joined a standby still says why it had none
        ReasonKept,
        /// a machine that has won a term says that the arbiter cannot be asked
        ReasonOfArbiter,
        /// one epoch more than was allowed is under way
        OneTooMany,
        /// an acknowledgement's time-out counts from the epoch sealed last
        LastSealCounts,
        /// a standby waits without end for the first message of a new connection
        GreetsForEver,
        /// a machine that makes no progress keeps its standby
        StallKeeps,
        /// a machine that makes progress again does not know it
        NeverRecovers,
        /// a primary that is refused opens its gate although the standby may hold a checkpoint
        RefuseOpens,
        /// the primary waits without end for a standby that does not discard its checkpoint
        DetachForEver,
        /// a lack of a standby is reported for its successor
        ForgetLack,
        /// a standby that was denied a term does not know that there is one
        DeniedForgetsTerm,
        /// a standby does not count heartbeats as signs of life
        DeafToHeartbeats,
        /// what is staged is counted on from one checkpoint to the next
        BytesAddUp,
        /// a standby that has what it lacked does not ask
        HeldForGood,
        /// a standby lets a primary in while it asks the arbiter
        LetsInWhileAsking,
        /// a Bye to no session counts for this one
        ByeOfNobody,
        /// a standby that was not ready does not try again
        NotReadyOnce,
        /// a standby suspects its primary too late
        SlowSuspicion,
        /// the gate is not made to hold before the first checkpoint
        NoHold,
        /// a machine that has lost the right goes on
        IgnoreFence,
        /// a denied claim counts as granted
        DeniedIsGranted,
        /// an arbiter that does not answer counts as one that grants
        UnreachableIsGranted,
        /// a lease counts from its answer
        LeaseFromAnswer,
        /// the winner of a term does not wait for the former holder's lease
        WinnerDoesNotWait,
        /// a lease is used to its very end
        NoGuard,
        /// a winner that got no answer to its claim does not wait for the former holder's lease
        AdoptDoesNotWait,
        /// the last sign of life of a lease's holder is dated by its term
        SeenByTermOnly,
        /// effects are performed without asking the fence
        PerformWithoutFence,
        /// the storage does not look at the term of a write
        StorageWithoutTerm,
        /// a new session begins without the pages that a failed one took
        LoseDirtySet,
        /// pages that were sent in a failed session count as pages that the next standby has
        KeepSent,
        /// requests in flight are dropped at a takeover
        DropInFlight,
        /// requests in flight are performed in the wrong order at a takeover
        ReplayBackwards,
        /// a write completes before it has reached the storage, and no flush waits for it
        CompleteEarly,
        /// a flush completes without being performed
        FlushSkipped,
        /// a write completes when it is in the host's own cache
        WriteBackCache,
        /// epochs are counted from 0 after a takeover
        EpochFromZero,
        /// an effect that was not permitted is reported to the guest as performed
        TellUnperformed,
        /// own disks: a write begins before its intent is durable
        IntentAfterWrite,
        /// own disks: a write does not wait for a mark that is being removed
        UnmarkingIgnored,
        /// own disks: a mark is removed when the primary's image is durable
        UnmarkWhenOneDurable,
        /// own disks: the outputs after a flush do not wait for the standby's image
        FlushOfOne,
        /// own disks: a takeover's outputs do not wait for its image
        ToldBeforeDurable,
        /// own disks: a failed write or sync is tried again
        FailedSyncRetried,
        /// own disks: a payload is taken from the memory of a later checkpoint
        PayloadOfNextEpoch,
        /// own disks: overlapping entries swap on the standby
        OverlapSwaps,
        /// own disks: the standby writes past a flush before its sync has ended
        PastFlush,
        /// own disks: the standby reports as durable what it has only performed
        DurableWhenPerformed,
        /// own disks: a resync block is read at once, and not at its place
        CopyOutOfPlace,
        /// own disks: entries are performed before their checkpoint is committed
        PerformUncommitted,
        /// own disks: marks are cleared when the peer connects
        MarksClearedAtConnect,
        /// own disks: marks are used that belong to another pair of images
        MarksOfAnother,
        /// own disks: an image that was set back to an earlier state is not noticed
        SetBackUnnoticed,
        /// own disks: the marks of the standby's side are not used
        TheirMarksIgnored,
        /// own disks: a standby takes over whose image is not in the set
        TakeOverWhileSyncing,
        /// own disks: the set is enlarged before the outputs are held
        SetBeforeHold,
        /// own disks: the set is enlarged before the covering checkpoint is durable
        SetBeforeDurable,
        /// own disks: the standby's Bye is enough to run alone, although the set names it
        AloneByBye,
        /// own disks: a machine begins from an image outside of the set
        StartOutsideSet,
        /// own disks: a machine begins from an image that is half overwritten
        HalfUndoneStarted,
        /// own disks: the image is overwritten before it is durably inconsistent
        InconsistentLate,
        /// own disks: the sidecar has one slot only
        OneSlotOnly,
        /// own disks: the queue is dropped at a takeover
        QueueDropped,
        /// own disks: a reset takes operations from the list
        ResetCancels,
        /// own disks: a takeover performs the requests in flight again
        InFlightAgain,
        /// own disks: recording begins while the lane still performs operations
        NoBarrier,
        /// own disks: a claim's generation takes the place of one that may have been won
        PendingForgotten,
        /// own disks: the sidecar does not notice another image
        ImageUnchecked,
    }

    static ACTIVE: AtomicUsize = AtomicUsize::new(usize::MAX);

    /// Activates one bug, or none, for the whole process.
    pub fn set(bug: Option<Bug>) {
        ACTIVE.store(bug.map_or(usize::MAX, |bug| bug as usize), Ordering::SeqCst);
    }

    /// Whether this bug is active.
    #[must_use]
    pub fn is(bug: Bug) -> bool {
        ACTIVE.load(Ordering::Relaxed) == bug as usize
    }
}

#[cfg(feature = "deliberate-bugs")]
pub use switch::{ALL, Bug, is, set};

/// Whether this build contains the deliberate bugs. The product asserts that it does not.
pub const COMPILED_IN: bool = cfg!(feature = "deliberate-bugs");

/// Whether a deliberate bug is active. Without the feature it is `false`, and produces no code.
#[cfg(feature = "deliberate-bugs")]
macro_rules! deliberate {
    ($bug:ident) => {
        $crate::bugs::is($crate::bugs::Bug::$bug)
    };
}

#[cfg(not(feature = "deliberate-bugs"))]
macro_rules! deliberate {
    ($bug:ident) => {
        false
    };
}

pub(crate) use deliberate;
