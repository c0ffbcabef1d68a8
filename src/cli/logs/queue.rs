//! The queue between what is logged and the reader of standard error.
//!
//! A line is copied into a bounded buffer, and one thread of its own writes the buffer out. Invariants: to log
//! never waits for the reader; lines come out whole and in order; a line that finds no room is dropped and counted,
//! and once lines are read again a log line tells how many there were.

use std::io::{self, ErrorKind, Write};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;
use xpando_node::internals::actors::timer;
use xpando_node::internals::io::metrics::{Count, Metrics};

/// Bytes that wait for the reader at most.
const ROOM: usize = 1024 * 1024;
/// Between two lines that tell how many lines were dropped.
const MINUTE: Duration = Duration::from_secs(60);
/// Wait before a descriptor that does not block is tried again.
const RETRY: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    /// Lines that were dropped, and that no line has told of yet.
    dropped: u64,
    closed: bool,
}

struct Shared {
    waiting: Mutex<Waiting>,
    news: Condvar,
    metrics: Metrics,
    /// The thread that writes; what it tells of dropped lines finds room.
    writer: OnceLock<ThreadId>,
}

impl Shared {
    fn is_writer(&self) -> bool {
        self.writer.get() == Some(&thread::current().id())
    }
}

/// Takes log lines. Clones fill the same buffer.
#[derive(Clone)]
pub(super) struct Queue(Arc<Shared>);

/// The thread that writes the lines.
pub(super) struct Writer {
    queue: Queue,
    ended: Receiver<()>,
}

impl Queue {
    /// A queue whose lines are written to `out`.
    ///
    /// # Errors
    /// The system has no thread to spare.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        metrics: &Metrics,
    ) -> io::Result<(Self, Writer)> {
        let (waiting, news, writer) = (Mutex::default(), Condvar::new(), OnceLock::new());
        let shared = Shared { waiting, news, metrics: metrics.clone(), writer };
        let queue = Self(Arc::new(shared));
        let (ends, ended) = channel::<()>();
        let lines = queue.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            lines.0.writer.get_or_init(|| thread::current().id());
            lines.write_to(out);
            drop(ends);
        })?;
        Ok((queue.clone(), Writer { queue, ended }))
    }

    fn put(&self, line: &[u8]) {
        let mut waiting = self.0.waiting.lock();
        if waiting.lines.len() + line.len() > ROOM && !self.0.is_writer() {
            waiting.dropped += 1;
            drop(waiting);
            return self.0.metrics.count(Count::LogLines, "unread");
        }
        waiting.lines.extend_from_slice(line);
        drop(waiting);
        self.0.news.notify_one();
    }

    /// The lines that wait; none when it is time to tell of dropped ones; `None` at the end.
    fn take(&self, tell_at: Option<Instant>) -> Option<Vec<u8>> {
        let mut waiting = self.0.waiting.lock();
        loop {
            if !waiting.lines.is_empty() {
                return Some(std::mem::take(&mut waiting.lines));
            }
            if waiting.closed {
                return None;
            }
            let news = &self.0.news;
            let tell_at = tell_at.filter(|_| waiting.dropped > 0);
            match tell_at.map(|at| at.saturating_duration_since(timer::now())) {
                None => news.wait(&mut waiting),
                Some(Duration::ZERO) => return Some(Vec::new()),
                Some(wait) => {
                    news.wait_for(&mut waiting, wait);
                }
            };
        }
    }

    fn write_to(&self, mut out: impl Write) {
        let (mut tell_at, mut works, mut torn) = (timer::now(), true, false);
        while let Some(mut lines) = self.take(works.then_some(tell_at)) {
            if torn {
                lines.insert(0, b'\n');
            }
            let written = write(&mut out, &lines);
            let (done, rest) = lines.split_at(written);
            torn = done.last().map_or(torn, |last| *last != b'\n');
            works = rest.is_empty();
            if !works {
                let dropped = rest.iter().filter(|byte| **byte == b'\n').count();
                let dropped = u64::try_from(dropped).unwrap_or(u64::MAX);
                self.0.waiting.lock().dropped += dropped;
                self.0.metrics.add(Count::LogLines, "failed", dropped);
            } else if tell_at <= timer::now() {
                let dropped = std::mem::take(&mut self.0.waiting.lock().dropped);
                if dropped > 0 {
                    tell_at = timer::now() + MINUTE;
                    tracing::warn!(
                        dropped,
                        "log lines were dropped: what reads standard error was too slow"
                    );
                }
            }
        }
    }
}

/// Writes until all is written, or the system refuses more; how much was. Waits on a descriptor that does not block.
fn write(out: &mut impl Write, lines: &[u8]) -> usize {
    let mut done = 0;
    while let Some(rest @ [_, ..]) = lines.get(done..) {
        match out.write(rest) {
            Ok(0) => break,
            Ok(written) => done += written,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY),
            Err(_gone_or_full) => break,
        }
    }
    done
}

impl Writer {
    /// Waits until what was logged is written, for so long at most. What is logged later is lost.
    pub(super) fn close(self, within: Duration) {
        self.queue.0.waiting.lock().closed = true;
        self.queue.0.news.notify_one();
        // The thread ends, or the reader does not read: nothing more can be done.
        self.ended.recv_timeout(within).unwrap_or(());
    }
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn dropped(metrics: &Metrics, cause: &str) -> u64 {
        let text = metrics.text().unwrap();
        let name = format!("xpando_log_lines_lost_total{{reason=\"{cause}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0)
    }

    fn line(number: usize) -> Vec<u8> {
        format!("line {number} {}\n", "x".repeat(1000)).into_bytes()
    }

    fn read_all(mut from: UnixStream) -> String {
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn lines_that_nobody_reads_are_dropped_and_counted_and_the_rest_comes_whole_and_in_order() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let metrics = Metrics::default();
        let (queue, thread) = Queue::start(writer, &metrics).unwrap();
        let many = 4 * ROOM / 1000;
        // Returns although nobody reads: that is the point.
        (0..many).for_each(|number| queue.put(&line(number)));
        let lost = dropped(&metrics, "unread");
        assert!(lost > 1000, "{lost}");

        let reading = thread::spawn(move || read_all(reader));
        thread.close(SOON);
        let text = reading.join().unwrap();
        let came: Vec<_> = text.lines().collect();
        assert_eq!(came.len() + usize::try_from(lost).unwrap(), many);
        // Which ones were dropped depends on when the writer took what waited.
        let number = |came: &&str| came.split(' ').nth(1).unwrap().parse::<usize>().unwrap();
        let numbers: Vec<_> = came.iter().map(number).collect();
        assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
        for (number, came) in numbers.iter().zip(&came) {
            assert_eq!(format!("{came}\n").as_bytes(), line(*number));
        }
    }

    #[test]
    fn the_end_does_not_wait_for_a_reader_that_does_not_read() {
        let (_reader, writer) = UnixStream::pair().unwrap();
        let (queue, thread) = Queue::start(writer, &Metrics::default()).unwrap();
        (0..ROOM / 1000).for_each(|number| queue.put(&line(number)));
        thread.close(Duration::from_millis(1));
    }

    #[test]
    fn a_reader_that_comes_back_is_told_how_many_lines_were_dropped() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let (queue, thread) = Queue::start(writer, &Metrics::default()).unwrap();
        let lines = tracing_subscriber::fmt().json().with_writer(queue.clone()).finish();
        // The writer's thread has no subscriber of its own, so its line comes by the process's.
        tracing::subscriber::set_global_default(lines).unwrap();
        // So many that the buffer is full again when there is something to tell.
        (0..4 * ROOM / 1000).for_each(|number| queue.put(&line(number)));
        let reading = thread::spawn(move || read_all(reader));
        while !queue.0.waiting.lock().lines.is_empty() || queue.0.waiting.lock().dropped > 0 {
            thread::yield_now();
        }
        thread.close(SOON);
        let text = reading.join().unwrap();
        let told = text.lines().find(|line| line.contains("log lines were dropped"));
        assert!(told.is_some_and(|line| !line.contains("\"dropped\":0")), "{told:?}");
    }

    #[test]
    fn a_descriptor_that_does_not_block_gets_all_lines() {
        let (reader, writer) = UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        let metrics = Metrics::default();
        let (queue, thread) = Queue::start(writer, &metrics).unwrap();
        (0..900).for_each(|number| queue.put(&line(number)));
        let reading = thread::spawn(move || read_all(reader));
        thread.close(SOON);
        assert_eq!(reading.join().unwrap().lines().count(), 900);
        assert_eq!(dropped(&metrics, "failed"), 0);
    }

    #[test]
    fn lines_for_a_reader_that_is_gone_are_counted() {
        let (reader, writer) = UnixStream::pair().unwrap();
        reader.shutdown(Shutdown::Both).unwrap();
        drop(reader);
        let metrics = Metrics::default();
        let (queue, thread) = Queue::start(writer, &metrics).unwrap();
        (0..3).for_each(|number| queue.put(&line(number)));
        thread.close(SOON);
        assert_eq!(dropped(&metrics, "failed"), 3);
    }

    /// Takes so many bytes, then refuses once.
    struct Full(UnixStream, Option<usize>);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = match self.1 {
                Some(0) => {
                    self.1 = None;
                    return Err(io::Error::from(ErrorKind::StorageFull));
                }
                Some(room) => room.min(bytes.len()),
                None => bytes.len(),
            };
            let written = self.0.write(&bytes[..room])?;
            self.1 = self.1.map(|room| room - written);
            Ok(written)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_a_full_disk_tore_does_not_tear_the_next_one() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let metrics = Metrics::default();
        let (queue, thread) = Queue::start(Full(writer, Some(3)), &metrics).unwrap();
        queue.put(b"first\n");
        while dropped(&metrics, "failed") == 0 {
            thread::yield_now();
        }
        queue.put(b"second\n");
        thread.close(SOON);
        assert_eq!(read_all(reader), "fir\nsecond\n");
    }
}
