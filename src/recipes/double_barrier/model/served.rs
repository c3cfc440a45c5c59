//! What the server makes of each request, and what its caller does with the answer.

use super::{Asked, Callers, Phase, Request, State, Undone, Way};
use crate::model::{Change, Watching};

impl State {
    pub(super) fn ask(&mut self, from: u8, asked: Asked, awaited: bool) {
        self.requests.push(Request { from, asked, awaited });
        self.requests.sort_unstable();
    }

    fn opens(&mut self, model: &Callers, named: u8) {
        self.server.write([(model.ready(), Change::Put { value: named, lease: None })]);
        let all_there = named & model.there(&self.server) == named;
        self.is_broken |= !all_there || named.count_ones() != model.count;
    }

    /// One who has announced itself, or was refused, goes on by what is there.
    fn goes_on(&mut self, model: &Callers, caller: u8) {
        let (there, revision) = (model.there(&self.server), self.server.revision());
        let way = match self.server.get(model.ready()) {
            Some(ready) => {
                self.callers[usize::from(caller)] = Phase::Behind(ready.modified);
                return;
            }
            None if there.count_ones() >= model.count => return self.gives_up(caller),
            None if there.count_ones() + 1 == model.count => Way::With(there, revision),
            None => Way::Beside,
        };
        self.callers[usize::from(caller)] = Phase::Moving;
        self.ask(caller, Asked::MoveIn(way), true);
    }

    pub(super) fn gives_up(&mut self, caller: u8) {
        for request in self.requests.iter_mut().filter(|request| request.from == caller) {
            request.awaited = false;
        }
        self.callers[usize::from(caller)] = Phase::Gone;
        self.ask(caller, Asked::GiveUp, false);
    }

    pub(super) fn apply(&mut self, model: &Callers, request: Request) {
        let Request { from, asked, awaited } = request;
        let put = |value| Change::Put { value, lease: Some(from) };
        let counted = model.counted(from);
        match asked {
            Asked::Announce => {
                self.server.write([(from, put(0))]);
                if awaited {
                    self.goes_on(model, from);
                }
            }
            Asked::MoveIn(way) => {
                let server = &self.server;
                let ready = server.get(model.ready());
                let as_expected = match way {
                    Way::Beside => ready.is_none(),
                    Way::After(modified) => ready.is_some_and(|ready| ready.modified == modified),
                    Way::With(others, at) => {
                        let youngest = (0..model.callers).filter_map(|one| server.get(model.counted(one)));
                        let none_since = youngest.map(|kv| kv.created).max().is_none_or(|last| last <= at);
                        let all_there = others & model.there(server) == others;
                        ready.is_none()
                            && (none_since || model.undone == Some(Undone::OneWhoMovesInIsNotSeen))
                            && (all_there || model.undone == Some(Undone::OpenedWithoutThoseCounted))
                    }
                };
                let moves = as_expected && server.get(from).is_some();
                if moves {
                    self.is_after |= matches!(way, Way::After(_));
                    let mut changes = vec![(counted, put(0)), (from, Change::Delete)];
                    if matches!(way, Way::After(_)) {
                        changes.push((model.ready(), Change::Delete));
                    }
                    self.server.write(changes);
                }
                let there = model.there(&self.server);
                if let (true, Way::With(others, _)) = (moves, way) {
                    // In the same transaction. What had moved in beside those that are compared makes it one too many.
                    let named = others | 1 << from;
                    self.is_broken |= there.count_ones() > model.count;
                    self.opens(model, named);
                }
                if awaited {
                    self.moved(model, from, moves, way);
                }
            }
            Asked::Open(named) => {
                let all_there = named & model.there(&self.server) == named;
                let is_compared = model.undone != Some(Undone::OpenedWithoutThoseCounted);
                let own = self.server.get(counted).is_some();
                let as_expected =
                    own && self.server.get(model.ready()).is_none() && (all_there || !is_compared);
                if as_expected {
                    self.opens(model, named);
                }
                if awaited {
                    self.opened(model, from, as_expected);
                }
            }
            Asked::GiveUp => {
                let others = model.there(&self.server) & !(1 << from);
                let mut gone = vec![(from, Change::Delete), (counted, Change::Delete)];
                if others == 0 {
                    gone.push((model.ready(), Change::Delete));
                }
                self.server.write(gone);
            }
        }
    }

    /// The answer to one who was to move in.
    fn moved(&mut self, model: &Callers, caller: u8, moves: bool, way: Way) {
        if !moves {
            return match self.server.get(caller) {
                Some(_) => self.goes_on(model, caller),
                // A third party has deleted what announced it.
                None => self.gives_up(caller),
            };
        }
        let token = self.server.revision();
        if matches!(way, Way::With(..)) {
            self.callers[usize::from(caller)] = Phase::Inside { round: token };
            return;
        }
        let there = model.there(&self.server);
        let watch = Watching { keys: 1 << model.ready(), next: token + 1, puts: true, deletes: false };
        let is_last = there.count_ones() >= model.count || model.undone == Some(Undone::EntersAlone);
        if there.count_ones() > model.count {
            self.gives_up(caller);
        } else if is_last {
            self.callers[usize::from(caller)] = Phase::Opening { token, watch };
            self.ask(caller, Asked::Open(there), true);
        } else {
            self.callers[usize::from(caller)] = Phase::Waiting { token, watch };
        }
    }

    /// The answer to one who was to let all in.
    fn opened(&mut self, model: &Callers, caller: u8, opens: bool) {
        let Phase::Opening { token, watch } = self.callers[usize::from(caller)].clone() else { return };
        let (there, own) = (model.there(&self.server), self.server.get(model.counted(caller)).is_some());
        self.callers[usize::from(caller)] = match self.server.get(model.ready()) {
            _ if !own => return self.gives_up(caller),
            Some(ready) if opens || ready.value & 1 << caller != 0 => Phase::Inside { round: ready.modified },
            Some(_) => return self.gives_up(caller),
            None if there.count_ones() < model.count => Phase::Waiting { token, watch },
            None => {
                // The oldest that make up a round.
                let mut oldest: Vec<u8> = (0..model.callers).filter(|one| there & 1 << one != 0).collect();
                oldest.sort_by_key(|one| self.server.get(model.counted(*one)).map(|kv| kv.created));
                oldest.truncate(model.count as usize);
                let named = oldest.iter().fold(0, |named, one| named | 1 << one);
                if named & 1 << caller == 0 {
                    Phase::Waiting { token, watch }
                } else {
                    self.ask(caller, Asked::Open(named), true);
                    Phase::Opening { token, watch }
                }
            }
        };
    }
}
