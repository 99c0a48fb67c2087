//! Look-ups by keys that strangers choose, such as API keys and callback tokens: many at a time in one question to the
//! database, each key asked for once however many wait for it. Found and missing keys are remembered for a moment.
//!
//! Known keys and new keys are in two queues, so that no flood of guesses delays known ones. This module does not know
//! the meaning of a key.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::{sync::oneshot, time::timeout};

use angarium_store as store;

/// The time for which a found value is used without asking again.
const BELIEVED: Duration = Duration::from_secs(3);
/// After this it is asked again, while it is still believed.
const RENEWED: Duration = Duration::from_secs(1);
/// The time for which a missing key counts as absent.
const ABSENT: Duration = Duration::from_secs(2);
/// How long a key counts as known after it was found.
const KNOWN: Duration = Duration::from_secs(3600);
/// The most keys that are remembered as found, and as absent.
const MOST_REMEMBERED: usize = 100_000;
/// The most keys of one question.
const BATCH: usize = 256;
/// The most keys of one line that wait.
const MOST_WAITING: usize = 8_192;
/// The most questions of one line at a time: each holds a connection to the database.
const QUESTIONS: usize = 2;
/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the database for many keys.
type Ask<K, V> = Box<dyn Fn(Vec<K>) -> BoxFuture<'static, store::Result<HashMap<K, V>>> + Send + Sync>;

/// The reason for which a key cannot be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    #[error("the database does not answer")]
    Database,
    #[error("too many keys wait to be looked up")]
    Busy,
}

type Answer<V> = Result<Option<V>, Unanswered>;

/// Finds values by their keys.
pub struct Lookup<K, V> {
    ask: Ask<K, V>,
    state: Mutex<State<K, V>>,
}

struct State<K, V> {
    found: HashMap<K, Found<V>>,
    absent: HashMap<K, Instant>,
    pending: HashMap<K, Vec<oneshot::Sender<Answer<V>>>>,
    known: Line<K>,
    strangers: Line<K>,
    /// Counts what made remembered values doubtful: an answer to an earlier question is not remembered.
    doubts: u64,
}

struct Found<V> {
    value: V,
    at: Instant,
    is_doubtful: bool,
}

/// Keys that wait, and the questions that are under way.
struct Line<K> {
    waiting: VecDeque<K>,
    questions: usize,
}

impl<K> Default for Line<K> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), questions: 0 }
    }
}

impl<K, V> Default for State<K, V> {
    fn default() -> Self {
        Self {
            found: HashMap::new(),
            absent: HashMap::new(),
            pending: HashMap::new(),
            known: Line::default(),
            strangers: Line::default(),
            doubts: 0,
        }
    }
}

/// The next step for a key.
enum Step<V> {
    Answered(Option<V>),
    Refused,
    Wait(oneshot::Receiver<Answer<V>>, Option<IsKnown>),
    /// The value is good, and is asked for again in the background.
    Renew(V, Option<IsKnown>),
}

type IsKnown = bool;

impl<K, V> Lookup<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub fn new(
        ask: impl Fn(Vec<K>) -> BoxFuture<'static, store::Result<HashMap<K, V>>> + Send + Sync + 'static,
    ) -> Self {
        Self { ask: Box::new(ask), state: Mutex::default() }
    }

    /// The value of a key, as it was at most a few seconds ago.
    ///
    /// # Errors
    /// When the database does not answer, or too many keys wait.
    pub async fn find(self: &Arc<Self>, key: &K) -> Result<Option<V>, Unanswered> {
        let step = self.state().step(key, Instant::now());
        match step {
            Step::Answered(value) => Ok(value),
            Step::Refused => Err(Unanswered::Busy),
            Step::Renew(value, question) => {
                self.begin(question);
                Ok(Some(value))
            }
            Step::Wait(answer, question) => {
                self.begin(question);
                answer.await.unwrap_or(Err(Unanswered::Database))
            }
        }
    }

    /// Marks some values to be asked for again before they are used.
    pub fn doubt(&self, which: impl Fn(&V) -> bool) {
        let mut state = self.state();
        state.doubts += 1;
        state.found.values_mut().filter(|found| which(&found.value)).for_each(|found| found.is_doubtful = true);
    }

    fn begin(self: &Arc<Self>, question: Option<IsKnown>) {
        if let Some(is_known) = question {
            tokio::spawn(Arc::clone(self).questions(is_known));
        }
    }

    /// Asks until no key of the line waits.
    async fn questions(self: Arc<Self>, is_known: IsKnown) {
        loop {
            let (keys, doubts) = {
                let mut state = self.state();
                let doubts = state.doubts;
                (state.line(is_known).take(), doubts)
            };
            if keys.is_empty() {
                return;
            }
            let answer = timeout(PATIENCE, (self.ask)(keys.clone())).await;
            let found = match answer {
                Ok(Ok(found)) => Ok(found),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "keys could not be looked up");
                    Err(Unanswered::Database)
                }
                Err(_) => Err(Unanswered::Database),
            };
            self.state().answered(keys, found, doubts, Instant::now());
        }
    }

    fn state(&self) -> MutexGuard<'_, State<K, V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash, V: Clone> State<K, V> {
    fn step(&mut self, key: &K, now: Instant) -> Step<V> {
        let is_known = match self.found.get(key) {
            Some(found) => {
                let age = now.duration_since(found.at);
                let value = (!found.is_doubtful && age < BELIEVED).then(|| found.value.clone());
                match value {
                    Some(value) if age < RENEWED || self.pending.contains_key(key) => {
                        return Step::Answered(Some(value));
                    }
                    Some(value) => {
                        self.pending.insert(key.clone(), Vec::new());
                        return Step::Renew(value, self.enqueue(key, true));
                    }
                    None => true,
                }
            }
            None if self.absent.get(key).is_some_and(|since| now.duration_since(*since) < ABSENT) => {
                return Step::Answered(None);
            }
            None => false,
        };
        let (sender, answer) = oneshot::channel();
        if let Some(waiting) = self.pending.get_mut(key) {
            waiting.push(sender);
            return Step::Wait(answer, None);
        }
        if self.line(is_known).waiting.len() >= MOST_WAITING {
            return Step::Refused;
        }
        self.pending.insert(key.clone(), vec![sender]);
        Step::Wait(answer, self.enqueue(key, is_known))
    }

    /// Adds a waiter for a key; returns whether a question must begin.
    fn enqueue(&mut self, key: &K, is_known: IsKnown) -> Option<IsKnown> {
        let line = self.line(is_known);
        line.waiting.push_back(key.clone());
        (line.questions < QUESTIONS).then(|| {
            line.questions += 1;
            is_known
        })
    }

    fn line(&mut self, is_known: IsKnown) -> &mut Line<K> {
        if is_known { &mut self.known } else { &mut self.strangers }
    }

    fn answered(&mut self, keys: Vec<K>, found: Result<HashMap<K, V>, Unanswered>, doubts: u64, now: Instant) {
        let is_doubtful = doubts != self.doubts;
        for key in keys {
            let answer = found.as_ref().map(|found| found.get(&key).cloned()).map_err(|error| *error);
            for waiting in self.pending.remove(&key).unwrap_or_default() {
                // The caller may be gone.
                let _ = waiting.send(answer.clone());
            }
            match answer {
                Ok(Some(value)) => {
                    self.absent.remove(&key);
                    make_room(&mut self.found, |found| now.duration_since(found.at) < KNOWN);
                    self.found.insert(key, Found { value, at: now, is_doubtful });
                }
                Ok(None) => {
                    self.found.remove(&key);
                    make_room(&mut self.absent, |since| now.duration_since(*since) < ABSENT);
                    self.absent.insert(key, now);
                }
                Err(_) => {}
            }
        }
    }
}

impl<K> Line<K> {
    /// Returns the keys of the next question; without any, the question ends.
    fn take(&mut self) -> Vec<K> {
        let most = self.waiting.len().min(BATCH);
        let keys: Vec<K> = self.waiting.drain(..most).collect();
        if keys.is_empty() {
            self.questions -= 1;
        }
        keys
    }
}

/// Limits the memory: at the limit old entries are removed, and then all of them.
fn make_room<K: Eq + Hash, V>(map: &mut HashMap<K, V>, is_new: impl Fn(&V) -> bool) {
    if map.len() >= MOST_REMEMBERED {
        map.retain(|_, value| is_new(value));
    }
    if map.len() >= MOST_REMEMBERED {
        map.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::{FutureExt, future::join_all};
    use tokio::sync::Semaphore;

    use super::*;

    /// Even numbers exist. Each question waits for a permit.
    struct Numbers {
        lookup: Arc<Lookup<u32, u32>>,
        questions: Arc<AtomicUsize>,
        answers: Arc<Semaphore>,
    }

    fn numbers(permits: usize) -> Numbers {
        let (questions, answers) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(permits)));
        let (count, semaphore) = (Arc::clone(&questions), Arc::clone(&answers));
        let ask = move |keys: Vec<u32>| {
            count.fetch_add(1, Ordering::SeqCst);
            let semaphore = Arc::clone(&semaphore);
            async move {
                semaphore.acquire().await.unwrap().forget();
                Ok(keys.into_iter().filter(|key| key % 2 == 0).map(|key| (key, key)).collect())
            }
            .boxed()
        };
        Numbers { lookup: Arc::new(Lookup::new(ask)), questions, answers }
    }

    #[tokio::test]
    async fn a_key_is_asked_for_once_however_many_wait() {
        let numbers = numbers(10);
        let found = join_all((0..1_000).map(|_| numbers.lookup.find(&2))).await;
        assert!(found.iter().all(|it| *it == Ok(Some(2))));
        assert_eq!(numbers.lookup.find(&3).await, Ok(None));
        assert_eq!(numbers.lookup.find(&3).await, Ok(None));
        assert_eq!(numbers.questions.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn guesses_share_questions_and_do_not_delay_who_is_known() {
        let numbers = numbers(1);
        assert_eq!(numbers.lookup.find(&2).await, Ok(Some(2)));
        numbers.lookup.doubt(|_| true);
        let guesses: Vec<_> = (0..2_000_u32)
            .map(|at| {
                let lookup = Arc::clone(&numbers.lookup);
                tokio::spawn(async move { lookup.find(&(2 * at + 1)).await })
            })
            .collect();
        tokio::task::yield_now().await;
        let lookup = Arc::clone(&numbers.lookup);
        let known = tokio::spawn(async move { lookup.find(&2).await });
        while numbers.questions.load(Ordering::SeqCst) < 1 + QUESTIONS + 1 {
            tokio::task::yield_now().await;
        }
        numbers.answers.add_permits(100);
        assert_eq!(known.await.unwrap(), Ok(Some(2)));
        for guess in guesses {
            assert_eq!(guess.await.unwrap(), Ok(None));
        }
        assert!(numbers.questions.load(Ordering::SeqCst) < 20);
    }

    #[tokio::test]
    async fn guesses_beyond_the_line_are_refused() {
        let numbers = numbers(0);
        let mut refused = 0;
        for at in 0..(MOST_WAITING + 4 * BATCH) as u32 {
            let found = numbers.lookup.find(&at).now_or_never();
            refused += usize::from(found == Some(Err(Unanswered::Busy)));
            tokio::task::yield_now().await;
        }
        assert_eq!(refused, 4 * BATCH - QUESTIONS);
    }

    #[test]
    fn what_was_valid_a_moment_ago_is_served_while_it_is_asked_again() {
        let mut state = State::<u32, u32>::default();
        let start = Instant::now();
        assert!(matches!(state.step(&2, start), Step::Wait(_, Some(false))));
        state.answered(vec![2], Ok(HashMap::from([(2, 2)])), 0, start);
        assert!(matches!(state.step(&2, start + RENEWED / 2), Step::Answered(Some(2))));
        assert!(matches!(state.step(&2, start + RENEWED), Step::Renew(2, Some(true))));
        assert!(matches!(state.step(&2, start + RENEWED), Step::Answered(Some(2))), "it is asked once");
        assert!(matches!(state.step(&2, start + BELIEVED), Step::Wait(_, None)), "a revoked key ends");
        state.answered(vec![2], Ok(HashMap::new()), 0, start + BELIEVED);
        assert!(matches!(state.step(&2, start + BELIEVED), Step::Answered(None)));
        assert!(matches!(state.step(&2, start + BELIEVED + ABSENT), Step::Wait(_, Some(false))));
    }

    #[test]
    fn an_answer_from_before_a_change_is_not_remembered() {
        let mut state = State::<u32, u32>::default();
        let start = Instant::now();
        assert!(matches!(state.step(&2, start), Step::Wait(_, Some(false))));
        state.doubts += 1;
        state.answered(vec![2], Ok(HashMap::from([(2, 2)])), 0, start);
        assert!(matches!(state.step(&2, start), Step::Wait(_, Some(true))));
    }
}
