use belljar_api::image::RuntimeConfig;

use super::*;
use crate::launch::{Place, Request, Settings};

fn state() -> State {
    State { rows: 1, cols: 1, ring: VecDeque::new(), head: 0, clients: HashMap::new(), last_client: 0, end: None }
}

#[test]
fn sizes_are_clamped() {
    assert_eq!(clamp(0, 0), (1, 1));
    assert_eq!(clamp(24, 80), (24, 80));
    assert_eq!(clamp(u16::MAX, u16::MAX), (PTY_ROWS_MAX, PTY_COLS_MAX));
}

#[test]
fn the_ring_keeps_the_newest_bytes_and_their_positions() {
    let mut state = state();
    state.push(&vec![1; PTY_REPLAY_BYTES]);
    state.push(&[2; 10]);
    assert_eq!((state.ring.len(), state.oldest(), state.head), (PTY_REPLAY_BYTES, 10, PTY_REPLAY_BYTES as u64 + 10));
    assert_eq!(state.ring.back(), Some(&2));
    state.clients.insert(1, None);
    assert_eq!(state.lag(), 0);
    state.clients.insert(2, Some(state.head - 7));
    assert_eq!(state.lag(), 7);
}

/// Terminals with a clock that runs only while everything waits for it. What the programs do takes no time.
struct World {
    sessions: Arc<Sessions>,
    settings: Settings,
}

impl World {
    fn new() -> Self {
        let reaper = Reaper::start().expect("a reaper");
        let sessions = Arc::new(Sessions::new(reaper, Arc::new(Cgroups::disabled())));
        let place = Place::Hosted { home: std::env::temp_dir(), may_switch_user: false };
        Self { sessions, settings: Settings { place, runtime: RuntimeConfig::default() } }
    }

    fn create(&self, command: &str) -> Arc<Session> {
        let request = Request { command: command.to_owned(), ..Request::default() };
        let launch = Launch::prepare(&self.settings, request).expect("the program is there");
        let new = NewSession { launch, command: command.to_owned(), args: Vec::new(), rows: 24, cols: 80 };
        self.sessions.create(new).expect("a terminal")
    }

    fn lists(&self, session: &Session) -> bool {
        self.sessions.find(&session.id).is_some()
    }
}

/// Waits for the end of the session's program.
async fn ended(session: &Session) {
    let mut changes = session.changes();
    while session.is_alive() {
        changes.changed().await.expect("the session holds the sender");
    }
}

// One test, for there is one collector of children in a process.
#[tokio::test(start_paused = true)]
async fn nobody_there_ends_a_terminal_and_an_ended_one_is_kept_for_a_while() {
    const MOMENT: std::time::Duration = std::time::Duration::from_millis(10);
    let world = World::new();

    // A client keeps it alive for any time; its leaving starts the clock.
    let session = world.create("cat");
    let client = session.attach().expect("room for a client");
    sleep(3 * PTY_IDLE).await;
    assert!(session.is_alive() && world.lists(&session));
    session.detach(client);
    sleep(PTY_IDLE - MOMENT).await;
    assert!(session.is_alive() && world.lists(&session));
    // One that comes in time stops it, and it starts anew.
    let client = session.attach().expect("room for a client");
    sleep(2 * MOMENT).await;
    session.detach(client);
    sleep(PTY_IDLE - MOMENT).await;
    assert!(session.is_alive() && world.lists(&session));
    sleep(2 * MOMENT).await;
    assert!(!world.lists(&session) && *session.terminating.borrow());
    ended(&session).await;

    // A program that ends by itself can still be asked for. Its client keeps the clock from running before that.
    let session = world.create("true");
    let client = session.attach().expect("room for a client");
    ended(&session).await;
    session.detach(client);
    sleep(PTY_DEAD_KEPT - MOMENT).await;
    assert!(world.lists(&session));
    session.ready(session.attach().expect("room for a client"));
    sleep(2 * MOMENT).await;
    assert!(!world.lists(&session), "a client of a dead terminal does not keep it");
}
