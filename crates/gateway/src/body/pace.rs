//! How long a client may take to send a body: what counts is the time that it lets us wait, until it has sent
//! enough to call it progress. A byte now and then is none.

use crate::limits::Limits;
use std::time::Duration;

/// The patience that is left with a client.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    time: Duration,
    bytes: usize,
    waited: Duration,
    got: usize,
}

impl Pace {
    /// As the limits have it.
    pub fn new(limits: &Limits) -> Pace {
        Pace { time: limits.stall_time, bytes: limits.stall_bytes, waited: Duration::ZERO, got: 0 }
    }

    /// How long the next bytes may take.
    pub fn left(&self) -> Duration {
        self.time.saturating_sub(self.waited)
    }

    /// So many bytes came after so long a wait.
    pub fn took(&mut self, bytes: usize, waited: Duration) {
        self.waited += waited;
        self.got += bytes;
        if self.got >= self.bytes {
            (self.waited, self.got) = (Duration::ZERO, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Pace;
    use crate::limits::Limits;
    use std::time::Duration;

    #[test]
    fn a_byte_now_and_then_is_no_progress() {
        let limits = Limits { stall_time: Duration::from_secs(30), stall_bytes: 100, ..Limits::default() };
        let mut pace = Pace::new(&limits);
        for _ in 0..15 {
            pace.took(1, Duration::from_secs(2));
        }
        assert_eq!(pace.left(), Duration::ZERO);
        pace.took(85, Duration::from_secs(9));
        assert_eq!(pace.left(), Duration::from_secs(30), "enough came: from here on anew");
    }
}
