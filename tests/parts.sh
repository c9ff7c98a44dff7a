#!/usr/bin/env bash
# Runs parts of the tests, each the target part-NAME of the Makefile, and says at the end what came of each and how long it
# took: tests/parts.sh [--once] PART ...
# Parts that spend their time waiting are joined by a plus (kubelets+manifests) and run at the same time; what the later
# ones print comes in one piece after the first.
# It stops where a part fails. With --once it goes on, and does not repeat a part that passed on this very commit.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
once=''
if [ "${1:-}" = --once ]; then once=yes && shift; fi
[ $# -gt 0 ] || { echo 'tests/parts.sh needs the names of parts' >&2; exit 2; }
commit=$(git rev-parse HEAD 2>/dev/null || true)
# What is not committed has no name under which a result could be kept.
if [ -n "$(git status --porcelain 2>/dev/null)" ]; then commit=''; fi
passed=target/verified/${commit:-nothing}
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

say() { printf '%-22s %-8s %5d s\n' "$@"; }

# The line of one part, in $results/PART.
run() {
  local part=$1 begun=$SECONDS result=ok
  if [ -n "$once" ] && [ -e "$passed/$part" ]; then
    say "$part" before "$(cat "$passed/$part")" >"$results/$part"
    return
  fi
  echo "== $part"
  make --no-print-directory "part-$part" || result=FAILED
  say "$part" "$result" $((SECONDS - begun)) >"$results/$part"
  [ "$result" = ok ] || return
  if [ -n "$commit" ]; then mkdir -p "$passed" && echo $((SECONDS - begun)) >"$passed/$part"; fi
}

table='' result=ok
for joined in "$@"; do
  IFS=+ read -ra parts <<<"$joined"
  for part in "${parts[@]:1}"; do run "$part" >"$results/$part.log" 2>&1 & done
  run "${parts[0]}"
  wait
  for part in "${parts[@]:1}"; do cat "$results/$part.log"; done
  for part in "${parts[@]}"; do table+=$(cat "$results/$part")$'\n'; done
  case $table in *FAILED*)
    result=FAILED
    if [ -z "$once" ]; then break; fi ;;
  esac
done
printf '\nPART                   RESULT    TIME\n%s%s\n' "$table" "$(say all "$result" $SECONDS)"
[ "$result" = ok ]
