//! What JSON from other writers needs on the way in: Go writes `null` for an empty list or map.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// Fields that this crate does not know, kept so that a rewrite does not lose them.
pub(crate) type Unknown = Map<String, Value>;

/// Reads `null` as the type's default.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
