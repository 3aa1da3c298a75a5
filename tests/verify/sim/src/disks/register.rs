//! The arbiter, with its set record: answers late, or never, and carries out what was given up.

use ft_core::disks::DiskId;
use ft_core::disks::set::{Claim, Member, SetError, SetRecord, claim, enlarge};

use super::MS;
use crate::random::Random;

#[derive(Clone, Debug)]
pub(super) enum Question {
    Claim(Claim),
    Enlarge { term: u64, holder: String, member: Member },
}

pub(super) type Answer = Result<SetRecord, SetError>;

pub(super) struct Letter {
    pub(super) number: u64,
    pub(super) node: usize,
    pub(super) question: Question,
    pub(super) answer: Option<Answer>,
    due: u64,
}

#[derive(Default)]
pub(super) struct Register {
    pub(super) record: Option<SetRecord>,
    pub(super) down_until: u64,
    letters: Vec<Letter>,
    next: u64,
}

impl Register {
    pub(super) fn ask(&mut self, node: usize, question: Question, due: u64) -> u64 {
        self.next += 1;
        self.letters.push(Letter { number: self.next, node, question, answer: None, due });
        self.next
    }

    /// Whether a question under way would bring an image into the set.
    pub(super) fn may_name(&self, disk: DiskId) -> bool {
        let waiting = self.letters.iter().filter(|letter| letter.answer.is_none());
        waiting.into_iter().any(|letter| match &letter.question {
            Question::Claim(claim) => claim.member.disk == disk,
            Question::Enlarge { member, .. } => member.disk == disk,
        })
    }

    /// The next question that has arrived, with its effect.
    pub(super) fn carry_out(
        &mut self,
        now: u64,
        cut: &[u64],
        random: &mut Random,
    ) -> Option<(Question, Answer)> {
        if self.down_until > now {
            return None;
        }
        let at = self.letters.iter().position(|letter| {
            letter.answer.is_none() && letter.due <= now && cut[letter.node] <= now
        })?;
        let record = self.record.as_ref().expect("a machine has begun");
        let letter = &mut self.letters[at];
        let answer = match &letter.question {
            Question::Claim(of) => claim(record, of),
            Question::Enlarge { term, holder, member } => enlarge(record, (*term, holder), member),
        };
        let question = letter.question.clone();
        let longest = if random.one_in(8) { 200 } else { 6 };
        letter.due = now + random.below(longest * MS);
        letter.answer = Some(answer.clone());
        if random.one_in(10) {
            // The answer is lost.
            self.letters.swap_remove(at);
        }
        Some((question, answer))
    }

    pub(super) fn take_answer(&mut self, number: u64, now: u64) -> Option<Answer> {
        let at = self.letters.iter().position(|letter| {
            letter.number == number && letter.answer.is_some() && letter.due <= now
        })?;
        self.letters.swap_remove(at).answer
    }
}
