//! Present so that Cargo fetches the build dependency that `.cargo/protoc` runs.

fn main() {}
