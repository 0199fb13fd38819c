//! Connections from which nothing has come yet: anybody can open them, so they must take up nothing that others want.

use std::collections::VecDeque;

use tokio::sync::oneshot;

/// The connections that have sent nothing yet, oldest first.
#[derive(Debug)]
pub struct Silent {
    max: usize,
    places: VecDeque<oneshot::Sender<()>>,
}

/// A place among them: it is held until it is dropped, or taken back, which closes the connection.
pub type Place = oneshot::Receiver<()>;

impl Silent {
    /// So many at most.
    pub fn new(max: usize) -> Silent {
        Silent { max, places: VecDeque::new() }
    }

    /// A place for a new connection, and whether another had to go for it.
    pub fn enter(&mut self) -> (Place, bool) {
        if self.places.len() >= self.max {
            self.places.retain(|place| !place.is_closed());
        }
        let full = self.places.len() >= self.max;
        if full {
            self.places.pop_front();
        }
        let (ours, place) = oneshot::channel();
        self.places.push_back(ours);
        (place, full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_the_silent_makes_room() {
        let mut silent = Silent::new(2);
        let gone = |place: &mut Place| place.try_recv() == Err(oneshot::error::TryRecvError::Closed);
        let (mut first, dropped) = silent.enter();
        assert!(!dropped);
        let (second, dropped) = silent.enter();
        assert!(!dropped && !gone(&mut first));
        // It has spoken: its place is free.
        drop(second);
        let (mut third, dropped) = silent.enter();
        assert!(!dropped && !gone(&mut first));
        let (mut fourth, dropped) = silent.enter();
        assert!(dropped && gone(&mut first) && !gone(&mut third) && !gone(&mut fourth));
    }
}
