//! Visits every boundary of a tape and the states that a crash there may leave, each distinct image once.
//!
//! Two states with the same image are one: what a start finds and does follows from the image alone. So an image is mounted
//! once, what it recovered to is kept, and every boundary that leads to it again only compares that with what was promised
//! there. Nothing else is pruned.

use super::check::{Checked, Depth, Env, Recording, Start, check, check_rotten};
use super::image::{Block, Image};
use super::model::{Lineage, State};
use super::rot::victims;
use super::walk::{Pick, Tear, Walk};
use crate::run::{Counts, saw, working_on};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Pending writes of which every subset is a state.
const SUBSETS_OF: usize = 8;
/// Choices drawn at a boundary with more.
const SAMPLES: usize = 32;
/// One image in so many is worked on after its comparison; one in so many is closed and opened again; of one in so many the
/// recovery is crashed in its turn. Which ones follows from the image.
const WORK_ONE_IN: u128 = 8;
const REOPEN_ONE_IN: u128 = 64;
const DIVE_ONE_IN: u128 = 16;
/// After one recovery in so many a chain of so many more follows, each cut short.
const CHAIN_ONE_IN: u64 = 64;
const CHAIN_LEN: usize = 24;
/// At one boundary in so many a durable record rots.
const ROT_ONE_IN: usize = 4;

/// How a state came to be looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Plain,
    Subset,
    Sampled,
    Torn,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Visits {
    pub states: u64,
    pub pruned: u64,
    pub boundaries: u64,
    pub recovery_boundaries: u64,
    pub recoveries: u64,
    pub lives_on: u64,
    pub rotten: u64,
    pub chains: u64,
    pub torn: u64,
    pub subsets: u64,
    pub sampled: u64,
    pub worked: u64,
    pub reopened: u64,
}

impl Visits {
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for (name, n) in [
            ("states", self.states),
            ("pruned", self.pruned),
            ("boundaries", self.boundaries),
            ("recoveries", self.recoveries),
            ("recovery_boundaries", self.recovery_boundaries),
            ("lives_on", self.lives_on),
            ("rotten", self.rotten),
            ("chains", self.chains),
            ("torn", self.torn),
            ("subsets", self.subsets),
            ("sampled", self.sampled),
            ("worked", self.worked),
            ("reopened", self.reopened),
        ] {
            counts.add(name, n);
        }
        counts
    }
}

/// A state that is wrong.
#[derive(Clone, Debug)]
pub struct Fault {
    pub case: String,
    pub what: String,
}

struct Outcome {
    lsn: u64,
    state: Rc<State>,
}

pub struct Explorer {
    env: Env,
    outcomes: HashMap<u128, Outcome>,
    deaths: HashSet<(u128, u128)>,
    dives: u64,
    pub visits: Visits,
    path: String,
}

impl Explorer {
    pub fn new(env: Env) -> Explorer {
        let path = format!("{:x}", env.seed);
        Explorer {
            env,
            outcomes: HashMap::new(),
            deaths: HashSet::new(),
            dives: 0,
            visits: Visits::default(),
            path,
        }
    }

    /// Visits all of a tape. `depth` is 0 for the workload, 1 for a recovery.
    pub fn explore(&mut self, recording: &Recording, depth: u32) -> Result<(), Fault> {
        let mut walk = Walk::new(recording, self.env.shape.volatile);
        let mut changed = true;
        let mut floor = u64::MAX;
        loop {
            if depth == 0 {
                self.visits.boundaries += 1;
            } else {
                self.visits.recovery_boundaries += 1;
            }
            let now = recording.floors.at(walk.at);
            if changed || now != floor {
                floor = now;
                self.boundary(&walk, recording, floor, depth)?;
            }
            if walk.at + 1 == walk.boundaries() {
                return Ok(());
            }
            changed = walk.step();
        }
    }

    fn boundary(
        &mut self,
        walk: &Walk<'_>,
        recording: &Recording,
        floor: u64,
        depth: u32,
    ) -> Result<(), Fault> {
        for (pick, class) in picks(walk, self.env.seed) {
            self.visit(walk, &recording.lineage, floor, depth, pick, class)?;
        }
        if depth == 0 && self.env.shape.volatile && !walk.pending.is_empty() {
            let all = walk.all();
            let landed: u128 =
                walk.pending.iter().enumerate().filter(|(_, p)| p.done).map(|(n, _)| 1 << n).sum();
            self.rot(walk, &recording.lineage)?;
            self.die(walk, &recording.lineage, floor, depth, all)?;
            self.die(walk, &recording.lineage, floor, depth, landed)?;
        }
        Ok(())
    }

    fn visit(
        &mut self,
        walk: &Walk<'_>,
        lineage: &Rc<Lineage>,
        floor: u64,
        depth: u32,
        pick: Pick,
        class: Class,
    ) -> Result<(), Fault> {
        let sum = walk.sum(pick);
        if let Some(known) = self.outcomes.get(&sum) {
            self.visits.pruned += 1;
            let state = lineage.at(known.lsn);
            let what = if known.lsn < floor {
                format!("recovered up to lsn {}, but {floor} was acknowledged", known.lsn)
            } else if !Rc::ptr_eq(state, &known.state) && *state != known.state {
                format!("lsn {} is another state here than where the same image was seen first", known.lsn)
            } else {
                return Ok(());
            };
            return Err(self.fault(walk.at, &pick.to_string(), what));
        }
        self.count(class);
        let case = format!("{}/{}:{pick}", self.path, walk.at);
        working_on(case.clone());
        let pages = walk.pages(pick);
        let dives = depth < 1 && (sum >> 32).is_multiple_of(DIVE_ONE_IN);
        let durable = dives.then(|| pages.clone());
        let how = depth_of(sum);
        self.visits.worked += u64::from(how >= Depth::Work);
        self.visits.reopened += u64::from(how >= Depth::Reopen);
        let checked = check(&self.env, pages, lineage, floor, how)
            .map_err(|what| Fault { case: case.clone(), what })?;
        let state = lineage.at(checked.lsn).clone();
        self.outcomes.insert(sum, Outcome { lsn: checked.lsn, state });
        if let Some(durable) = durable {
            self.visits.recoveries += 1;
            let start = Start { durable: Image { pages: durable, sum }, pending: Vec::new() };
            self.dive(start, checked, case, depth)?;
        }
        Ok(())
    }

    /// The process dies, its devices live on; then the power goes during or after the next start.
    fn die(
        &mut self,
        walk: &Walk<'_>,
        lineage: &Rc<Lineage>,
        floor: u64,
        depth: u32,
        landed: u128,
    ) -> Result<(), Fault> {
        let (none, all) = (Pick { kept: 0, torn: None }, Pick { kept: landed, torn: None });
        if landed == 0 || !self.deaths.insert((walk.sum(none), walk.sum(all))) {
            return Ok(());
        }
        self.visits.lives_on += 1;
        let case = format!("{}/{}:L{landed:x}", self.path, walk.at);
        working_on(case.clone());
        let (durable, pending) = walk.lives_on(landed);
        let checked = check(&self.env, walk.pages(all), lineage, floor, Depth::Mount)
            .map_err(|what| Fault { case: case.clone(), what })?;
        self.dive(Start { durable, pending }, checked, case, depth)
    }

    /// One durable record rots.
    fn rot(&mut self, walk: &Walk<'_>, lineage: &Rc<Lineage>) -> Result<(), Fault> {
        let mut pages = walk.pages(Pick { kept: 0, torn: None });
        let victims = victims(&pages, self.env.shape.meta_blocks);
        if victims.is_empty() || !walk.at.is_multiple_of(ROT_ONE_IN) {
            return Ok(());
        }
        let (place, known) = victims[walk.at / ROT_ONE_IN % victims.len()];
        self.visits.rotten += 1;
        saw(1);
        let case = format!("{}/{}:R{place}", self.path, walk.at);
        working_on(case.clone());
        pages[place] = Block::filled(0);
        check_rotten(&self.env, pages, lineage, known).map_err(|what| Fault { case, what })
    }

    /// Crashes a recovery at its boundaries.
    fn dive(&mut self, start: Start, checked: Checked, case: String, depth: u32) -> Result<(), Fault> {
        let Checked { tape, lineage, floors, .. } = checked;
        let outer = std::mem::replace(&mut self.path, case);
        let recording = Recording { start, tape, lineage, floors };
        let mut result = self.explore(&recording, depth + 1);
        self.dives += 1;
        if result.is_ok() && self.dives.is_multiple_of(CHAIN_ONE_IN) && depth == 0 {
            result = self.chain(recording);
        }
        self.path = outer;
        result
    }

    /// One start after the other is cut short: what they leave behind must not add up, in the journal least of all.
    fn chain(&mut self, mut recording: Recording) -> Result<(), Fault> {
        self.visits.chains += 1;
        let outer = self.path.clone();
        let mut rng = StdRng::seed_from_u64(recording.start.durable.sum as u64);
        for _ in 0..CHAIN_LEN {
            let mut walk = Walk::new(&recording, self.env.shape.volatile);
            let at = walk.boundaries() - 1 - rng.random_range(0..3).min(walk.boundaries() - 1);
            while walk.at < at {
                walk.step();
            }
            let pick = Pick { kept: rng.random::<u128>() & walk.all(), torn: None };
            let case = format!("{}/{at}:{pick}", self.path);
            working_on(case.clone());
            let (pages, sum) = (walk.pages(pick), walk.sum(pick));
            let start = Start { durable: Image { pages: pages.clone(), sum }, pending: Vec::new() };
            let floor = recording.floors.at(at);
            let fresh = !self.outcomes.contains_key(&sum);
            let checked = check(&self.env, pages, &recording.lineage, floor, depth_of(sum))
                .map_err(|what| Fault { case: case.clone(), what })?;
            if fresh {
                self.count(Class::Plain);
                let state = recording.lineage.at(checked.lsn).clone();
                self.outcomes.insert(sum, Outcome { lsn: checked.lsn, state });
            }
            self.path = case;
            let Checked { tape, lineage, floors, .. } = checked;
            recording = Recording { start, tape, lineage, floors };
        }
        let result = self.explore(&recording, 1);
        self.path = outer;
        result
    }

    fn count(&mut self, class: Class) {
        let visits = &mut self.visits;
        visits.states += 1;
        saw(1);
        match class {
            Class::Plain => {}
            Class::Subset => visits.subsets += 1,
            Class::Sampled => visits.sampled += 1,
            Class::Torn => visits.torn += 1,
        }
    }

    fn fault(&self, at: usize, what_kept: &str, what: String) -> Fault {
        Fault { case: format!("{}/{at}:{what_kept}", self.path), what }
    }
}

fn depth_of(sum: u128) -> Depth {
    match sum {
        sum if sum % REOPEN_ONE_IN == 1 => Depth::Reopen,
        sum if sum % WORK_ONE_IN == 1 => Depth::Work,
        _ => Depth::Mount,
    }
}

/// What a crash here may leave.
fn picks(walk: &Walk<'_>, seed: u64) -> Vec<(Pick, Class)> {
    let (n, all) = (walk.pending.len(), walk.all());
    let whole = |kept, class| (Pick { kept, torn: None }, class);
    let mut picks = vec![whole(all, Class::Plain)];
    if n == 0 {
        return picks;
    }
    picks.push(whole(0, Class::Plain));
    picks.extend((0..n).map(|i| whole(all & !(1 << i), Class::Plain)));
    picks.extend((0..n).map(|i| whole(1 << i, Class::Plain)));
    let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(walk.at as u64));
    if n <= SUBSETS_OF {
        let some = |kept: &u128| (2..n - 1).contains(&(kept.count_ones() as usize));
        picks.extend((0..=all).filter(some).map(|kept| whole(kept, Class::Subset)));
    } else {
        picks.extend((0..SAMPLES).map(|_| whole(rng.random::<u128>() & all, Class::Sampled)));
    }
    for of in (0..n).filter(|i| walk.pending[*i].torn) {
        let cut = rng.random_range(1..walk.sectors(of));
        for (first, kept) in [(true, all), (false, all), (true, 0), (false, 0)] {
            let torn = Some(Tear { of, cut, first });
            picks.push((Pick { kept: kept & !(1 << of), torn }, Class::Torn));
        }
    }
    picks
}

/// Runs one case alone: walks to its state, through the recoveries on the way.
///
/// # Errors
/// What is wrong with it, or with the case.
pub fn replay(env: &Env, recording: Recording, steps: &[&str]) -> Result<(), String> {
    let mut recording = recording;
    for (n, step) in steps.iter().enumerate() {
        let (at, what) = step.split_once(':').ok_or_else(|| format!("{step:?} is no step of a case"))?;
        let at: usize = at.parse().map_err(|_| format!("{at:?} is no boundary"))?;
        let mut walk = Walk::new(&recording, env.shape.volatile);
        if at >= walk.boundaries() {
            return Err(format!("boundary {at} of {}", walk.boundaries()));
        }
        while walk.at < at {
            walk.step();
        }
        let floor = recording.floors.at(at);
        if let Some(place) = what.strip_prefix('R') {
            let place: usize = place.parse().map_err(|_| format!("{place:?} is no block"))?;
            let mut pages = walk.pages(Pick { kept: 0, torn: None });
            let victims = victims(&pages, env.shape.meta_blocks);
            let known = victims.iter().find(|(at, _)| *at == place).map_or(0, |(_, known)| *known);
            pages[place] = Block::filled(0);
            return check_rotten(env, pages, &recording.lineage, known);
        }
        let (start, pages, depth) = match what.strip_prefix('L') {
            Some(landed) => {
                let landed = u128::from_str_radix(landed, 16).map_err(|e| e.to_string())?;
                let (durable, pending) = walk.lives_on(landed);
                (Start { durable, pending }, walk.pages(Pick { kept: landed, torn: None }), Depth::Mount)
            }
            None => {
                let pick: Pick = what.parse()?;
                let (pages, sum) = (walk.pages(pick), walk.sum(pick));
                let durable = Image { pages: pages.clone(), sum };
                (Start { durable, pending: Vec::new() }, pages, depth_of(sum))
            }
        };
        let checked = check(env, pages, &recording.lineage, floor, depth)
            .map_err(|what| format!("step {}: {what}", n + 1))?;
        let Checked { tape, lineage, floors, .. } = checked;
        recording = Recording { start, tape, lineage, floors };
    }
    Ok(())
}
