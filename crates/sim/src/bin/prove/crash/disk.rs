//! A device that writes down what it is asked: every write, flush and deallocation when it was submitted and when it was
//! complete. From that tape every state can be built that a crash at any moment may leave.
//!
//! Two devices, meta and data, share a tape: a flush of the one says nothing of the other.

use super::image::{BLOCK, Block, Page};
use cobalt_bdev::{Bdev, Device, Done, Identify, Io, Op};
use cobalt_reactor::Ctx;
use cobalt_store::{Region, Regions};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// The two devices.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub meta_blocks: u32,
    pub data_blocks: u32,
    /// Whether completed writes need a flush.
    pub volatile: bool,
}

/// A write, or a deallocation: that one leaves garbage, whose arrival on the disk nobody orders either.
pub struct Write {
    pub part: usize,
    pub fua: bool,
    pub torn: bool,
    pub blocks: Vec<(u32, Page)>,
}

#[derive(Clone, Copy, Debug)]
pub enum Event {
    Submit(usize),
    Done(usize),
    Flush { id: usize, part: usize },
    Flushed { id: usize },
}

#[derive(Default)]
pub struct Tape {
    pub writes: Vec<Write>,
    pub events: Vec<Event>,
    pub flushes: usize,
}

pub struct Disk {
    /// What a read gets.
    pub pages: RefCell<Vec<Page>>,
    pub tape: RefCell<Tape>,
    /// Longest time of an operation in microseconds, and whose time; else all is done at once.
    slow: Option<(Ctx, u64)>,
    garbage: Page,
    /// Operations under way: whether it writes, and where.
    running: RefCell<Vec<(bool, Range<u32>)>>,
    /// Two of them touched one block, and one of those wrote.
    pub clash: RefCell<Option<String>>,
}

struct Part {
    disk: Rc<Disk>,
    identify: Identify,
    part: usize,
    first: u32,
}

impl Disk {
    pub fn new(pages: Vec<Page>, slow: Option<(Ctx, u64)>) -> Rc<Disk> {
        Rc::new(Disk {
            pages: RefCell::new(pages),
            tape: RefCell::default(),
            slow,
            garbage: Block::filled(0xdd),
            running: RefCell::default(),
            clash: RefCell::default(),
        })
    }

    /// Events so far.
    pub fn now(&self) -> usize {
        self.tape.borrow().events.len()
    }

    pub fn regions(self: &Rc<Disk>, shape: Shape) -> Regions {
        let part = |part: usize, first: u32, blocks: u32| {
            let identify = Identify {
                backend: "crash".into(),
                size: u64::from(blocks) * BLOCK as u64,
                block_size: 4096,
                volatile_cache: shape.volatile,
                atomic_write: 512,
                depth: 64,
                transfer_max: 64 << 10,
                deallocate: true,
            };
            Region::whole(Device::new(Rc::new(Part { disk: self.clone(), identify, part, first })))
        };
        Regions { meta: part(0, 0, shape.meta_blocks), data: part(1, shape.meta_blocks, shape.data_blocks) }
    }

    /// Nobody may write what another operation reads or writes (I3, I7).
    fn begin(&self, writes: bool, range: Range<u32>) {
        let mut running = self.running.borrow_mut();
        let other = running
            .iter()
            .find(|(other, r)| (writes || *other) && r.start < range.end && range.start < r.end);
        if let Some((other, at)) = other {
            let name = |writes| if writes { "a write" } else { "a read" };
            let (new, old) = (name(writes), name(*other));
            self.clash.borrow_mut().get_or_insert_with(|| {
                format!("{new} of blocks {range:?} began while {old} of {at:?} was under way")
            });
        }
        running.push((writes, range));
    }

    fn end(&self, writes: bool, range: &Range<u32>) {
        let mut running = self.running.borrow_mut();
        if let Some(at) = running.iter().position(|(w, r)| *w == writes && r == range) {
            running.swap_remove(at);
        }
    }

    fn submit_write(&self, write: Write) -> usize {
        let tape = &mut *self.tape.borrow_mut();
        let id = tape.writes.len();
        self.begin(true, range_of(&write));
        tape.writes.push(write);
        tape.events.push(Event::Submit(id));
        id
    }

    fn complete_write(&self, id: usize) {
        let tape = &mut *self.tape.borrow_mut();
        let mut pages = self.pages.borrow_mut();
        self.end(true, &range_of(&tape.writes[id]));
        for (place, page) in &tape.writes[id].blocks {
            pages[*place as usize] = page.clone();
        }
        tape.events.push(Event::Done(id));
    }

    fn read(&self, first: u32, buf: &mut [u8]) {
        let pages = self.pages.borrow();
        for (at, out) in buf.chunks_mut(BLOCK).enumerate() {
            out.copy_from_slice(&pages[first as usize + at].bytes[..out.len()]);
        }
    }
}

fn range_of(write: &Write) -> Range<u32> {
    let ends = write.blocks.first().zip(write.blocks.last());
    ends.map_or(0..0, |((first, _), (last, _))| *first..*last + 1)
}

impl Part {
    fn place(&self, offset: u64) -> u32 {
        self.first + u32::try_from(offset / BLOCK as u64).expect("the region is small")
    }

    fn after(&self, done: Done, finish: impl FnOnce(&Disk, Done) + 'static) {
        let disk = self.disk.clone();
        match &self.disk.slow {
            None => finish(&disk, done),
            Some((ctx, us)) => {
                // One in sixteen takes ten times as long.
                let slow = if ctx.random_u64().is_multiple_of(16) { 10 } else { 1 };
                let time = Duration::from_micros(ctx.random_u64() % (us * slow));
                let wait = ctx.clone();
                drop(ctx.spawn(async move {
                    wait.sleep(time).await;
                    finish(&disk, done);
                }));
            }
        }
    }
}

impl Bdev for Part {
    fn identify(&self) -> &Identify {
        &self.identify
    }

    fn submit(&self, io: Io) {
        let disk = &self.disk;
        match io.op {
            Op::Read { offset, mut buf } => {
                let range = self.place(offset)..self.place(offset + buf.len() as u64);
                disk.begin(false, range.clone());
                self.after(io.done, move |disk, done| {
                    disk.end(false, &range);
                    disk.read(range.start, &mut buf);
                    done.send(Ok(Some(buf)));
                });
            }
            Op::Write { offset, data, fua } => {
                let parts = data.iter().flat_map(|slice| slice.chunks(BLOCK));
                let blocks = (self.place(offset)..).zip(parts.map(Block::new)).collect();
                let id = disk.submit_write(Write { part: self.part, fua, torn: true, blocks });
                self.after(io.done, move |disk, done| {
                    disk.complete_write(id);
                    drop(data);
                    done.send(Ok(None));
                });
            }
            Op::Deallocate { offset, len } => {
                let places = self.place(offset)..self.place(offset + len);
                let blocks = places.map(|place| (place, disk.garbage.clone())).collect();
                let id = disk.submit_write(Write { part: self.part, fua: false, torn: false, blocks });
                self.after(io.done, move |disk, done| {
                    disk.complete_write(id);
                    done.send(Ok(None));
                });
            }
            Op::Flush => {
                let part = self.part;
                let id = {
                    let tape = &mut *disk.tape.borrow_mut();
                    tape.flushes += 1;
                    tape.events.push(Event::Flush { id: tape.flushes, part });
                    tape.flushes
                };
                self.after(io.done, move |disk, done| {
                    disk.tape.borrow_mut().events.push(Event::Flushed { id });
                    done.send(Ok(None));
                });
            }
        }
    }
}
