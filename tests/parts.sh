#!/usr/bin/env bash
# Runs parts of the tests one after the other, each the target part-NAME of the Makefile, and says at the end what came of
# each and how long it took: tests/parts.sh [--once] PART ...
# It stops at the first part that fails. With --once it goes on, and does not repeat a part that passed on this very commit.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
once=''
if [ "${1:-}" = --once ]; then once=yes && shift; fi
[ $# -gt 0 ] || { echo 'tests/parts.sh needs the names of parts' >&2; exit 2; }
commit=$(git rev-parse HEAD 2>/dev/null || true)
# What is not committed has no name under which a result could be kept.
if [ -n "$(git status --porcelain 2>/dev/null)" ]; then commit=''; fi
passed=target/verified/$commit
table='' failed=0

say() {
  printf -v line '%-22s %-8s %5d s' "$@"
  table+=$line$'\n'
}

begun=$SECONDS
for part in "$@"; do
  if [ -n "$once" ] && [ -n "$commit" ] && [ -e "$passed/$part" ]; then
    say "$part" "before" "$(cat "$passed/$part")"
    continue
  fi
  echo "== $part"
  started=$SECONDS
  if make --no-print-directory "part-$part"; then
    say "$part" ok $((SECONDS - started))
    if [ -n "$commit" ]; then mkdir -p "$passed" && echo $((SECONDS - started)) >"$passed/$part"; fi
  else
    say "$part" FAILED $((SECONDS - started))
    failed=$((failed + 1))
    if [ -z "$once" ]; then break; fi
  fi
done
say "all" "$([ "$failed" = 0 ] && echo ok || echo FAILED)" $((SECONDS - begun))
printf '\nPART                   RESULT    TIME\n%s' "$table"
[ "$failed" = 0 ]
