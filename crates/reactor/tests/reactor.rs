//! What everything above relies on: tasks, time, scopes, wakes from other threads, and that a seed
//! decides the whole schedule.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests, too")]

use cobalt_base::Nanos;
use cobalt_reactor::sync::Notify;
use cobalt_reactor::{Ctx, Elapsed, Idle, Park, Poller, Reactor, ReactorConfig, Step, mailbox};
use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::Duration;

fn on_virtual<F: Future + 'static>(test: impl FnOnce(Ctx) -> F) -> F::Output {
    let reactor = Reactor::new_virtual(1).unwrap();
    let future = test(reactor.ctx());
    reactor.block_on(future)
}

fn adaptive(spin: Duration) -> Reactor {
    Reactor::new(ReactorConfig { idle: Idle::Adaptive(spin), ..ReactorConfig::default() }).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "the other thread of these tests")]
fn thread<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
    std::thread::spawn(body)
}

const MS: Duration = Duration::from_millis(1);

/// Notes when it is dropped.
struct OnDrop(Rc<Cell<bool>>);
impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

fn flag() -> (OnDrop, Rc<Cell<bool>>) {
    let dropped = Rc::new(Cell::new(false));
    (OnDrop(dropped.clone()), dropped)
}

#[test]
fn tasks_give_their_output_and_count() {
    on_virtual(|ctx| async move {
        let tasks: Vec<_> = (0..100).map(|i| ctx.spawn(async move { i * 2 })).collect();
        assert_eq!(ctx.stats().tasks, 101);
        let mut sum = 0;
        for task in tasks {
            sum += task.await;
        }
        assert_eq!(sum, 9900);
        assert_eq!(ctx.stats().tasks, 1);
        assert!(ctx.stats().polls >= 101);
    });
}

#[test]
fn a_task_whose_handle_is_dropped_runs_on() {
    on_virtual(|ctx| async move {
        let ran = Rc::new(Cell::new(false));
        let mark = ran.clone();
        drop(ctx.spawn(async move { mark.set(true) }));
        ctx.sleep(MS).await;
        assert!(ran.get());
    });
}

#[test]
fn an_aborted_task_is_dropped_where_it_stands() {
    on_virtual(|ctx| async move {
        let (guard, dropped) = flag();
        let task = ctx.spawn(async move {
            let _guard = guard;
            pending::<()>().await;
        });
        ctx.sleep(MS).await;
        assert!(!task.is_finished());
        task.abort();
        assert!(dropped.get() && task.is_finished());
        assert_eq!(task.join().await, None);
        // Aborting what has ended changes nothing, not even for the task that took its place.
        let ended = ctx.spawn(async {});
        ctx.sleep(MS).await;
        let next = ctx.spawn(async { 5 });
        ended.abort();
        assert_eq!(next.join().await, Some(5));
    });
}

#[test]
fn a_task_that_aborts_itself_ends_at_its_next_wait() {
    on_virtual(|ctx| async move {
        let (guard, dropped) = flag();
        let own: Rc<RefCell<Option<cobalt_reactor::JoinHandle<()>>>> = Rc::default();
        let (inner, reached) = (own.clone(), Rc::new(Cell::new(0)));
        let steps = reached.clone();
        let yielding = ctx.clone();
        let task = ctx.spawn(async move {
            let _guard = guard;
            inner.borrow().as_ref().unwrap().abort();
            steps.set(1);
            yielding.yield_now().await;
            steps.set(2);
        });
        *own.borrow_mut() = Some(task);
        ctx.sleep(MS).await;
        assert!(dropped.get());
        assert_eq!(reached.get(), 1);
        assert_eq!(ctx.stats().tasks, 1);
    });
}

#[test]
#[should_panic(expected = "the awaited task was aborted")]
fn awaiting_an_aborted_task_is_a_mistake() {
    on_virtual(|ctx| async move {
        let task = ctx.spawn(pending::<()>());
        task.abort();
        task.await;
    });
}

#[test]
fn timers_fire_in_order_and_time_jumps() {
    on_virtual(|ctx| async move {
        let log: Rc<RefCell<Vec<u64>>> = Rc::default();
        let year = Duration::from_secs(365 * 24 * 3600);
        for ms in [50, 10, 40, 20, 30] {
            let (own, log) = (ctx.clone(), log.clone());
            drop(ctx.spawn(async move {
                own.sleep(MS * ms).await;
                assert_eq!(own.now(), Nanos(0) + MS * ms);
                log.borrow_mut().push(u64::from(ms));
            }));
        }
        let wall = ctx.unix_time().0;
        ctx.sleep(year).await;
        assert_eq!(*log.borrow(), [10, 20, 30, 40, 50]);
        assert_eq!(ctx.now(), Nanos(0) + year);
        assert_eq!(ctx.unix_time().0 - wall, 365 * 24 * 3600 * 1000);
    });
}

#[test]
fn a_timeout_drops_its_future() {
    on_virtual(|ctx| async move {
        let (guard, dropped) = flag();
        let late = async move {
            let _guard = guard;
            pending::<()>().await;
        };
        assert_eq!(ctx.timeout(MS * 5, late).await, Err(Elapsed));
        assert!(dropped.get());
        assert_eq!(ctx.now(), Nanos(0) + MS * 5);
        let own = ctx.clone();
        assert_eq!(ctx.timeout(MS * 5, async move { own.sleep(MS * 4).await }).await, Ok(()));
        // What is ready when the time is up still counts.
        assert_eq!(ctx.timeout(Duration::ZERO, async { 3 }).await, Ok(3));
        ctx.sleep(MS * 100).await; // No timer of a finished timeout is left to fire.
        assert_eq!(ctx.now(), Nanos(0) + MS * 109);
    });
}

#[test]
fn killing_a_scope_takes_all_of_it_and_nothing_else() {
    on_virtual(|ctx| async move {
        let scope = ctx.scope();
        let nested = scope.ctx().scope();
        let (guards, flags): (Vec<_>, Vec<_>) = (0..3).map(|_| flag()).unzip();
        let ctxs = [scope.ctx(), nested.ctx(), ctx.clone()];
        for (guard, ctx) in guards.into_iter().zip(&ctxs) {
            drop(ctx.spawn(async move {
                let _guard = guard;
                pending::<()>().await;
            }));
        }
        ctx.sleep(MS).await;
        scope.kill();
        assert_eq!(flags.iter().map(|f| f.get()).collect::<Vec<_>>(), [true, true, false]);
        // Whoever still holds a context of the dead starts nothing.
        let ran = Rc::new(Cell::new(false));
        for ctx in [scope.ctx(), nested.ctx(), scope.ctx().scope().ctx()] {
            let mark = ran.clone();
            assert_eq!(ctx.spawn(async move { mark.set(true) }).join().await, None);
        }
        assert!(!ran.get());
        assert_eq!(ctx.scope().ctx().spawn(async { 1 }).join().await, Some(1));
    });
}

#[test]
fn a_task_that_kills_its_own_scope_ends_at_its_next_wait() {
    on_virtual(|ctx| async move {
        let scope = Rc::new(ctx.scope());
        let (own, inner) = (scope.clone(), scope.ctx());
        let (guard, dropped) = flag();
        let task = scope.ctx().spawn(async move {
            let _guard = guard;
            own.kill();
            drop(inner.spawn(async { panic!("started by the dead") }));
            inner.yield_now().await;
            panic!("ran on");
        });
        assert_eq!(task.join().await, None::<()>);
        ctx.yield_now().await;
        assert!(dropped.get());
    });
}

/// A program whose order of events depends on scheduling, randomness and time.
fn schedule(seed: u64) -> Vec<u64> {
    let reactor = Reactor::new_virtual(seed).unwrap();
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let log: Rc<RefCell<Vec<u64>>> = Rc::default();
        let notify = Rc::new(Notify::default());
        let tasks: Vec<_> = (0..20)
            .map(|task| {
                let (own, log, notify) = (ctx.clone(), log.clone(), notify.clone());
                ctx.spawn(async move {
                    for round in 0..20 {
                        match own.random_u64() % 4 {
                            0 => own.yield_now().await,
                            1 => own.sleep(MS * u32::try_from(own.random_u64() % 5).unwrap()).await,
                            2 => notify.notify_all(),
                            _ => drop(own.timeout(MS, notify.notified()).await),
                        }
                        log.borrow_mut().push(own.now().0 << 16 | task << 8 | round);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        log.take()
    })
}

#[test]
fn a_seed_decides_the_whole_schedule() {
    assert_eq!(schedule(7).len(), 400);
    assert_eq!(schedule(7), schedule(7));
    let order = |seed| {
        let mut log = schedule(seed);
        log.iter_mut().for_each(|event| *event &= 0xffff);
        log
    };
    assert_ne!(order(7), order(8));
    assert_ne!(order(8), order(9));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_deadlock_on_virtual_time_is_found() {
    on_virtual(|_| pending::<()>());
}

#[test]
fn a_wake_from_another_thread_ends_the_sleep() {
    let reactor = adaptive(Duration::ZERO);
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let (ask, mut asked) = mailbox::<u64>(1);
        let (answer, mut answered) = mailbox::<(u64, u64)>(1);
        // The echo lives on a reactor of its own, asleep as often as this one, and says how often that was.
        let echo = thread(move || {
            let reactor = adaptive(Duration::ZERO);
            let ctx = reactor.ctx();
            reactor.block_on(async move {
                while let Some(value) = asked.recv().await {
                    answer.send((value + 1, ctx.stats().parks)).await.unwrap();
                }
            });
        });
        // On a crowded machine the two may take turns without ever sleeping: they go on until both have slept.
        let (mut i, mut theirs) = (0, 0);
        while i < 200
            || (i < 1_000_000 && (ctx.stats().parks == 0 || ctx.stats().remote_wakes == 0 || theirs == 0))
        {
            ask.send(i).await.unwrap();
            let (echoed, parks) = answered.recv().await.unwrap();
            assert_eq!(echoed, i + 1);
            (i, theirs) = (i + 1, parks);
        }
        drop(ask);
        assert_eq!(answered.recv().await, None);
        echo.join().unwrap();
        assert!(ctx.stats().parks > 0 && theirs > 0);
        assert!(ctx.stats().remote_wakes > 0, "some wakes found it asleep");
        assert!(ctx.stats().remote_wakes <= ctx.stats().parks);
    });
}

/// How long the tests that look for a rare moment go on.
const AT_MOST: Duration = Duration::from_millis(500);

/// Turns of a spin loop, as many as `n` says: moves one thread's moment across the other's.
fn spin(n: u64) {
    for _ in 0..n {
        std::hint::spin_loop();
    }
}

#[test]
fn no_moment_of_falling_asleep_misses_a_wake() {
    let reactor = adaptive(Duration::ZERO);
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let (ask, mut asked) = mailbox::<u64>(1);
        let (answer, mut answered) = mailbox::<u64>(1);
        let echo = thread(move || {
            adaptive(Duration::from_micros(50)).block_on(async move {
                while let Some(value) = asked.recv().await {
                    spin(value % 300);
                    answer.send(value).await.unwrap();
                }
            });
        });
        for i in (0..10_000).take_while(|_| ctx.now() < Nanos(0) + AT_MOST) {
            ask.send(i).await.unwrap();
            // The timer is far away, and real: it ends the test where a wake is missed.
            let got = ctx.timeout(Duration::from_secs(20), answered.recv()).await;
            assert_eq!(got, Ok(Some(i)), "the wake of round {i} was missed");
        }
        drop(ask);
        echo.join().unwrap();
    });
}

/// Has another thread send in the very moment in which the reactor goes to sleep.
struct LastMoment(RefCell<Option<mailbox::Sender<u8>>>);

impl Poller for LastMoment {
    fn poll(&self) -> bool {
        false
    }
    fn arm(&self) -> Park {
        if let Some(sender) = self.0.take() {
            thread(move || sender.try_send(9).unwrap()).join().unwrap();
        }
        Park::Idle
    }
}

#[test]
fn what_comes_while_falling_asleep_is_seen_before_the_sleep() {
    let reactor = adaptive(Duration::ZERO);
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let (sender, mut receiver) = mailbox(1);
        let poller = Rc::new(LastMoment(RefCell::new(Some(sender))));
        let weak: Weak<dyn Poller> = Rc::<LastMoment>::downgrade(&poller);
        ctx.add_poller(weak);
        assert_eq!(ctx.timeout(Duration::from_secs(20), receiver.recv()).await, Ok(Some(9)));
        assert!(ctx.now() < Nanos(0) + Duration::from_secs(10), "it slept until the timer");
    });
}

#[test]
fn no_moment_of_joining_the_line_misses_room() {
    let reactor = adaptive(Duration::from_millis(1));
    let (sender, mut receiver) = mailbox::<u64>(1);
    let sending = thread(move || {
        let reactor = adaptive(Duration::from_millis(1));
        let ctx = reactor.ctx();
        reactor.block_on(async move {
            let mut sent = 0;
            while sent < 30_000 && ctx.now() < Nanos(0) + AT_MOST {
                let room = ctx.timeout(Duration::from_secs(20), sender.send(sent)).await;
                assert_eq!(room, Ok(Ok(())), "the room for message {sent} was missed");
                sent += 1;
            }
            sent
        })
    });
    let got = reactor.block_on(async move {
        let mut got = 0;
        while let Some(value) = receiver.recv().await {
            assert_eq!(value, got);
            got += 1;
            spin(value % 300);
        }
        got
    });
    assert_eq!(sending.join().unwrap(), got);
}

#[test]
fn no_message_of_many_threads_is_missed() {
    const SENDERS: u64 = 4;
    const EACH: u64 = 1000;
    let reactor = adaptive(Duration::from_micros(1));
    let (sender, mut receiver) = mailbox::<u64>(3); // Full nearly always: senders wait, and are woken.
    let threads: Vec<_> = (0..SENDERS)
        .map(|n| {
            let sender = sender.clone();
            thread(move || {
                adaptive(Duration::ZERO).block_on(async move {
                    for i in 0..EACH {
                        sender.send(n * EACH + i).await.unwrap();
                    }
                });
            })
        })
        .collect();
    drop(sender);
    let seen = reactor.block_on(async move {
        let mut next = vec![0; SENDERS as usize];
        while let Some(value) = receiver.recv().await {
            let (n, i) = ((value / EACH) as usize, value % EACH);
            assert_eq!(next[n], i, "each sender's messages keep their order");
            next[n] += 1;
        }
        next
    });
    threads.into_iter().for_each(|t| t.join().unwrap());
    assert_eq!(seen, vec![EACH; SENDERS as usize]);
}

#[test]
fn an_idle_reactor_sleeps() {
    let reactor = adaptive(Duration::ZERO);
    let ctx = reactor.ctx();
    reactor.block_on(async move { ctx.sleep(MS * 100).await });
    let stats = reactor.stats();
    assert!(stats.turns < 20, "{stats:?}");
    assert!((1..20).contains(&stats.parks), "{stats:?}");
    assert!(stats.busy_ns < 50_000_000, "{stats:?}");
}

/// Readable when the other end of its pipe was written.
struct Pipe {
    read: OwnedFd,
    got: Cell<u32>,
    armed: Cell<u32>,
    disarmed: Cell<u32>,
    done: Notify,
}

impl Poller for Pipe {
    fn poll(&self) -> bool {
        let mut set =
            [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&self.read), nix::poll::PollFlags::POLLIN)];
        if nix::poll::poll(&mut set, nix::poll::PollTimeout::ZERO).unwrap() == 0 {
            return false;
        }
        nix::unistd::read(&self.read, &mut [0]).unwrap();
        self.got.set(self.got.get() + 1);
        self.done.notify_all();
        true
    }
    fn arm(&self) -> Park {
        self.armed.set(self.armed.get() + 1);
        Park::Fd(self.read.as_raw_fd())
    }
    fn disarm(&self) {
        self.disarmed.set(self.disarmed.get() + 1);
    }
}

#[test]
fn a_descriptor_of_a_poller_ends_the_sleep() {
    let reactor = adaptive(Duration::ZERO);
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let (read, write) = nix::unistd::pipe().unwrap();
        let pipe = Rc::new(Pipe {
            read,
            got: Cell::new(0),
            armed: Cell::new(0),
            disarmed: Cell::new(0),
            done: Notify::default(),
        });
        let poller: Weak<dyn Poller> = Rc::<Pipe>::downgrade(&pipe);
        ctx.add_poller(poller);
        let (go, mut gone) = mailbox::<()>(1);
        let other = thread(move || {
            adaptive(Duration::ZERO).block_on(async move {
                for _ in 0..100 {
                    gone.recv().await;
                    nix::unistd::write(&write, b"x").unwrap();
                }
            });
        });
        for round in 1..=100 {
            let done = pipe.done.notified();
            go.send(()).await.unwrap();
            done.await;
            assert_eq!(pipe.got.get(), round);
        }
        other.join().unwrap();
        assert!(pipe.armed.get() > 0);
        assert_eq!(pipe.armed.get(), pipe.disarmed.get());
        drop(pipe);
        ctx.yield_now().await;
        ctx.sleep(MS).await; // A poller that is gone is forgotten.
    });
}

#[test]
fn blocking_calls_run_elsewhere_and_their_panics_come_back() {
    let reactor = adaptive(Duration::ZERO);
    let ctx = reactor.ctx();
    reactor.block_on(async move {
        let here = std::thread::current().id();
        assert_ne!(ctx.blocking(|| std::thread::current().id()).await, here);
        let own = ctx.clone();
        let task = ctx.spawn(async move {
            let call = std::panic::AssertUnwindSafe(own.blocking(|| -> u8 { panic!("inside the call") }));
            futures::FutureExt::catch_unwind(call).await
        });
        let panic = task.await.unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"inside the call"));
        assert_eq!(ctx.blocking(|| 3).await, 3, "the control thread goes on");
    });
    on_virtual(|ctx| async move {
        let here = std::thread::current().id();
        assert_eq!(ctx.blocking(|| std::thread::current().id()).await, here);
    });
}

#[test]
fn steps_reach_the_hook() {
    let passed: Rc<RefCell<Vec<u8>>> = Rc::default();
    let log = passed.clone();
    let config = ReactorConfig {
        on_step: Some(Rc::new(move |step: Step| log.borrow_mut().push(step.number()))),
        ..ReactorConfig::default()
    };
    let reactor = Reactor::new_virtual_with(1, config).unwrap();
    let ctx = reactor.ctx();
    reactor.block_on(async move { Step::ALL.iter().for_each(|step| ctx.step(*step)) });
    assert_eq!(*passed.borrow(), (1..=16).collect::<Vec<u8>>());
}

#[test]
fn a_dropped_reactor_drops_its_tasks_and_what_they_start() {
    let (guard, dropped) = flag();
    let (late, late_dropped) = flag();
    struct Starts(Ctx, Option<OnDrop>);
    impl Drop for Starts {
        fn drop(&mut self) {
            let guard = self.1.take();
            drop(self.0.spawn(async move {
                let _guard = guard;
                pending::<()>().await;
            }));
        }
    }
    let reactor = Reactor::new_virtual(1).unwrap();
    let ctx = reactor.ctx();
    let starts = Starts(ctx.clone(), Some(late));
    drop(ctx.spawn(async move {
        let _both = (guard, starts);
        pending::<()>().await;
    }));
    let own = ctx.clone();
    reactor.block_on(async move { own.sleep(MS).await });
    drop(reactor);
    assert!(dropped.get() && late_dropped.get());
}

#[test]
fn a_task_that_never_rests_lets_the_others_run() {
    on_virtual(|ctx| async move {
        // It wakes itself for ever, and virtual time stands still meanwhile:
        // it must let the others run all the same.
        let busy = ctx.spawn(poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        let ran = Rc::new(Cell::new(0));
        let tasks: Vec<_> = (0..1000)
            .map(|_| {
                let ran = ran.clone();
                ctx.spawn(async move { ran.set(ran.get() + 1) })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        assert_eq!(ran.get(), 1000);
        busy.abort();
        ctx.sleep(MS).await;
    });
}
