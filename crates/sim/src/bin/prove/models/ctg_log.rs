//! What catalogue transactions decided, held against a map: every decision saw exactly what all before it had
//! done, pending or applied; what was answered is durable; gets and scans saw a state that was.

use cobalt_base::Lsn;
use cobalt_store::{CtgOp, CtgView, Miss};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

pub type Key = (u32, Vec<u8>);
type Map = BTreeMap<Key, Vec<u8>>;

/// What a decision looked at and what it found there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    Get(Key, Option<Vec<u8>>),
    Next(Key, Option<Key>),
}

#[derive(Clone, Debug)]
struct Decision {
    lsn: u64,
    seen: Vec<Look>,
    ops: Vec<CtgOp>,
    answered: bool,
}

/// A get, between two applied lsns.
struct Got {
    key: Key,
    value: Option<Vec<u8>>,
    between: (u64, u64),
}

/// A scan of one catalogue, between two applied lsns. It was not cut short.
struct Scanned {
    from: Key,
    until: Key,
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    between: (u64, u64),
}

#[derive(Default)]
struct Inner {
    base: Map,
    /// By transaction: what it decided last.
    decisions: BTreeMap<u64, Decision>,
    /// By lsn: who decided last there.
    at: BTreeMap<u64, u64>,
    gets: Vec<Got>,
    scans: Vec<Scanned>,
    next: u64,
}

/// The log, shared by the tasks of a case.
#[derive(Clone, Default)]
pub struct CtgLog(Rc<RefCell<Inner>>);

/// What a decision sees, and what it notes of it.
pub struct View<'a> {
    view: &'a CtgView,
    seen: Vec<Look>,
}

impl View<'_> {
    pub fn get(&mut self, key: &Key) -> Result<Option<Vec<u8>>, Miss> {
        let value = self.view.get(key.0, &key.1)?;
        self.seen.push(Look::Get(key.clone(), value.clone()));
        Ok(value)
    }

    pub fn next(&mut self, from: &Key) -> Result<Option<Key>, Miss> {
        let found = self.view.next(from.0, &from.1)?.map(|(key, _)| (from.0, key));
        self.seen.push(Look::Next(from.clone(), found.clone()));
        Ok(found)
    }
}

impl CtgLog {
    /// A number for a transaction, and the closure that decides it and notes what it saw.
    pub fn deciding(
        &self,
        decide: impl Fn(&mut View) -> Result<Vec<CtgOp>, Miss> + 'static,
    ) -> (u64, impl Fn(&CtgView) -> Result<(Vec<CtgOp>, u64), Miss> + 'static) {
        let log = self.clone();
        let number = log.0.borrow().next;
        log.0.borrow_mut().next += 1;
        let closure = move |view: &CtgView| {
            let mut noting = View { view, seen: Vec::new() };
            let ops = decide(&mut noting)?;
            let lsn = view.lsn().0;
            let decision = Decision { lsn, seen: noting.seen, ops: ops.clone(), answered: false };
            let inner = &mut *log.0.borrow_mut();
            inner.decisions.insert(number, decision);
            if !ops.is_empty() {
                inner.at.insert(lsn, number);
            }
            Ok((ops, number))
        };
        (number, closure)
    }

    /// It was answered.
    pub fn answered(&self, number: u64, answer: u64, lsn: Lsn) {
        let inner = &mut *self.0.borrow_mut();
        let decision = inner.decisions.get_mut(&number).expect("it was decided before it was answered");
        decision.answered = true;
        let own = if decision.ops.is_empty() { decision.lsn - 1 } else { decision.lsn };
        assert_eq!((answer, lsn.0), (number, own), "an answer is that of the last decision");
    }

    /// It was refused, and is nowhere.
    pub fn refused(&self, number: u64) {
        let inner = &mut *self.0.borrow_mut();
        if let Some(decision) = inner.decisions.remove(&number)
            && inner.at.get(&decision.lsn) == Some(&number)
        {
            inner.at.remove(&decision.lsn);
        }
    }

    pub fn got(&self, key: Key, value: Option<Vec<u8>>, between: (Lsn, Lsn)) {
        self.0.borrow_mut().gets.push(Got { key, value, between: (between.0.0, between.1.0) });
    }

    pub fn scanned(&self, from: Key, until: Key, entries: Vec<(Vec<u8>, Vec<u8>)>, between: (Lsn, Lsn)) {
        let between = (between.0.0, between.1.0);
        self.0.borrow_mut().scans.push(Scanned { from, until, entries, between });
    }

    /// Everything up to `durable` and nothing after it happened, and `found` is what there is now. Begins anew from there.
    pub fn settle(&self, durable: u64, found: Map) {
        let inner = &mut *self.0.borrow_mut();
        for (number, decision) in &inner.decisions {
            let own = if decision.ops.is_empty() { decision.lsn - 1 } else { decision.lsn };
            assert!(
                !decision.answered || own <= durable,
                "transaction {number} was answered with lsn {own}, and only {durable} survived"
            );
        }
        // Who decided last at an lsn has it, if it decided there last; else a transaction of another kind has.
        let mut history: BTreeMap<u64, u64> = BTreeMap::new();
        let mut doubtful = Vec::new();
        for (lsn, number) in inner.at.range(..=durable) {
            match inner.decisions.get(number) {
                Some(decision) if decision.lsn == *lsn => {
                    history.insert(*lsn, *number);
                    if !decision.answered {
                        doubtful.push(*lsn);
                    }
                }
                _ => {}
            }
        }
        // One that waited for node blocks when all ended gave its lsn to another kind of transaction.
        doubtful.truncate(8);
        let mut why = String::new();
        for mask in 0..1u32 << doubtful.len() {
            let left_out: BTreeSet<u64> =
                doubtful.iter().enumerate().filter(|(i, _)| mask & (1 << i) != 0).map(|(_, l)| *l).collect();
            match inner.explain(&history, &left_out, &found) {
                Ok(()) => {
                    inner.base = found;
                    inner.decisions.clear();
                    inner.at.clear();
                    inner.gets.clear();
                    inner.scans.clear();
                    return;
                }
                Err(error) if why.is_empty() => why = error,
                Err(_) => {}
            }
        }
        panic!("{why}");
    }
}

fn apply(map: &mut Map, ops: &[CtgOp]) {
    for op in ops {
        match op {
            CtgOp::Put { ctg, key, value } => drop(map.insert((*ctg, key.clone()), value.clone())),
            CtgOp::Delete { ctg, key } => drop(map.remove(&(*ctg, key.clone()))),
        }
    }
}

fn check_looks(map: &Map, decision: &Decision) -> Result<(), String> {
    for look in &decision.seen {
        let now = match look {
            Look::Get(key, _) => Look::Get(key.clone(), map.get(key).cloned()),
            Look::Next(from, _) => {
                let next = map.range(from.clone()..).next().map(|(key, _)| key.clone());
                Look::Next(from.clone(), next.filter(|key| key.0 == from.0))
            }
        };
        if now != *look {
            return Err(format!(
                "the decision at lsn {} saw {}, before it was {}",
                decision.lsn,
                short(look),
                short(&now)
            ));
        }
    }
    Ok(())
}

fn short(look: &Look) -> String {
    let of = |v: &Option<Vec<u8>>| {
        v.as_ref().map_or("nothing".to_owned(), |v| {
            format!("{} bytes {:02x?}", v.len(), v.get(..v.len().min(6)).unwrap_or_default())
        })
    };
    match look {
        Look::Get(key, value) => format!("{} at {}/{:02x?}", of(value), key.0, key.1.get(..2)),
        Look::Next(from, found) => format!(
            "{:?} after {}/{:02x?}",
            found.as_ref().map(|f| f.1.get(..2).map(<[u8]>::to_vec)),
            from.0,
            from.1.get(..2)
        ),
    }
}

impl Inner {
    fn explain(
        &self,
        history: &BTreeMap<u64, u64>,
        left_out: &BTreeSet<u64>,
        found: &Map,
    ) -> Result<(), String> {
        let mut map = self.base.clone();
        // By key: what it was from each lsn on.
        let mut versions: BTreeMap<Key, Vec<(u64, Option<Vec<u8>>)>> = BTreeMap::new();
        let mut answers: BTreeMap<u64, Vec<&Decision>> = BTreeMap::new();
        for decision in self.decisions.values().filter(|d| d.answered) {
            answers.entry(decision.lsn).or_default().push(decision);
        }
        let mut lsns: BTreeSet<u64> = history.keys().copied().collect();
        lsns.extend(answers.keys());
        for lsn in lsns {
            for decision in answers.get(&lsn).into_iter().flatten() {
                check_looks(&map, decision)?;
            }
            let Some(number) = history.get(&lsn).filter(|_| !left_out.contains(&lsn)) else { continue };
            let Some(decision) = self.decisions.get(number) else { continue };
            apply(&mut map, &decision.ops);
            for op in &decision.ops {
                let (CtgOp::Put { ctg, key, .. } | CtgOp::Delete { ctg, key }) = op;
                let key = (*ctg, key.clone());
                let now = map.get(&key).cloned();
                versions.entry(key).or_default().push((lsn, now));
            }
        }
        if map != *found {
            let gone = map.iter().find(|(k, v)| found.get(*k) != Some(v));
            let new = found.iter().find(|(k, v)| map.get(*k) != Some(v));
            let name = |e: Option<(&Key, &Vec<u8>)>| {
                e.map(|((c, k), v)| (*c, k.get(..2).map(<[u8]>::to_vec), v.len()))
            };
            return Err(format!(
                "the catalogues are not what was committed: expected {:?}, found {:?}",
                name(gone),
                name(new)
            ));
        }
        self.explain_reads(&versions)
    }

    /// Whether a key had a value at some lsn between two.
    fn was(
        &self,
        versions: &BTreeMap<Key, Vec<(u64, Option<Vec<u8>>)>>,
        key: &Key,
        value: Option<&Vec<u8>>,
        (from, until): (u64, u64),
    ) -> bool {
        let mut current = self.base.get(key);
        let mut since = 0;
        for (lsn, next) in versions.get(key).into_iter().flatten() {
            if current == value && since <= until && *lsn > from {
                return true;
            }
            (current, since) = (next.as_ref(), *lsn);
        }
        current == value && since <= until
    }

    fn explain_reads(&self, versions: &BTreeMap<Key, Vec<(u64, Option<Vec<u8>>)>>) -> Result<(), String> {
        for got in &self.gets {
            if !self.was(versions, &got.key, got.value.as_ref(), got.between) {
                let look = Look::Get(got.key.clone(), got.value.clone());
                return Err(format!("a get saw {}, which was not so at lsn {:?}", short(&look), got.between));
            }
        }
        for scan in &self.scans {
            let mut keys: BTreeSet<&Key> =
                self.base.range(scan.from.clone()..scan.until.clone()).map(|(k, _)| k).collect();
            keys.extend(versions.range(scan.from.clone()..scan.until.clone()).map(|(k, _)| k));
            let entries: BTreeMap<Key, &Vec<u8>> =
                scan.entries.iter().map(|(k, v)| ((scan.from.0, k.clone()), v)).collect();
            if entries.len() != scan.entries.len() || !scan.entries.is_sorted_by(|a, b| a.0 < b.0) {
                return Err("a scan gives a key twice or out of order".into());
            }
            for key in keys.into_iter().chain(entries.keys()) {
                let value = entries.get(key).copied();
                if !self.was(versions, key, value, scan.between) {
                    let look = Look::Get(key.clone(), value.cloned());
                    return Err(format!(
                        "a scan saw {}, which was not so at {:?}",
                        short(&look),
                        scan.between
                    ));
                }
            }
        }
        Ok(())
    }
}
