//! The look-out for keys that come late, as the model has it.

use super::client::{Actor, Asked, LookOut};
use super::state::{Answer, State, key, lease};
use super::{Line, Undone};
use crate::model::Told;
use crate::pb::mvccpb::KeyValue;

impl State {
    /// So many requests may yet put the key, of which an incarnation has an owner, or had; seen at the revision `since`.
    pub(super) fn suspect(&mut self, number: u8, owned: i64, requests: u32, since: i64) {
        match &mut self.clients[usize::from(number)].look_out {
            None => {
                self.clients[usize::from(number)].look_out =
                    Some(LookOut::new(number, owned, requests, since));
            }
            Some(look_out) => {
                let seen = look_out.watch.next - 1;
                look_out.requests = look_out.requests.saturating_add(requests);
                look_out.owned = look_out.owned.max(owned);
                // What was put between may have come by before it was looked for.
                if since < seen {
                    self.ask(Actor { client: number, looks_out: true }, Asked::Read);
                }
            }
        }
    }

    pub(super) fn tell_look_out(&mut self, number: u8) {
        let server = self.server.clone();
        let Some(look_out) = &mut self.clients[usize::from(number)].look_out else { return };
        let group = look_out.group(number);
        match look_out.watch.tell(&server, false, key) {
            Told::Events(events) => {
                let put: Vec<&KeyValue> = events.iter().filter_map(|event| event.kv.as_ref()).collect();
                let revision = put.iter().map(|kv| kv.mod_revision).max().expect("an event");
                let put: Vec<KeyValue> =
                    put.into_iter().map(|kv| KeyValue { lease: lease(number), ..kv.clone() }).collect();
                let strays = group.told(revision, put.iter(), lease(number));
                look_out.found.extend(strays.into_iter().map(|(_, created)| created));
            }
            Told::Compacted => {
                look_out.watch.next = server.revision() + 1;
                self.ask(Actor { client: number, looks_out: true }, Asked::Read);
            }
        }
    }

    /// With the turn, what was found is deleted, if it still is without an owner.
    pub(super) fn sweep(&mut self, model: &Line, number: u8) {
        let Some(look_out) = &mut self.clients[usize::from(number)].look_out else { return };
        let created = look_out.found.remove(0);
        let is_stray = look_out.group(number).is_stray(&look_out.suspect(number), created);
        if is_stray && model.undone != Some(Undone::LateKeyStays) {
            look_out.deleting = Some(created);
            self.ask(Actor { client: number, looks_out: true }, Asked::Delete(created));
        }
    }

    pub(super) fn look_out_answered(&mut self, number: u8, answer: &Answer) {
        let Some(look_out) = &mut self.clients[usize::from(number)].look_out else { return };
        let (group, suspect) = (look_out.group(number), look_out.suspect(number));
        match *answer {
            Answer::Read { created, .. } => {
                let found = created.map(|create_revision| KeyValue {
                    key: key(number),
                    create_revision,
                    lease: lease(number),
                    ..Default::default()
                });
                let strays = group.read(&[suspect], found.iter(), lease(number));
                look_out.found.extend(strays.into_iter().map(|(_, created)| created));
            }
            Answer::Deleted => {
                let created = look_out.deleting.take().expect("a key is deleted");
                group.removed(&suspect, created);
                match group.known(&suspect) {
                    Some((owned, requests)) => (look_out.owned, look_out.requests) = (owned, requests),
                    None => self.clients[usize::from(number)].look_out = None,
                }
            }
            _ => unreachable!("{answer:?} to what looks out"),
        }
    }
}
