#!/usr/bin/env bash
# Starts a private kfp-local on loopback for upstream's black-box suites and prints how to point them at it.
# The suites delete what they find, so the server starts empty and its data goes when it stops (Ctrl-C).
# BIN: folder of the programs. REST, METADATA: ports; some suites insist on 8888 and 8080.
# FIXTURES: a folder that is served as the source of pipelines that the suites create by URL.
set -euo pipefail
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
    echo "export KFP_TEST_FIXTURE_BASE_URL=http://127.0.0.1:$port"
fi
cat <<TEXT
export KUBECONFIG=$data/kubeconfig
export PIPELINE_STORE=database
# v2 API suite:          --label-filter=ApiServerTests -- -apiUrl=$url -namespace=kubeflow
# integration, both APIs: -args -runIntegrationTests=true -isDevMode=true -namespace=kubeflow -apiUrl=$url
# The latter delete everything on the server: one at a time.
TEXT
wait "$server"
