#!/usr/bin/env bash
# Starts a private kfp-local on loopback for upstream's black-box suites and prints how to point them at it. A command that
# is given is run instead, in the caller's folder and with that environment and API_URL, its results are counted, and the
# server ends with it. The suites delete what they find, so the server starts empty and its data goes when it stops (Ctrl-C).
# BIN: folder of the programs. REST, METADATA: ports; some suites insist on 8888 and 8080.
# FIXTURES: a folder that is served as the source of pipelines that the suites create by URL.
set -euo pipefail
caller="$PWD"
cd "$(dirname "$0")/.."
bin="${BIN:-target/debug}"
data="$(mktemp -d)"
finish() {
    kill $(jobs -p) 2>/dev/null || true
    wait || true
    rm -rf "$data"
}
trap finish EXIT INT TERM
# Fixtures come from loopback, which the server refuses otherwise.
PIPELINE_URL_VALIDATION_ENABLED=false "$bin/kfp-local" up --data-dir "$data" --rest-port "${REST:-0}" --grpc-port 0 \
    --metadata-port "${METADATA:-0}" --kubernetes-port 0 --log-level "${LOG_LEVEL:-info}" --ready-file "$data/ready" \
    >"${LOG:-$data/log}" 2>&1 &
server=$!
for _ in $(seq 600); do
    [ -s "$data/ready" ] && break
    kill -0 "$server" 2>/dev/null || { cat "${LOG:-$data/log}"; exit 1; }
    sleep 0.1
done
url="$(cat "$data/ready")"
if [ -n "${FIXTURES:-}" ]; then
    python3 -u -m http.server --bind 127.0.0.1 --directory "$FIXTURES" 0 >"$data/fixtures" 2>/dev/null &
    for _ in $(seq 100); do
        [ -s "$data/fixtures" ] && break
        sleep 0.1
    done
    port="$(sed -n 's/.* port \([0-9]*\) .*/\1/p' "$data/fixtures")"
    export KFP_TEST_FIXTURE_BASE_URL="http://127.0.0.1:$port"
fi
export KUBECONFIG="$data/kubeconfig" PIPELINE_STORE=database API_URL="$url"
if [ $# -gt 0 ]; then
    code=0
    (cd "$caller" && "$@") 2>&1 | tee "$data/output" || code=$?
    # Of Go's own tests the innermost ones, which are named like their parents with more behind a slash; of Ginkgo its summary.
    awk '/^ *--- (PASS|FAIL|SKIP): / { kind[$3] = substr($2, 1, 4) }
        / Passed .* Failed / { sub(/^.*-- /, ""); print "Ginkgo: " $0 }
        END {
            for (test in kind) {
                outer = 0
                for (other in kind) outer += index(other, test "/") == 1
                if (!outer) count[kind[test]]++
            }
            if (length(kind)) printf "%d passed, %d failed, %d skipped\n", count["PASS"], count["FAIL"], count["SKIP"]
        }' "$data/output"
    exit "$code"
fi
[ -z "${FIXTURES:-}" ] || echo "export KFP_TEST_FIXTURE_BASE_URL=$KFP_TEST_FIXTURE_BASE_URL"
cat <<TEXT
export KUBECONFIG=$KUBECONFIG
export PIPELINE_STORE=$PIPELINE_STORE
# v2 API suite:          --label-filter=ApiServerTests -- -apiUrl=$url -namespace=kubeflow
# integration, both APIs: -args -runIntegrationTests=true -isDevMode=true -namespace=kubeflow -apiUrl=$url
# The latter delete everything on the server: one at a time.
TEXT
wait "$server"
