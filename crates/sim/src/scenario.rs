//! A run of the cluster with disks that go wrong, decided by one seed: which disks, which faults, where the power goes.
//! While at most K units of a group are hurt every read is exact; beyond that it is exact or says so. A target whose meta
//! region is hurt fails with a verdict, and the others go on. A disk that hangs holds no request beyond its deadline.

use crate::cluster::{DiskFaults, PROCESSES, Part, SimCluster, SimOptions, simulate};
use crate::disk::{Fault, FaultCounts, FaultPlan};
use crate::history::{Book, Diligence, Reads, Wrong, create_bucket, judge, reader, reckon, writer};
use cobalt_client::Handle;
use cobalt_reactor::{Ctx, JoinHandle};
use cobalt_rpc::proto::record::BucketRecord;
use cobalt_store::{Finding, FindingKind, FsckReport};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

const KEYS: usize = 4;
const READERS: u64 = 2;
/// Versions that each writer writes in a round.
const VERSIONS: u64 = 12;
/// Pause of a writer after a PUT that failed, its longest between two others, and that of a reader between two GETs.
const WRITER_PAUSE: Duration = Duration::from_millis(300);
const READER_PAUSE: Duration = Duration::from_millis(40);
/// Starts of a process that are tried before it counts as down for good.
const STARTS: usize = 20;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One target's data: misdirected, lost, rotten, unreadable.
    Data,
    /// One target's disks fail operations, or altogether.
    Errors,
    /// One target's meta region: misdirected, lost, rotten, unreadable.
    Meta,
    /// One target's disks hang and come back.
    Hang,
    /// Every target's data, so that some of it is lost.
    AllData,
    /// Everything at once, on one target.
    Everything,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 6] =
        [Kind::Data, Kind::Errors, Kind::Meta, Kind::Hang, Kind::AllData, Kind::Everything];

    /// The one that a seed is for.
    pub fn of(seed: u64) -> Kind {
        Kind::ALL[seed as usize % Kind::ALL.len()]
    }

    /// Whether faults may leave the victim's trees hurt for good.
    fn hurts_meta(self) -> bool {
        matches!(self, Kind::Meta | Kind::Everything)
    }
}

/// What a run saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sights {
    /// Of the event log, and its length.
    pub hash: u64,
    pub events: u64,
    pub runs: u64,
    pub puts: u64,
    pub puts_failed: u64,
    pub reads: Reads,
    pub crashes: u64,
    pub clients_died: u64,
    /// Targets that failed while they ran, and that did not open any more.
    pub failed: u64,
    pub verdicts: u64,
    /// Keys whose loss was said at the end.
    pub lost: u64,
    pub faults: FaultCounts,
}

impl Sights {
    /// Adds another run's.
    pub fn add(&mut self, other: &Sights) {
        self.events += other.events;
        self.runs += other.runs;
        self.puts += other.puts;
        self.puts_failed += other.puts_failed;
        self.reads.answered += other.reads.answered;
        self.reads.failed += other.reads.failed;
        self.reads.damaged += other.reads.damaged;
        self.crashes += other.crashes;
        self.clients_died += other.clients_died;
        self.failed += other.failed;
        self.verdicts += other.verdicts;
        self.lost += other.lost;
        self.faults.add(&other.faults);
    }

    /// The counts by name.
    pub fn rows(&self) -> Vec<(&'static str, u64)> {
        let mut rows = vec![
            ("runs", self.runs),
            ("puts", self.puts),
            ("puts_failed", self.puts_failed),
            ("gets", self.reads.answered),
            ("gets_failed", self.reads.failed),
            ("crashes", self.crashes),
            ("clients_died", self.clients_died),
            ("failed_targets", self.failed),
            ("verdicts", self.verdicts),
            ("lost_objects", self.lost),
        ];
        rows.extend(Fault::ALL.map(|fault| (fault.name(), self.faults.get(fault))));
        rows
    }
}

impl fmt::Display for Sights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows().iter().try_for_each(|(name, n)| write!(f, "{name}={n} "))
    }
}

/// Runs what the seed says.
///
/// # Errors
/// [`Wrong`]: a promise was broken.
pub fn run(seed: u64) -> Result<Sights, Wrong> {
    run_kind(seed, Kind::of(seed))
}

/// Runs a kind of trouble with this seed.
///
/// # Errors
/// [`Wrong`].
pub fn run_kind(seed: u64, kind: Kind) -> Result<Sights, Wrong> {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5ce7a210);
    let mut options = SimOptions::default();
    // So little that checkpoints run and nodes are read again.
    options.store.dirty_max = 64 << 10;
    options.store.node_cache = 512 << 10;
    let victim = match kind {
        // The catalogue has no replica: its target's meta region is all there is of it.
        Kind::Meta | Kind::Everything => rng.random_range(1..PROCESSES),
        _ => rng.random_range(0..PROCESSES),
    };
    options.faults = plan(kind, victim, &mut rng);
    simulate(seed, options, move |cluster| async move {
        let ctx = cluster.ctx().clone();
        let mut play = Play { ctx, cluster, rng, kind, victim, sights: Sights::default() };
        play.all().await?;
        let Play { cluster, mut sights, .. } = play;
        sights.runs = 1;
        sights.faults = cluster.faults();
        (sights.hash, sights.events) = (cluster.log().hash(), cluster.log().events());
        Ok(sights)
    })
}

/// The faults of each disk.
fn plan(kind: Kind, victim: usize, rng: &mut StdRng) -> Vec<DiskFaults> {
    let scale = [1, 4, 16][rng.random_range(0..3)];
    let hurt = |rate: u32, budget: u64| {
        let hurt = [
            Fault::MisdirectedWrite,
            Fault::MisdirectedRead,
            Fault::LostWrite,
            Fault::Rot,
            Fault::ReadError,
            Fault::MediumError,
        ];
        hurt.into_iter().fold(FaultPlan::default(), |plan, fault| plan.with(fault, rate, budget))
    };
    let errors = |plan: FaultPlan, rate: u32| {
        let errors = [Fault::ReadError, Fault::WriteError, Fault::FlushError];
        let plan = errors.into_iter().fold(plan, |plan, fault| plan.with(fault, rate, 4));
        plan.with(Fault::Death, rate / 10, 2)
    };
    let hang =
        |plan: FaultPlan, rate: u32| plan.with(Fault::Hang, rate, 3).hangs_up_to(Duration::from_secs(40));
    let none = FaultPlan::default;
    let of = |part, plan| DiskFaults { process: victim, part, plan };
    match kind {
        Kind::Data => vec![of(Part::Data, hurt(10_000 * scale, 1_000))],
        Kind::Errors => {
            vec![of(Part::Data, errors(none(), 5_000 * scale)), of(Part::Meta, errors(none(), 2_000 * scale))]
        }
        Kind::Meta => vec![of(Part::Meta, hurt(4_000 * scale, 3))],
        Kind::Hang => {
            vec![of(Part::Data, hang(none(), 5_000 * scale)), of(Part::Meta, hang(none(), 2_000 * scale))]
        }
        Kind::AllData => {
            let plan = hurt(6_000 * scale, 1_000);
            (0..PROCESSES)
                .map(|process| DiskFaults { process, part: Part::Data, plan: plan.clone() })
                .collect()
        }
        Kind::Everything => {
            let all = |rate| hang(errors(hurt(rate, 4), rate / 2), rate / 2);
            vec![of(Part::Data, all(8_000 * scale)), of(Part::Meta, all(2_000 * scale))]
        }
    }
}

struct Play {
    ctx: Ctx,
    cluster: SimCluster,
    rng: StdRng,
    kind: Kind,
    victim: usize,
    sights: Sights,
}

/// Those who work on the cluster.
struct Crowd {
    writers: Vec<JoinHandle<Result<(), Wrong>>>,
    readers: Vec<JoinHandle<Wrong>>,
}

impl Crowd {
    /// What the readers saw was right.
    async fn stop_readers(self) -> Result<(), Wrong> {
        for reader in self.readers {
            if reader.is_finished() {
                return Err(reader.await);
            }
            reader.abort();
        }
        Ok(())
    }
}

impl Play {
    async fn all(&mut self) -> Result<(), Wrong> {
        let mut handle = self.cluster.start_client();
        let bucket = create_bucket(&self.ctx, &handle).await?;
        self.cluster.begin_faults();
        let book = Rc::new(RefCell::new(Book::default()));
        let reads = Rc::new(RefCell::new(Reads::default()));
        for _ in 0..2 {
            let crowd = self.crowd(&handle, &bucket, &book, &reads);
            for _ in 0..self.rng.random_range(1..4) {
                self.ctx.sleep(Duration::from_millis(self.rng.random_range(20..800))).await;
                self.strike().await?;
                self.mend().await?;
            }
            if self.rng.random_bool(0.5) {
                handle = self.next_client(crowd).await?;
            } else {
                self.disperse(crowd).await?;
            }
        }
        self.look_at_counters()?;
        self.cluster.end_faults();
        self.mend().await?;
        let known = book.borrow().clone();
        let may_be_damaged = self.kind == Kind::AllData;
        judge(&handle, &self.ctx, &known, may_be_damaged).await?;
        self.reckon(&known, may_be_damaged).await?;
        (self.sights.puts, self.sights.puts_failed) = (known.acknowledgements, known.failures);
        self.sights.reads = *reads.borrow();
        Ok(())
    }

    fn crowd(
        &mut self,
        handle: &Handle,
        bucket: &BucketRecord,
        book: &Rc<RefCell<Book>>,
        reads: &Rc<RefCell<Reads>>,
    ) -> Crowd {
        let keys: Vec<String> = (0..KEYS).map(|key| format!("k{key}")).collect();
        let diligence = Diligence { rounds: VERSIONS, pause: WRITER_PAUSE, persist: Some(WRITER_PAUSE) };
        let (ctx, rng) = (&self.ctx, &mut self.rng);
        let mut crowd = Crowd { writers: Vec::new(), readers: Vec::new() };
        for key in &keys {
            let (handle, bucket, book) = (handle.clone(), bucket.clone(), book.clone());
            let writer = writer(ctx.clone(), handle, bucket, key.clone(), book, rng.random(), diligence);
            crowd.writers.push(ctx.spawn(writer));
        }
        for _ in 0..READERS {
            let (handle, keys, book, reads) = (handle.clone(), keys.clone(), book.clone(), reads.clone());
            let reader = reader(ctx.clone(), handle, keys, book, reads, rng.random(), READER_PAUSE);
            crowd.readers.push(ctx.spawn(reader));
        }
        crowd
    }

    /// The client dies in the middle of everything, and another comes.
    async fn next_client(&mut self, crowd: Crowd) -> Result<Handle, Wrong> {
        if self.kind == Kind::Hang {
            // What it began is under way for a long time yet: its session is fenced and swept meanwhile.
            let part = if self.rng.random_bool(0.7) { Part::Meta } else { Part::Data };
            let time = Duration::from_millis(self.rng.random_range(500..4_000));
            self.cluster.disk(self.rng.random_range(1..PROCESSES), part).hang(&self.ctx, time);
            self.ctx.sleep(Duration::from_millis(self.rng.random_range(1..400))).await;
        }
        crowd.writers.iter().for_each(JoinHandle::abort);
        let readers = crowd.stop_readers().await;
        self.sights.clients_died += 1;
        readers.map(|()| self.cluster.start_client())
    }

    /// Waits for the writers; their requests end in time. What the readers saw was right.
    async fn disperse(&self, mut crowd: Crowd) -> Result<(), Wrong> {
        for writer in std::mem::take(&mut crowd.writers) {
            writer.await?;
        }
        crowd.stop_readers().await
    }

    /// Takes the power from everybody, from one, or from nobody.
    async fn strike(&mut self) -> Result<(), Wrong> {
        self.look_at_counters()?;
        match self.rng.random_range(0..4) {
            0 => {
                self.cluster.cut_now();
                self.cluster.kill_all();
                self.sights.crashes += PROCESSES as u64;
                // As the power left them, before anybody recovers them.
                if self.rng.random_bool(0.5) {
                    self.check().await?;
                }
            }
            1 => {
                let number = self.rng.random_range(0..PROCESSES);
                self.cluster.kill(number);
                self.sights.crashes += 1;
            }
            _ => {}
        }
        Ok(())
    }

    /// No reader of a disk that nothing struck got other bytes than were written.
    fn look_at_counters(&self) -> Result<(), Wrong> {
        for (number, process) in self.cluster.processes().iter().enumerate() {
            let corrupt = process.store().map_or(0, |store| store.counters().corrupt_reads);
            if process.faults().total() == 0 && corrupt > 0 {
                return Err(Wrong(format!(
                    "{corrupt} reads of target {number}, which nothing struck, were corrupt"
                )));
            }
        }
        Ok(())
    }

    /// What is not hurt is whole, while nothing runs.
    async fn check(&self) -> Result<(), Wrong> {
        for (number, process) in self.cluster.processes().iter().enumerate() {
            // Faults go on while it is checked: what it may not read it finds unreadable.
            let mut report = process.fsck().await;
            for _ in 0..STARTS {
                if self.cluster.disk(number, Part::Meta).faults().total() == 0
                    || report.as_ref().is_ok_and(FsckReport::is_sound)
                {
                    break;
                }
                report = process.fsck().await;
            }
            if self.cluster.disk(number, Part::Meta).faults().hurts() > 0 {
                continue;
            }
            let report = report.map_err(|e| Wrong(format!("fsck of target {number}: {e}")))?;
            let data = self.cluster.disk(number, Part::Data).faults();
            let hurt = data.hurts() + data.get(Fault::MisdirectedRead) > 0;
            let unreadable = data.total() > 0;
            let unlike = |f: &&Finding| match f.kind {
                FindingKind::Data => !hurt,
                FindingKind::DataUnreadable => !unreadable,
                kind => kind.is_fatal(),
            };
            if let Some(finding) = report.findings.iter().find(unlike) {
                return Err(Wrong(format!("fsck of target {number}: {finding:?}")));
            }
        }
        Ok(())
    }

    /// What people do: they start what does not run, and start again what says that it failed.
    async fn mend(&mut self) -> Result<(), Wrong> {
        for number in 0..PROCESSES {
            let process = &self.cluster.processes()[number];
            let failed = process.store().is_some_and(|store| store.status().failed.is_some());
            if failed || process.verdict().is_some() {
                self.sights.failed += u64::from(failed);
                self.cluster.kill(number);
            }
            for attempt in 0.. {
                if self.cluster.processes()[number].is_running() {
                    break;
                }
                match self.cluster.start(number).await {
                    Ok(()) => break,
                    Err(error) if attempt >= STARTS || self.spares(number) => {
                        return Err(Wrong(format!("process {number} does not start: {error}")));
                    }
                    Err(_) => self.ctx.sleep(WRITER_PAUSE).await,
                }
            }
            if let Some(why) = self.cluster.processes()[number].verdict() {
                self.sights.verdicts += 1;
                if self.spares(number) {
                    return Err(Wrong(format!(
                        "target {number}, which nothing struck, does not open: {why}"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Whether no fault strikes what this process needs to start.
    fn spares(&self, number: usize) -> bool {
        matches!(self.kind, Kind::Data | Kind::AllData) || number != self.victim
    }

    /// Everything starts anew; what is not hurt is whole, and holds what is named and no more.
    async fn reckon(&mut self, book: &Book, may_be_damaged: bool) -> Result<(), Wrong> {
        self.cluster.kill_all();
        self.check().await?;
        self.mend().await?;
        let except: &[usize] = if self.kind.hurts_meta() { &[self.victim] } else { &[] };
        // A target that is down holds the collector up: what nothing names cannot be told then.
        if self.cluster.processes()[self.victim].verdict().is_some() {
            let handle = self.cluster.start_client();
            let verdict = judge(&handle, &self.ctx, book, may_be_damaged).await?;
            self.sights.lost += verdict.damaged.len() as u64;
            return Ok(());
        }
        let verdict = reckon(&mut self.cluster, &self.ctx, book, may_be_damaged, except).await?;
        self.sights.lost += verdict.damaged.len() as u64;
        Ok(())
    }
}
