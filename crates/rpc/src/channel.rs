//! What a server remembers of its callers: the newest incarnation and epoch of each name, and for each
//! channel the requests that run and the answers given, so that a duplicate is done once and answered alike.

use crate::ServerLimits;
use cobalt_fabric::Conn;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Duplicates that wait for one running request.
const WAITERS_MAX: usize = 4;

/// The ids of one `Peer` object.
#[derive(Default)]
pub(crate) struct Channel {
    running: BTreeMap<u64, Vec<Rc<dyn Conn>>>,
    answers: BTreeMap<u64, Rc<Vec<u8>>>,
    order: VecDeque<u64>,
    bytes: usize,
    /// The largest id whose answer was forgotten.
    floor: u64,
}

/// What an id that arrives is.
pub(crate) enum Seen {
    New,
    /// It runs; the connection gets the answer too.
    Joined,
    Answered(Rc<Vec<u8>>),
    TooOld,
    TooMany,
}

impl Channel {
    /// Looks an id up; a duplicate of a running request joins it.
    pub(crate) fn look(&mut self, id: u64, conn: &Rc<dyn Conn>) -> Seen {
        if let Some(waiters) = self.running.get_mut(&id) {
            if waiters.len() > WAITERS_MAX {
                return Seen::TooMany;
            }
            waiters.push(conn.clone());
            return Seen::Joined;
        }
        if let Some(answer) = self.answers.get(&id) {
            return Seen::Answered(answer.clone());
        }
        if id <= self.floor { Seen::TooOld } else { Seen::New }
    }

    /// A new request runs.
    pub(crate) fn begin(&mut self, id: u64, conn: &Rc<dyn Conn>) {
        self.running.insert(id, vec![conn.clone()]);
    }

    /// A request has its answer: who waits for it.
    pub(crate) fn finish(
        &mut self,
        id: u64,
        answer: &Rc<Vec<u8>>,
        limits: &ServerLimits,
    ) -> Vec<Rc<dyn Conn>> {
        self.bytes += answer.len();
        self.order.push_back(id);
        self.answers.insert(id, answer.clone());
        while self.order.len() > limits.answers_max || self.bytes > limits.answer_bytes_max {
            let Some(oldest) = self.order.pop_front() else { break };
            self.bytes -= self.answers.remove(&oldest).map_or(0, |a| a.len());
            self.floor = self.floor.max(oldest);
        }
        self.running.remove(&id).unwrap_or_default()
    }
}

/// The processes that have spoken to a server.
pub(crate) struct Names {
    limits: ServerLimits,
    names: BTreeMap<String, Name>,
    clock: u64,
}

struct Name {
    incarnation: u64,
    epoch: u64,
    channels: VecDeque<(u64, Rc<RefCell<Channel>>)>,
    connections: usize,
    used: u64,
}

/// Why a connection is not let in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    Stale,
    Full,
}

impl Names {
    pub(crate) fn new(limits: ServerLimits) -> Names {
        Names { limits, names: BTreeMap::new(), clock: 0 }
    }

    /// A connection of `name` begins. A newer incarnation starts with no memory of the older one's requests.
    pub(crate) fn enter(
        &mut self,
        name: &str,
        incarnation: u64,
        channel: u64,
    ) -> Result<Rc<RefCell<Channel>>, NotAdmitted> {
        self.clock += 1;
        if !self.names.contains_key(name) && self.names.len() >= self.limits.names_max {
            let idle = self.names.iter().filter(|(_, n)| n.connections == 0);
            let oldest = idle.min_by_key(|(_, n)| n.used).map(|(name, _)| name.clone());
            self.names.remove(&oldest.ok_or(NotAdmitted::Full)?);
        }
        let fresh = || Name { incarnation, epoch: 0, channels: VecDeque::new(), connections: 0, used: 0 };
        let entry = self.names.entry(name.to_owned()).or_insert_with(fresh);
        if incarnation < entry.incarnation {
            return Err(NotAdmitted::Stale);
        }
        if incarnation > entry.incarnation {
            entry.incarnation = incarnation;
            entry.channels.clear();
        }
        entry.used = self.clock;
        entry.connections += 1;
        if let Some((_, known)) = entry.channels.iter().find(|(number, _)| *number == channel) {
            return Ok(known.clone());
        }
        if entry.channels.len() >= self.limits.channels_per_name_max {
            entry.channels.pop_front();
        }
        let new = Rc::new(RefCell::new(Channel::default()));
        entry.channels.push_back((channel, new.clone()));
        Ok(new)
    }

    pub(crate) fn leave(&mut self, name: &str) {
        if let Some(entry) = self.names.get_mut(name) {
            entry.connections = entry.connections.saturating_sub(1);
        }
    }

    /// The newest incarnation of `name`.
    pub(crate) fn incarnation(&self, name: &str) -> u64 {
        self.names.get(name).map_or(0, |n| n.incarnation)
    }

    /// Notes an epoch; false when a later one was seen before.
    pub(crate) fn epoch(&mut self, name: &str, epoch: u64) -> bool {
        self.names.get_mut(name).is_none_or(|entry| {
            entry.epoch = entry.epoch.max(epoch);
            epoch == entry.epoch
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Names, NotAdmitted};
    use crate::ServerLimits;
    use std::rc::Rc;

    #[test]
    fn an_older_incarnation_or_epoch_is_stale() {
        let mut names = Names::new(ServerLimits::tiny());
        let old = names.enter("a", 5, 1).unwrap();
        assert!(Rc::ptr_eq(&old, &names.enter("a", 5, 1).unwrap()), "a channel outlives its connection");
        assert_eq!(names.enter("a", 4, 1).err(), Some(NotAdmitted::Stale));
        assert!(!Rc::ptr_eq(&old, &names.enter("a", 6, 1).unwrap()));
        assert_eq!(names.enter("a", 5, 1).err(), Some(NotAdmitted::Stale));
        assert!(names.epoch("a", 3) && names.epoch("a", 3) && !names.epoch("a", 2));
    }

    #[test]
    fn names_are_bounded_and_the_idle_ones_go() {
        let mut names = Names::new(ServerLimits::tiny());
        names.enter("a", 1, 1).unwrap();
        names.enter("b", 1, 1).unwrap();
        assert_eq!(names.enter("c", 1, 1).err(), Some(NotAdmitted::Full));
        names.leave("b");
        names.enter("c", 1, 1).unwrap();
        assert_eq!(names.incarnation("b"), 0);
    }
}
