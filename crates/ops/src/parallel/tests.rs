use super::{team::Team, *};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

/// Runs a region and checks that every task was done once.
fn done_once(team: &Team, tasks: usize, members: usize) {
    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    team.run(tasks, members, &|task| {
        counts[task].fetch_add(1, Ordering::Relaxed);
    });
    assert!(
        counts.iter().all(|count| count.load(Ordering::Relaxed) == 1),
        "{tasks} tasks, {members} members"
    );
}

#[test]
fn every_task_is_done_once_whatever_the_threads() {
    let team = Team::new();
    for round in 0..200 {
        for members in [1, 2, 3, 9, 100] {
            done_once(&team, round % 37, members);
        }
    }
}

#[test]
fn a_team_is_awake_between_regions_and_not_for_long() {
    let until = |wanted: bool, team: &Team, before: &dyn Fn()| {
        let start = std::time::Instant::now();
        while team.is_awake() != wanted {
            assert!(start.elapsed() < Duration::from_secs(20), "awake: {wanted} was expected");
            before();
            thread::sleep(Duration::from_micros(20));
        }
    };
    let team = Team::new();
    assert!(!team.is_awake(), "nobody is there yet");
    until(true, &team, &|| done_once(&team, 8, 2));
    until(false, &team, &|| ());
    team.run(2, 2, &|_| assert!(!team.is_awake(), "the team is taken"));
}

#[test]
fn members_who_sleep_come_back() {
    let team = Team::new();
    for _ in 0..5 {
        done_once(&team, 8, 3);
        thread::sleep(Duration::from_millis(3));
    }
    // The second task waits for the first, on another thread: that thread must have been woken.
    thread::sleep(Duration::from_millis(3));
    let here = AtomicUsize::new(0);
    team.run(2, 2, &|_| {
        here.fetch_add(1, Ordering::SeqCst);
        while here.load(Ordering::SeqCst) < 2 {
            thread::yield_now();
        }
    });
}

#[test]
fn a_caller_who_was_kept_waiting_works_alone_for_a_while() {
    let team = Team::new();
    let caller = thread::current().id();
    let here = AtomicUsize::new(0);
    team.run(2, 2, &|_| {
        here.fetch_add(1, Ordering::SeqCst);
        while here.load(Ordering::SeqCst) < 2 {
            thread::yield_now();
        }
        if thread::current().id() != caller {
            thread::sleep(Duration::from_millis(50));
        }
    });
    team.run(8, 2, &|_| {
        assert_eq!(thread::current().id(), caller);
        thread::sleep(Duration::from_millis(1));
    });
    (0..2000).for_each(|_| done_once(&team, 8, 2));
}

#[test]
fn a_team_ends_with_its_threads() {
    for _ in 0..20 {
        let team = Team::new();
        done_once(&team, 5, 4);
        drop(team);
    }
}

#[test]
fn panics_reach_the_caller_and_leave_the_team_whole() {
    let team = Team::new();
    for bad in [0, 3, 7] {
        for _ in 0..50 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                team.run(8, 3, &|task| assert!(task != bad, "task {task}"));
            }));
            let payload = result.unwrap_err();
            assert_eq!(payload.downcast_ref::<String>(), Some(&format!("task {bad}")));
        }
        done_once(&team, 8, 3);
    }
}

#[test]
fn nested_and_concurrent_callers() {
    let total = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..200 {
                    brief(5, |_| {
                        brief(3, |_| {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                }
            });
        }
    });
    assert_eq!(total.load(Ordering::Relaxed), 6 * 200 * 15);
}

#[test]
fn from_within_rayon() {
    let total = AtomicUsize::new(0);
    (0..64).into_par_iter().for_each(|_| {
        brief(4, |_| {
            total.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert_eq!(total.load(Ordering::Relaxed), 256);
}

#[test]
fn row_blocks_cover_all_rows() {
    for (rows, block) in [(0, 4), (1, 4), (4, 4), (5, 4), (9, 0), (1000, 3)] {
        let total = AtomicUsize::new(0);
        for_each_row_block(rows, block, |range| {
            assert!(range.start % block.max(1) == 0 && range.len() <= block.max(1));
            total.fetch_add(range.len(), Ordering::Relaxed);
        });
        assert_eq!(total.load(Ordering::Relaxed), rows);
    }
}
