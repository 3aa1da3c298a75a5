//! Checkpoints are received, checked and acknowledged (P4).

use super::*;

#[test]
fn the_way_to_a_checkpoint() {
    let mut pair = Pair::waiting(true);
    assert!(pair.give(Event::Connected { link: LINK }).is_empty());
    assert_eq!(pair.phase(), Phase::Greeting);
    assert_eq!(effects(&pair.say(0, Message::Hello(hello()))), ["describe"]);
    assert_eq!(effects(&pair.give(Event::Described { ours: hello() })), ["send Welcome"]);
    assert_eq!(pair.phase(), Phase::Filling);
    let bulk = pair.pages(Kind::Bulk, 0);
    let out = pair.give(Event::Frame { link: LINK, frame: bulk });
    let [Action::ApplyBulk(pages)] = &out[..] else { panic!("{out:?}") };
    assert_eq!(pages.pages(), 2);
    pair.checkpoint(5);
    assert_eq!((pair.phase(), pair.standby.epoch()), (Phase::Filling, None));
    let out = pair.give(Event::Applicable { epoch: Epoch(5) });
    assert_eq!(effects(&out), ["send Ack", "apply 5"]);
    assert_eq!((pair.phase(), pair.standby.epoch()), (Phase::Ready, Some(Epoch(5))));
    pair.checkpoint(6);
    assert_eq!(pair.standby.epoch(), Some(Epoch(5)), "not before it can be applied");
    let out = pair.give(Event::Applicable { epoch: Epoch(6) });
    let Some(Action::Apply(checkpoint)) = out.last() else { panic!("{out:?}") };
    let mut seen = Vec::new();
    checkpoint
        .for_each_piece(|address, page| {
            seen.push((address, page[0]));
            Ok::<_, ()>(())
        })
        .unwrap();
    assert_eq!(seen, [(4096, 6), (8192, 6)]);
    assert_eq!(checkpoint.state().collect::<Vec<_>>(), [&[6]]);
}

#[test]
fn p4_a_torn_epoch_changes_nothing_acknowledged() {
    let mut pair = Pair::ready(true);
    pair.data(6);
    assert!(pair.standby.staged_bytes() > 8192);
    assert_eq!(effects(&pair.give(lost())), ["close", "ask 2"]);
    let out = pair.give(Event::ArbiterGranted { term: Term(2) });
    assert_eq!(effects(&out), ["take over 2 at 5"]);
}

#[test]
fn p4_a_stream_that_does_not_add_up_is_a_lost_link() {
    let broken = ["send Refuse", "close", "ask 2"];
    type Change = fn(&mut End);
    let changes: [Change; 4] = [
        |end| end.pages += 1,
        |end| end.digest ^= 1,
        |end| end.previous = None,
        |end| end.previous = Some(Epoch(4)),
    ];
    for change in changes {
        let mut pair = Pair::ready(true);
        let mut end = pair.data(6);
        change(&mut end);
        assert_eq!(effects(&pair.say(6, Message::End(end))), broken);
        assert_eq!(pair.standby.epoch(), Some(Epoch(5)));
    }
    // An epoch is skipped or repeated.
    for epoch in [5, 7] {
        let mut pair = Pair::ready(true);
        let state = pair.state(epoch);
        assert_eq!(effects(&pair.give(Event::Frame { link: LINK, frame: state })), broken);
    }
    // A frame twice.
    let mut pair = Pair::ready(true);
    let state = pair.state(6);
    pair.give(Event::Frame { link: LINK, frame: state.clone() });
    pair.give(Event::Frame { link: LINK, frame: state });
    let end = pair.digest.end(Epoch(6), None);
    assert_eq!(effects(&pair.say(6, Message::End(end))), broken);
    // No state.
    let mut pair = Pair::ready(true);
    let pages = pair.pages(Kind::Pages, 6);
    pair.give(Event::Frame { link: LINK, frame: pages });
    let end = pair.digest.end(Epoch(6), None);
    assert_eq!(effects(&pair.say(6, Message::End(end))), broken);
    // Memory sent as for a first checkpoint would damage the held one.
    let mut pair = Pair::ready(true);
    let bulk = pair.pages(Kind::Bulk, 6);
    assert_eq!(effects(&pair.give(Event::Frame { link: LINK, frame: bulk })), broken);
    // Pages that are invalid.
    let mut pair = Pair::ready(true);
    assert_eq!(effects(&pair.say(6, Message::Pages(Data(Vec::from([1; 9]))))), broken);
    // Another term.
    let mut pair = Pair::ready(true);
    let other = frame(6, 2, Message::State(Data(Vec::new())));
    assert_eq!(effects(&pair.give(Event::Frame { link: LINK, frame: other })), broken);
}

#[test]
fn p4_lines_change_what_is_held_and_nothing_before_it() {
    let lines = |kind| {
        let mut bytes = Vec::new();
        let at = Header::reserve(&mut bytes);
        // The second line and the third of the page at 4096.
        [4096 | 3, 0b110_u64].iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        bytes.extend_from_slice(&[7; 128]);
        let header = Header::finish(&mut bytes, at, kind, Epoch(6), Term(1)).unwrap();
        (header, decode(&bytes))
    };
    let mut pair = Pair::filling(true);
    let (_, bulk) = lines(Kind::Bulk);
    let out = pair.give(Event::Frame { link: LINK, frame: bulk });
    assert_eq!(effects(&out), ["send Refuse", "close", "discard"]);
    assert!(pair.standby.reason().unwrap().contains("before a whole copy of memory"));

    let mut pair = Pair::ready(true);
    let (header, pages) = lines(Kind::Pages);
    pair.digest.add(&header, 1);
    assert!(pair.give(Event::Frame { link: LINK, frame: pages }).is_empty());
    let state = pair.state(6);
    pair.give(Event::Frame { link: LINK, frame: state });
    let end = pair.digest.end(Epoch(6), None);
    assert_eq!(effects(&pair.say(6, Message::End(end))), ["check 6"]);
    let out = pair.give(Event::Applicable { epoch: Epoch(6) });
    let Some(Action::Apply(checkpoint)) = out.last() else { panic!("{out:?}") };
    let mut seen = Vec::new();
    checkpoint
        .for_each_piece(|address, piece| {
            seen.push((address, piece.to_vec()));
            Ok::<_, ()>(())
        })
        .unwrap();
    assert_eq!(seen, [(4096 + 64, alloc::vec![7; 128])]);
}

#[test]
fn p4_what_cannot_be_applied_is_not_acknowledged() {
    let mut pair = Pair::ready(true);
    pair.checkpoint(6);
    pair.refused(Event::Applicable { epoch: Epoch(5) });
    let out = pair.give(Event::NotApplicable { epoch: Epoch(6), reason: "unknown field".into() });
    assert_eq!(effects(&out), ["send Refuse", "close", "ask 2"]);
    assert_eq!(pair.standby.epoch(), Some(Epoch(5)));
}

#[test]
fn a_check_is_answered_before_more_data() {
    let mut pair = Pair::ready(true);
    pair.checkpoint(6);
    let state = pair.state(7);
    pair.refused(Event::Frame { link: LINK, frame: state.clone() });
    let beat = Heartbeat { sequence: 1, sent: 0 };
    assert_eq!(effects(&pair.say(0, Message::Heartbeat(beat))), ["send HeartbeatReply"]);
    pair.give(Event::Applicable { epoch: Epoch(6) });
    assert!(pair.give(Event::Frame { link: LINK, frame: state }).is_empty());
}

#[test]
fn what_is_staged_is_bounded() {
    let mut pair = Pair::waiting(true);
    pair.standby.options.staging_slack = 32 << 10;
    let mut pair = pair.welcomes().holds();
    let part = Data(alloc::vec![0; 40 << 10]);
    let limit = hello().layout.memory_size() + (32 << 10) + 4096;
    let mut out = Vec::new();
    for _ in 0..3 {
        out = pair.say(6, Message::State(part.clone()));
        assert!(pair.standby.staged_bytes() <= limit);
    }
    assert_eq!(effects(&out), ["send Refuse", "close", "ask 2"]);
    assert!(pair.standby.reason().unwrap().contains("expected a checkpoint of at most"));
}

/// P1: on a link without authentication a whole session can be replayed to a waiting standby. It
/// contains exactly what a primary of this machine sent, and must not become a checkpoint to take
/// over from.
#[test]
fn p1_a_session_played_again_leads_to_no_checkpoint() {
    let mut pair = Pair::filling(true);
    pair.digest = EpochDigest::new(STANDBY_SESSION + 1);
    let end = pair.data(5);
    assert_eq!(effects(&pair.say(5, Message::End(end))), ["send Refuse", "close", "discard"]);
    assert!(
        pair.standby.reason().unwrap().contains("End: expected session 0x58, found session 0x59")
    );
    assert_eq!((pair.phase(), pair.standby.epoch()), (Phase::Waiting, None));
}

/// P4: while a checkpoint is being checked, no data of any kind is staged after it.
#[test]
fn p4_no_data_is_given_while_a_check_is_under_way() {
    let data = || Data(Vec::from([1]));
    let end = End { session: STANDBY_SESSION, pages: 0, digest: 0, previous: None, hashes: None };
    for message in [
        Message::Image(data()),
        Message::Bulk(data()),
        Message::Pages(data()),
        Message::State(data()),
        Message::End(end),
    ] {
        let mut pair = Pair::filling(true);
        pair.checkpoint(5);
        pair.refused(Event::Frame { link: LINK, frame: frame(6, 1, message) });
    }
}

/// P4: memory for a first checkpoint is not mixed with another checkpoint, nor are two checkpoints
/// mixed.
#[test]
fn p4_a_first_checkpoint_is_of_one_epoch() {
    let mut pair = Pair::filling(true);
    let (state, bulk) = (pair.state(5), pair.pages(Kind::Bulk, 5));
    assert!(pair.give(Event::Frame { link: LINK, frame: state }).is_empty());
    let out = pair.give(Event::Frame { link: LINK, frame: bulk });
    assert_eq!(effects(&out), ["send Refuse", "close", "discard"]);
    let mut pair = Pair::filling(true);
    let (state, other) = (pair.state(5), pair.state(6));
    pair.give(Event::Frame { link: LINK, frame: state });
    let out = pair.give(Event::Frame { link: LINK, frame: other });
    assert_eq!(effects(&out), ["send Refuse", "close", "discard"]);
}

/// P9: the bound is the size of guest memory, eight bytes per page, and the slack, to the byte.
#[test]
fn p9_what_is_staged_may_be_as_much_as_its_bound() {
    for (beyond, taken) in [(0, true), (1, false)] {
        let mut pair = Pair::waiting(true);
        pair.standby.options.staging_slack = 32 << 10;
        let mut pair = pair.welcomes();
        let limit = (64 << 10) + (64 << 10) / 512 + (32 << 10);
        let out = pair.say(5, Message::State(Data(alloc::vec![0; limit - 64 + beyond])));
        assert_eq!(out.is_empty(), taken, "{out:?}");
    }
}
