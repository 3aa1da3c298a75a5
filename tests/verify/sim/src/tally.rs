//! Counts events: an event that never happened was not tested.

macro_rules! tally {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// The number of times that each event happened.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Tally { $($(#[$doc])* pub $name: u64),+ }

        impl Tally {
            /// Adds the counts of another world.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)+
            }

            /// The names of the events that never happened.
            #[must_use]
            pub fn missing(&self) -> Vec<&'static str> {
                [$((stringify!($name), self.$name)),+]
                    .into_iter().filter(|(_, count)| *count == 0).map(|(name, _)| name).collect()
            }
        }
    };
}

tally! {
    /// Packets and console bytes that the outside saw.
    packets,
    /// Writes that reached the storage.
    writes,
    /// Flushes that reached it.
    flushes,
    /// Sectors that a guest read and found right.
    reads,
    /// Effects performed again after a takeover.
    replays,
    /// Requests that failed because the storage was full.
    disk_full,
    /// Stale writes that the storage refused.
    storage_refused,
    /// Proofs spent on acknowledged epochs.
    released,
    /// Checkpoints applied.
    applied,
    /// Sessions that reached their first acknowledgement.
    protected,
    /// The same, after a takeover or a loss.
    reprotected,
    /// Takeovers.
    takeovers,
    /// Takeovers in term 4 or later.
    late_terms,
    /// Times that a machine won the right to run alone.
    ran_alone,
    /// Machines that found that they had lost the right.
    fenced,
    /// Effects that waited because the right could not be checked.
    fence_unknown,
    /// Earlier sessions that a stranger repeated to a standby.
    impostors,
    /// Epochs that ended without a checkpoint, because it could not be taken.
    unsealed,
    /// Checkpoints that were taken for a session that had ended before the core knew of them.
    void_seals,
    /// Times that a standby could not have a machine.
    refused,
    /// Standbys that lived, did not acknowledge, and were given up.
    given_up,
    /// Primaries that gave their standby the guest, because they made no progress.
    stalls,
    /// Checkpoints given up.
    discarded,
    /// Standbys that said themselves that they gave their checkpoint up.
    renounced,
    /// Streams with data that is no frame.
    garbled,
    /// Frames from a connection that was closed.
    stale_frames,
    /// Checkpoints that could not be applied.
    not_applicable,
    /// Standbys that were about to ask for a term but could not have gone on.
    not_ready,
    /// Hashes compared.
    verified,
    /// Waits for the operator.
    operator_waits,
    /// Claims without an answer.
    unreachable,
    /// Claims carried out after their client had given up.
    late_claims,
    /// Processes that died.
    crashes,
    /// Worlds in which all power was lost.
    blackouts,
    /// Worlds that had to recover, and did.
    recovered,
    /// Own disks: machines that began from an image after all had ended.
    cold_starts,
    /// Starts refused because the set does not name the image, or the image cannot be used.
    refused_starts,
    /// Images that were refused by a process or a primary.
    refused_images,
    /// Images that the operator made anew.
    replaced_images,
    /// Hosts that lost power.
    power_losses,
    /// Power losses at the end of a write.
    boundaries,
    /// Images that failed.
    failed_disks,
    /// Images that were replaced by another file.
    swapped,
    /// Storages that were set back to an earlier state.
    set_back,
    /// Times that the set was enlarged.
    enlarged,
    /// Claims of a standby that the set does not name.
    not_in_set,
    /// Times that the images of a protected machine at rest were compared.
    compared,
    /// Resyncs of all, and of what was marked.
    full_syncs,
    /// Resyncs of what was marked.
    marked_syncs,
    /// Differences that a comparison has found.
    differences,
    /// Blocks copied.
    copied,
    /// Takeovers with entries that were not performed yet.
    drained,
    /// Operations that waited because the standby had too much to do.
    slowed,
    /// Resets of the guest with requests in flight.
    resets,
    /// Starts from an outdated image, because the images of the set were lost or had failed.
    forced,
}
