//! The sockets of this node's HTTP clients: how many are open, which of them wait for a request, and
//! which have to end. One table and one sweep stand for a timer a socket.
//!
//! It reads and writes nothing; the task of a socket does, and ends on request.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// Further sockets, for the operator's paths alone, so that they answer while all others are taken.
const RESERVED: usize = 32;
/// A reserved socket has this long for its head.
const RESERVED_HEADER: Duration = Duration::from_secs(2);
/// The time after which an answer is dropped if the client reads none of it; longer than the pause between two
/// heartbeats of a stream of events.
const ANSWER_STALLS: Duration = Duration::from_secs(60);
/// At a limit, this part of the sockets is closed at a time, so that the search for them costs little.
const CLOSED_SHARE: usize = 64;

/// How many sockets there may be, and how long each may take.
#[derive(Debug, Clone, Copy)]
pub struct SocketLimits {
    pub sockets: usize,
    pub of_address: usize,
    /// From a head's first byte to its last.
    pub header: Duration,
    /// From one request's end to the next one's first byte.
    pub idle: Duration,
}

/// The reason for which a socket ends. Of several reasons the last one of this list counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// After the request that is under way, if one is.
    Graceful = 1,
    /// Its head did not come in time.
    Late = 2,
    /// It waits for a request, and for too long, or others need its place.
    Idle = 3,
    /// Its client takes nothing of an answer.
    Stalled = 4,
}

/// One client's socket.
#[derive(Debug)]
pub struct Socket {
    client: IpAddr,
    /// Serves the operator's paths alone.
    pub is_reserved: bool,
    began: Instant,
    /// Requests from their head to the last byte of their answer.
    requests: AtomicU32,
    /// The requests whose answer has not begun.
    handled: AtomicU32,
    /// When the head that is on its way began, in milliseconds; 0 if none is.
    head_since: AtomicU64,
    /// When something of an answer was taken last, in milliseconds.
    progress: AtomicU64,
    end: AtomicU8,
    told: Notify,
}

impl Socket {
    fn new(client: IpAddr, is_reserved: bool, began: Instant) -> Self {
        let socket = Self {
            client,
            is_reserved,
            began,
            requests: AtomicU32::new(0),
            handled: AtomicU32::new(0),
            head_since: AtomicU64::new(0),
            progress: AtomicU64::new(0),
            end: AtomicU8::new(0),
            told: Notify::new(),
        };
        socket.progressed();
        socket
    }

    /// Milliseconds since the server's start, and never 0.
    fn now(&self) -> u64 {
        millis(self.began)
    }

    /// Notes whether a head is on its way.
    pub fn set_in_head(&self, is_in_head: bool) {
        if is_in_head == (self.head_since.load(Ordering::Relaxed) == 0) {
            self.head_since.store(if is_in_head { self.now() } else { 0 }, Ordering::Relaxed);
        }
    }

    /// Begins a request; dropping the returned value ends it.
    pub fn begin(self: &Arc<Self>) -> Request {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.handled.fetch_add(1, Ordering::Relaxed);
        Request { socket: Arc::clone(self), is_answered: false }
    }

    fn progressed(&self) {
        self.progress.store(self.now(), Ordering::Relaxed);
    }

    /// Asks its task to end it.
    pub fn end(&self, end: End) {
        self.end.fetch_max(end as u8, Ordering::Relaxed);
        self.told.notify_one();
    }

    /// Waits until the socket has to end.
    pub async fn told(&self) -> End {
        self.told.notified().await;
        match self.end.load(Ordering::Relaxed) {
            4 => End::Stalled,
            // A request has begun in the meantime: it is served, and the socket ends with it.
            _ if !self.is_idle() => End::Graceful,
            3 => End::Idle,
            2 => End::Late,
            _ => End::Graceful,
        }
    }

    fn is_idle(&self) -> bool {
        self.requests.load(Ordering::Relaxed) == 0
    }

    fn state(&self) -> State {
        State {
            requests: self.requests.load(Ordering::Relaxed),
            handled: self.handled.load(Ordering::Relaxed),
            head_since: self.head_since.load(Ordering::Relaxed),
            progress: self.progress.load(Ordering::Relaxed),
        }
    }
}

/// The state by which a socket is judged.
#[derive(Debug, Clone, Copy)]
struct State {
    requests: u32,
    handled: u32,
    head_since: u64,
    progress: u64,
}

impl State {
    /// Whether the socket has used up its time; times are in milliseconds since the server's start.
    fn due(&self, now: u64, header: Duration, idle: Duration) -> Option<End> {
        let passed = |since: u64, limit: Duration| u128::from(now.saturating_sub(since)) >= limit.as_millis();
        if self.requests > 0 {
            return (self.handled == 0 && passed(self.progress, ANSWER_STALLS)).then_some(End::Stalled);
        }
        if self.head_since > 0 {
            return passed(self.head_since, header).then_some(End::Late);
        }
        passed(self.progress, idle).then_some(End::Idle)
    }
}

/// A request that is under way; dropping it ends it.
#[derive(Debug)]
pub struct Request {
    socket: Arc<Socket>,
    is_answered: bool,
}

impl Request {
    /// The answer begins.
    pub fn answered(&mut self) {
        if !self.is_answered {
            self.is_answered = true;
            self.socket.progressed();
            self.socket.handled.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A part of the answer is taken.
    pub fn progressed(&self) {
        self.socket.progressed();
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.answered();
        self.socket.progressed();
        self.socket.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All sockets of the node.
#[derive(Debug)]
pub struct Sockets {
    limits: SocketLimits,
    began: Instant,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Arc<Socket>>,
    reserved: usize,
    of_client: HashMap<IpAddr, usize>,
}

/// A socket's place in the table; dropping it gives it back.
#[derive(Debug)]
pub struct RequestPlace {
    id: u64,
    sockets: Arc<Sockets>,
    pub socket: Arc<Socket>,
}

impl Drop for RequestPlace {
    fn drop(&mut self) {
        self.sockets.table().remove(self.id);
    }
}

impl Sockets {
    pub fn new(limits: SocketLimits) -> Arc<Self> {
        Arc::new(Self { limits, began: Instant::now(), table: Mutex::default() })
    }

    /// Takes a new socket in. At a limit those that have waited longest for a request make room; where none waits, the
    /// socket is a reserved one. `None` if all of those are taken too.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Option<RequestPlace> {
        let client = client(address);
        let mut table = self.table();
        if table.count_of(client) >= self.limits.of_address {
            table.close_idle(self.limits.of_address, |socket| socket.client == client && !socket.is_reserved);
        }
        if table.regular() >= self.limits.sockets {
            table.close_idle(self.limits.sockets, |socket| !socket.is_reserved);
        }
        let is_full = table.count_of(client) >= self.limits.of_address || table.regular() >= self.limits.sockets;
        if is_full && table.reserved >= RESERVED {
            table.close_idle(RESERVED, |socket| socket.is_reserved);
        }
        if is_full && table.reserved >= RESERVED {
            return None;
        }
        let (id, socket) = table.insert(Socket::new(client, is_full, self.began));
        Some(RequestPlace { id, sockets: Arc::clone(self), socket })
    }

    /// Closes some of the sockets that wait for a request: the process has no file descriptor left.
    pub fn close_some(&self) {
        let mut table = self.table();
        let open = table.regular();
        table.close_idle(open, |socket| !socket.is_reserved);
    }

    /// Ends the sockets that have used up their time.
    pub fn sweep(&self) {
        let now = millis(self.began);
        for socket in self.table().open.values() {
            let header = if socket.is_reserved { RESERVED_HEADER } else { self.limits.header };
            let idle = if socket.is_reserved { RESERVED_HEADER } else { self.limits.idle };
            if let Some(end) = socket.state().due(now, header, idle) {
                socket.end(end);
            }
        }
    }

    /// Ends all of them after the requests that are under way.
    pub fn drain(&self) {
        self.table().open.values().for_each(|socket| socket.end(End::Graceful));
    }

    /// How many are open, and how many of these wait for a request.
    pub fn usage(&self) -> (usize, usize) {
        let table = self.table();
        (table.open.len(), table.open.values().filter(|socket| socket.is_idle()).count())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn regular(&self) -> usize {
        self.open.len() - self.reserved
    }

    fn count_of(&self, client: IpAddr) -> usize {
        self.of_client.get(&client).copied().unwrap_or(0)
    }

    fn insert(&mut self, socket: Socket) -> (u64, Arc<Socket>) {
        self.next += 1;
        if socket.is_reserved {
            self.reserved += 1;
        } else {
            *self.of_client.entry(socket.client).or_default() += 1;
        }
        let socket = Arc::new(socket);
        self.open.insert(self.next, Arc::clone(&socket));
        (self.next, socket)
    }

    fn remove(&mut self, id: u64) {
        let Some(socket) = self.open.remove(&id) else { return };
        if socket.is_reserved {
            self.reserved -= 1;
        } else if let Some(count) = self.of_client.get_mut(&socket.client) {
            *count -= 1;
            if *count == 0 {
                self.of_client.remove(&socket.client);
            }
        }
    }

    /// Closes a share of `limit` sockets: those that have waited longest for a request.
    fn close_idle(&mut self, limit: usize, chosen: impl Fn(&Socket) -> bool) {
        let idle = self.open.iter().filter(|(_, socket)| socket.is_idle() && chosen(socket));
        let mut idle: Vec<_> = idle.map(|(id, socket)| (socket.progress.load(Ordering::Relaxed), *id)).collect();
        idle.sort_unstable();
        for (_, id) in idle.into_iter().take((limit / CLOSED_SHARE).max(1)) {
            if let Some(socket) = self.open.get(&id) {
                socket.end(End::Idle);
            }
            self.remove(id);
        }
    }
}

fn millis(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// Returns the client of a socket: an IPv4 address, or the /64 network of an IPv6 one.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(sockets: usize, of_address: usize) -> Arc<Sockets> {
        let second = Duration::from_secs(1);
        Sockets::new(SocketLimits { sockets, of_address, header: second, idle: second })
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn a_waiting_socket_makes_room() {
        let sockets = sockets(2, 2);
        let places: Vec<_> = (0..3).map(|at| sockets.admit(address(at)).unwrap()).collect();
        assert_eq!(sockets.usage(), (2, 2));
        assert_eq!(places[0].socket.end.load(Ordering::Relaxed), End::Idle as u8);
        assert!(!places[2].socket.is_reserved);
        drop(places);
        assert_eq!(sockets.usage(), (0, 0));
        assert!(sockets.table().of_client.is_empty());
    }

    #[test]
    fn where_none_waits_a_few_are_reserved() {
        let sockets = sockets(1, 1);
        let busy = sockets.admit(address(1)).unwrap();
        let request = busy.socket.begin();
        let reserved: Vec<_> = (0..RESERVED).map(|_| sockets.admit(address(2)).unwrap()).collect();
        assert!(reserved.iter().all(|place| place.socket.is_reserved));
        let requests: Vec<_> = reserved.iter().map(|place| place.socket.begin()).collect();
        assert!(sockets.admit(address(3)).is_none(), "all of them work");
        drop(requests);
        assert!(sockets.admit(address(3)).is_some_and(|place| place.socket.is_reserved));
        drop(request);
        assert!(sockets.admit(address(3)).is_some_and(|place| !place.socket.is_reserved));
    }

    #[test]
    fn an_address_has_a_limit_of_its_own() {
        let sockets = sockets(4, 2);
        let places: Vec<_> = (0..2).map(|_| sockets.admit(address(1)).unwrap()).collect();
        let requests: Vec<_> = places.iter().map(|place| place.socket.begin()).collect();
        assert!(sockets.admit(address(1)).unwrap().socket.is_reserved);
        assert!(!sockets.admit(address(2)).unwrap().socket.is_reserved);
        drop(requests);
        assert!(!sockets.admit(address(1)).unwrap().socket.is_reserved);
        let network = |text: &str| client(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), address(1));
    }

    #[test]
    fn each_part_of_a_request_has_its_time() {
        let (header, idle) = (Duration::from_secs(10), Duration::from_secs(75));
        let due = |state: State, now: u64| state.due(now, header, idle);
        let waiting = State { requests: 0, handled: 0, head_since: 0, progress: 1_000 };
        assert_eq!(due(waiting, 75_999), None);
        assert_eq!(due(waiting, 76_000), Some(End::Idle));
        let in_head = State { head_since: 1_000, ..waiting };
        assert_eq!(due(in_head, 10_999), None);
        assert_eq!(due(in_head, 11_000), Some(End::Late));
        let handled = State { requests: 1, handled: 1, ..waiting };
        assert_eq!(due(handled, 10_000_000), None, "a handler has its own limits");
        let answered = State { requests: 1, handled: 0, ..waiting };
        assert_eq!(due(answered, 60_999), None);
        assert_eq!(due(answered, 61_000), Some(End::Stalled));
    }
}
