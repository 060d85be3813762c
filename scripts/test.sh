#!/usr/bin/env bash
# test.sh [--lint] [--long]: formatting, every suite of tests, clippy, each with its time.
# A suite that fails does not keep the others from running; the end names it and the status is 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/weir/target}
export PATH="$HOME/.cargo/bin:$PATH"
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}

only_lint=false
long=()
for argument in "$@"; do
    case $argument in
        --lint) only_lint=true ;;
        --long) long=(--include-ignored) ;;
        *) echo "usage: scripts/test.sh [--lint] [--long]" >&2; exit 2 ;;
    esac
done

# Which stack the tests run on: processes of this machine, or containers.
features=()
[[ ${WEIR_TEST_STACK:-} != containers ]] || features=(--features weir-testing/containers)

# What is tested: the packages that scripts/build.sh builds.
tested=(--workspace --exclude weir-benches "${features[@]}")

# Seconds after which a run does not begin to lint any more.
LINT_WITHIN=2700

failed=()
report=()
begun=$SECONDS

# step NAME COMMAND...: runs it, and notes how long it took and how it ended.
step() {
    local name=$1 start=$SECONDS outcome=ok
    shift
    printf '\n== %s\n' "$name"
    "$@" || { outcome=FAILED; failed+=("$name"); }
    report+=("$(printf '%6ds  %-7s %s' $((SECONDS - start)) "$outcome" "$name")")
    [[ $outcome == ok ]]
}

finish() {
    printf '\n== Time of each step\n'
    printf '%s\n' "${report[@]}"
    printf '%6ds  in all\n' $((SECONDS - begun))
    if ((${#failed[@]})); then
        printf '\nFailed: %s\n' "$(IFS=,; echo "${failed[*]}")" >&2
        exit 1
    fi
    exit 0
}

# Names of the test targets of a package's tests/ folder (`own`), or of all other packages (`others`).
integration_tests() {
    cargo metadata --format-version 1 --no-deps | python3 -c '
import json, sys
wanted = sys.argv[1]
names = {
    target["name"]
    for package in json.load(sys.stdin)["packages"]
    for target in package["targets"]
    if "test" in target["kind"] and (package["name"] == "weir-tests") == (wanted == "own")
}
print(*sorted(names), sep="\n")' "$1"
}

lock_is_current() { cargo metadata --format-version 1 --locked --quiet >/dev/null; }

lint() { step "clippy" cargo clippy --workspace --all-targets "${features[@]}" --quiet -- -D warnings; }

step "Cargo.lock is current" lock_is_current || finish
step "formatting" cargo fmt --all --check || true
if $only_lint; then
    lint || true
    finish
fi

# Nothing below can run when this fails.
step "build the programs" scripts/build.sh "${features[@]}" || finish
step "build the tests" cargo test "${tested[@]}" --no-run || finish

step "unit tests" cargo test "${tested[@]}" --lib --bins -- "${long[@]}" || true
step "examples in the documentation" cargo test "${tested[@]}" --doc || true
for name in $(integration_tests others); do
    step "$name" cargo test "${tested[@]}" --test "$name" -- "${long[@]}" || true
done
# On real Kafka. One test at a time within a suite, two suites at a time: they mostly wait for what they have broken to come
# back. Each has a stack of its own.
outputs=$(mktemp --directory)
trap 'rm -rf "$outputs"' EXIT
printf '\n== end to end, two suites at a time\n'
end_to_end() {
    local name=$1 start=$SECONDS outcome=ok
    cargo test "${tested[@]}" --test "$name" -- --test-threads=1 "${long[@]}" >"$outputs/$name" 2>&1 || outcome=FAILED
    printf '%6ds  %-7s end to end: %s\n' $((SECONDS - start)) "$outcome" "$name" >"$outputs/$name.report"
    # At once, so that two do not mix.
    flock "$outputs" cat "$outputs/$name.report" "$outputs/$name"
}
# Each in a process group of its own, so that an interruption reaches all of it.
set -m
trap 'for group in $(jobs -p); do kill -INT -- "-$group" 2>/dev/null || true; done; wait; exit 130' INT TERM
running=0
# What measures how work is shared out runs alone.
for name in $(integration_tests own | sort --reverse | grep --invert-match --line-regexp retry); do
    if ((running == 2)); then
        wait -n
        running=$((running - 1))
    fi
    end_to_end "$name" &
    running=$((running + 1))
done
wait
trap - INT TERM
set +m
end_to_end retry
for report_of in "$outputs"/*.report; do
    line=$(<"$report_of")
    report+=("$line")
    [[ $line != *FAILED* ]] || failed+=("${line##*  }")
done
# The whole pipeline while everything around it breaks; in a long run also that the harness notices when a mechanism is
# switched off.
step "chaos" "$CARGO_TARGET_DIR/debug/weir-chaos" --short || true
if ((${#long[@]})); then
    step "chaos: negative controls" "$CARGO_TARGET_DIR/debug/weir-chaos" --control all || true
fi
# Clippy type-checks every dependency once more. Where they all had to be compiled first, on a small machine, that would
# take the run past an hour: then it is left to `make lint`, and said.
if ((SECONDS - begun > LINT_WITHIN)); then
    report+=("     -  SKIPPED clippy: everything had to be compiled first; run \`make lint\`")
else
    lint || true
fi
finish
