//! A value whose changes can be waited for. Whoever waited first is woken first: tokio's own watch channel wakes in
//! an order that it draws by lot, and a seed would not be one run.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

#[derive(Default)]
pub struct Signal<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Copy> Signal<T> {
    pub fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Notify::new() }
    }

    pub fn value(&self) -> T {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, value: T) {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = value;
        self.changed.notify_waiters();
    }

    /// Returns once `reached` holds; it is asked again at every change.
    pub async fn until(&self, mut reached: impl FnMut(T) -> bool) {
        loop {
            // Counts as waiting from here on, so that no change in between is missed.
            let change = self.changed.notified();
            if reached(self.value()) {
                return;
            }
            change.await;
        }
    }
}
