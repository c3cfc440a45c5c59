//! What the server makes of each request, and the run of the answer.

use super::{
    Answer, Asked, MARKER, MOST_ATTEMPTS, NONE, Phase, Request, Runs, State, Undone, VALUE, modified,
};
use crate::model::Change;
use crate::stm::known::Found;

impl State {
    pub(super) fn ask(&mut self, asked: Asked) {
        self.requests.push(Request { asked, awaited: true });
        self.requests.sort_unstable();
    }

    /// The request that is awaited, if one is, is so no longer.
    pub(super) fn give_up(&mut self) -> Option<Asked> {
        self.answer = None;
        let awaited = self.requests.iter_mut().find(|request| request.awaited);
        let asked = awaited.map(|request| {
            request.awaited = false;
            request.asked
        });
        self.requests.sort_unstable();
        asked
    }

    pub(super) fn apply(&mut self, model: &Runs, request: Request) {
        let put = |run: u8, attempt: u8| Change::Put { value: run << 4 | attempt, lease: None };
        let is_compared = model.undone != Some(Undone::MarkerNotCompared);
        let committed = match request.asked {
            Asked::Attempt { run, attempt, marker, value } => {
                let as_expected = modified(&self.server, VALUE) == value
                    && (modified(&self.server, MARKER) == marker || !is_compared);
                if as_expected {
                    let value = Change::Put { value: run, lease: None };
                    self.server.write([(MARKER, put(run, attempt)), (VALUE, value)]);
                    self.applied[usize::from(run)] += 1;
                }
                as_expected
            }
            Asked::Settle { run, marker } => {
                let as_expected = modified(&self.server, MARKER) == marker;
                if as_expected {
                    self.server.write([(MARKER, put(run, NONE))]);
                }
                as_expected
            }
            Asked::Read => false,
            Asked::DeleteMarker => {
                self.server.write([(MARKER, Change::Delete)]);
                true
            }
        };
        if request.awaited {
            self.answer = Some(match committed {
                true => Answer::Committed { revision: self.server.revision() },
                false => Answer::Refused(self.server.get(MARKER).map(|kv| (kv.value, kv.modified))),
            });
        }
    }

    /// Reads the value, and sends an attempt to write it.
    pub(super) fn attempt(&mut self, run: u8, attempt: u8) {
        let value = modified(&self.server, VALUE);
        self.send(run, attempt, value);
    }

    pub(super) fn send(&mut self, run: u8, attempt: u8, value: i64) {
        let before = self.known.sends();
        self.ask(Asked::Attempt { run, attempt, marker: self.known.revision(), value });
        self.phase = Phase::Sent { run, attempt, value, ambiguous: false, before };
    }

    pub(super) fn settle(&mut self, model: &Runs, run: u8, attempt: u8) {
        let before = self.known.sends();
        match model.undone {
            Some(Undone::FateIsRead) => self.ask(Asked::Read),
            _ => self.ask(Asked::Settle { run, marker: self.known.revision() }),
        }
        self.phase = Phase::Settling { run, attempt, ambiguous: false, before };
    }

    /// The caller is told, and the next run may begin.
    pub(super) fn end(&mut self, run: u8, told: Option<bool>) {
        self.told[usize::from(run)] = told;
        self.phase = Phase::Idle(run + 1);
    }

    pub(super) fn answered(&mut self, model: &Runs, answer: Answer) {
        let (run, attempt, ambiguous, before) = match self.phase {
            Phase::Sent { run, attempt, ambiguous, before, .. }
            | Phase::Settling { run, attempt, ambiguous, before } => (run, attempt, ambiguous, before),
            phase => unreachable!("nothing is asked in {phase:?}"),
        };
        self.known.answered(before, !ambiguous);
        let settles = matches!(self.phase, Phase::Settling { .. });
        let found = match answer {
            Answer::Committed { revision } => {
                self.known.committed(revision);
                // Settling has put the marker itself: no attempt was applied, or will be.
                return self.end(run, Some(!settles));
            }
            Answer::Refused(found) => found,
        };
        let kv = found.map(|(value, revision)| {
            let value = match (value >> 4, value & 0xf) {
                (run, NONE) => format!("{run}/-"),
                (run, attempt) => format!("{run}/{attempt}"),
            };
            crate::pb::mvccpb::KeyValue { value: value.into(), mod_revision: revision, ..Default::default() }
        });
        match (self.known.look(kv.as_slice(), &format!("{run}/")), settles) {
            (Found::Committed { .. }, _) => self.end(run, Some(true)),
            (Found::Other, true) => self.end(run, Some(false)),
            (Found::Unchanged, true) if model.undone == Some(Undone::FateIsRead) => {
                self.end(run, Some(false))
            }
            // No third party touches the marker here.
            (Found::Gone | Found::Unchanged, true) => unreachable!("a marker that was settled is there"),
            // Another wrote the value: the closure runs again, once in this model, and then the run fails.
            (Found::Unchanged, false) if attempt < MOST_ATTEMPTS => self.attempt(run, attempt + 1),
            (Found::Unchanged, false) if self.known.is_in_doubt() => self.settle(model, run, attempt),
            (Found::Unchanged, false) => self.end(run, Some(false)),
            (Found::Other | Found::Gone, false) => {
                let Phase::Sent { value, .. } = self.phase else { unreachable!("it was sent") };
                self.send(run, attempt, value);
            }
        }
    }

    pub(super) fn lose(&mut self) {
        let asked = self.give_up();
        let (Phase::Sent { ambiguous, .. } | Phase::Settling { ambiguous, .. }) = &mut self.phase else {
            unreachable!("nothing is asked in {:?}", self.phase)
        };
        *ambiguous = true;
        // The same transaction again: what is expected of the marker has not changed.
        let marker = self.known.revision();
        let again = asked.unwrap_or(match self.phase {
            Phase::Sent { run, attempt, value, .. } => Asked::Attempt { run, attempt, marker, value },
            Phase::Settling { run, .. } => Asked::Settle { run, marker },
            Phase::Idle(_) | Phase::Closed => unreachable!("nothing is asked"),
        });
        self.ask(again);
    }
}
