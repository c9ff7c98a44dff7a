//! What a pod says about its addresses: annotations, and who owns it.

mod fixed;
mod owner;
mod pools;

pub use fixed::FixedRequest;
pub use owner::Owner;
pub use pools::{Families, PoolAnnotations};
