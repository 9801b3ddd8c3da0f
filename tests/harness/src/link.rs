//! The harness's end of the stream to an agent.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::protocol::{self, Frame, HOST, Message};

/// An agent that has not said a word for this long is taken for dead. It speaks every second.
const SILENCE: Duration = Duration::from_secs(60);
/// How often somebody who waits looks whether the host still lives.
const CHECK: Duration = Duration::from_secs(1);
/// How many lines of the console are kept.
const CONSOLE_LINES: usize = 60;

/// Why a host did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Not a failure of what runs in it: the host itself hangs.
    #[error("the host hangs: it has said nothing for {} s{}", SILENCE.as_secs(), shown(console))]
    Hung {
        /// The last lines on its console.
        console: Vec<String>,
    },
    /// The host is gone.
    #[error("the host has ended{}", shown(console))]
    Lost {
        /// The last lines on its console.
        console: Vec<String>,
    },
    /// The agent could not do it.
    #[error("{0}")]
    Refused(String),
    /// Reading or writing on this side.
    #[error("cannot exchange data with the host")]
    Io(#[from] io::Error),
}

fn shown(console: &[String]) -> String {
    if console.is_empty() {
        return "; its console is empty".to_owned();
    }
    format!("; last on its console:\n{}", console.join("\n"))
}

/// The last lines that a host printed.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConsoleLog(Arc<Mutex<VecDeque<String>>>);

impl ConsoleLog {
    /// Keeps what comes out of `source` until it ends.
    pub(crate) fn follow(&self, source: impl Read + Send + 'static) {
        let log = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(source).split(b'\n') {
                let Ok(line) = line else { break };
                let mut lines = locked(&log.0);
                if lines.len() == CONSOLE_LINES {
                    lines.pop_front();
                }
                lines.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        });
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        locked(&self.0).iter().filter(|line| !line.is_empty()).cloned().collect()
    }
}

/// A connection to an agent that is ready.
pub(crate) struct Link {
    stream: Mutex<File>,
    /// Whoever copies a file has it for that time.
    pub(crate) mailbox: Mutex<File>,
    console: ConsoleLog,
    inbox: Mutex<Inbox>,
    next_id: AtomicU32,
}

/// Who waits for what the agent says.
struct Inbox {
    routes: HashMap<u32, Sender<Frame>>,
    last_heard: Instant,
    open: bool,
}

/// Everything that the agent says about one command or request.
pub(crate) struct Conversation {
    pub(crate) talk: Talk,
    inbox: Receiver<Frame>,
}

/// This side's half of a conversation.
#[derive(Clone)]
pub(crate) struct Talk {
    id: u32,
    link: Arc<Link>,
}

impl Link {
    /// Greets the agent, and waits until it is ready.
    ///
    /// `early` is whether the agent waits for the time before it starts at all.
    pub(crate) fn open(
        stream: File,
        mailbox: File,
        console: ConsoleLog,
        early: bool,
    ) -> Result<Arc<Self>, HostError> {
        let (ready, is_ready) = mpsc::channel();
        let routes = HashMap::from([(HOST, ready)]);
        let link = Arc::new(Self {
            stream: Mutex::new(stream.try_clone()?),
            mailbox: Mutex::new(mailbox),
            console,
            inbox: Mutex::new(Inbox { routes, last_heard: Instant::now(), open: true }),
            next_id: AtomicU32::new(HOST + 1),
        });
        let reader = Arc::downgrade(&link);
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            while let Ok(Some((id, frame))) = protocol::read(&mut stream) {
                match reader.upgrade() {
                    Some(link) => link.deliver(id, frame),
                    None => return,
                }
            }
            if let Some(link) = reader.upgrade() {
                let mut inbox = locked(&link.inbox);
                inbox.open = false;
                inbox.routes.clear();
            }
        });
        let greeting = Conversation { talk: Talk { id: HOST, link: Arc::clone(&link) }, inbox: is_ready };
        if early {
            greeting.expect(&Message::Hello)?;
            let time_ns = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |time| time.as_nanos() as u64);
            greeting.talk.say(Message::Begin { time_ns })?;
        }
        greeting.expect(&Message::Ready)?;
        drop(greeting);
        Ok(link)
    }

    /// Starts a conversation with a message.
    pub(crate) fn ask(self: &Arc<Self>, message: Message) -> Result<Conversation, HostError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, inbox) = mpsc::channel();
        {
            let mut inbox = locked(&self.inbox);
            if !inbox.open {
                return Err(self.lost());
            }
            inbox.routes.insert(id, sender);
        }
        let conversation = Conversation { talk: Talk { id, link: Arc::clone(self) }, inbox };
        conversation.talk.say(message)?;
        Ok(conversation)
    }

    /// Asks for something that is answered by one message.
    pub(crate) fn request(self: &Arc<Self>, message: Message) -> Result<Message, HostError> {
        match self.ask(message)?.next(None)? {
            Some(Frame::Message(Message::Failed(why))) => Err(HostError::Refused(why)),
            Some(Frame::Message(answer)) => Ok(answer),
            other => Err(HostError::Refused(format!("the agent answered {other:?}"))),
        }
    }

    fn deliver(&self, id: u32, frame: Frame) {
        let mut inbox = locked(&self.inbox);
        inbox.last_heard = Instant::now();
        if frame == Frame::Message(Message::Heartbeat) {
            return;
        }
        if let Some(route) = inbox.routes.get(&id) {
            // Nobody has to listen to the end.
            let _ = route.send(frame);
        }
    }

    fn lost(&self) -> HostError {
        HostError::Lost { console: self.console.lines() }
    }
}

impl Conversation {
    /// What comes next; none if nothing has come when `deadline` is reached.
    pub(crate) fn next(&self, deadline: Option<Instant>) -> Result<Option<Frame>, HostError> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            match self.inbox.recv_timeout(left.map_or(CHECK, |left| left.min(CHECK))) {
                Ok(frame) => return Ok(Some(frame)),
                Err(RecvTimeoutError::Disconnected) => return Err(self.talk.link.lost()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if locked(&self.talk.link.inbox).last_heard.elapsed() > SILENCE {
                return Err(HostError::Hung { console: self.talk.link.console.lines() });
            }
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
        }
    }

    fn expect(&self, expected: &Message) -> Result<(), HostError> {
        match self.next(None)? {
            Some(Frame::Message(message)) if message == *expected => Ok(()),
            other => Err(HostError::Refused(format!("the agent said {other:?} in place of {expected:?}"))),
        }
    }
}

impl Talk {
    pub(crate) fn say(&self, message: Message) -> Result<(), HostError> {
        self.send(&Frame::Message(message))
    }

    pub(crate) fn send(&self, frame: &Frame) -> Result<(), HostError> {
        match protocol::write(&mut *locked(&self.link.stream), self.id, frame) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(self.link.lost()),
            other => Ok(other?),
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        locked(&self.talk.link.inbox).routes.remove(&self.talk.id);
    }
}

/// What these locks guard stays whole whoever panics.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
