//! What a driver tells of its work while it is at it, for counters and for people. Nothing depends on it.

use super::{Attachment, Blocked};
use crate::claim::Claim;

/// Hears of what happens inside of a call. It is called where an answer is waited for: it must not block.
pub trait Observer: Send + Sync {
    /// A write of an object of this kind met another writer's; `claims` are a kind, too.
    fn conflict(&self, _kind: &str) {}

    /// Something about an object of this kind is tried once more.
    fn retry(&self, _kind: &str) {}

    /// An ADD begins to wait for those who hold its addresses.
    fn waiting(&self, _attachment: &Attachment<'_>, _blocked: &[Blocked]) {}

    /// An ADD has taken a claim over that named another pod as its holder, or another owner, as `before`.
    fn taken_over(&self, _attachment: &Attachment<'_>, _before: &Claim) {}

    /// A claim that contradicted its block's entry was rewritten from that entry; `before` is `None` if it was missing.
    fn mended(&self, _before: Option<&Claim>, _after: &Claim) {}
}

/// Hears nothing.
pub struct Silent;

impl Observer for Silent {}
