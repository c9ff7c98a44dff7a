#!/usr/bin/env bash
# Fuzzes under libFuzzer, with the toolchain that the project is built with: tests/fuzz/run.sh TARGET|all [SECONDS]
# New inputs go to target/fuzz/corpus/TARGET, where the next run finds them; what breaks a promise to target/fuzz/found.
# Needs a C++ compiler. With a nightly toolchain `cargo fuzz run TARGET --fuzz-dir tests/fuzz/libfuzzer` does the same.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${1:?which target, or all} seconds=${2:-60}
triple=$(${RUSTC:-rustc} -vV | sed -n 's/^host: //p')
# What `cargo fuzz` sets, of which a stable compiler knows everything but the sanitizers.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"
${CARGO:-cargo} build --quiet --release --manifest-path tests/fuzz/libfuzzer/Cargo.toml --target "$triple" --target-dir target/fuzz
if [ "$target" = all ]; then target="annotations block claim cni conflist protocol"; fi
for name in $target; do
  mkdir -p "target/fuzz/corpus/$name" target/fuzz/found
  echo "== $name, $seconds s"
  "target/fuzz/$triple/release/$name" "target/fuzz/corpus/$name" "tests/fuzz/corpus/$name" -dict=tests/fuzz/words.dict \
    -max_total_time="$seconds" -max_len=65536 -timeout=1 -rss_limit_mb=1024 -artifact_prefix="target/fuzz/found/$name-" \
    -print_final_stats=1 -verbosity=0
done
