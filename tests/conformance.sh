#!/usr/bin/env bash
# Runs the two oracles of the conformance folder: compiled workflows, then real runs on a private kfp-local.
# BIN: folder of the programs; VENV: a Python environment with kfp and PyYAML; CASES: another list of cases.
set -euo pipefail
cd "$(dirname "$0")/.."
dir="${KFP_CONFORMANCE_DIR:-../shared/conformance}"
[ -d "$dir" ] || { echo "SKIPPED: no folder $dir; set KFP_CONFORMANCE_DIR"; exit 0; }
python="${VENV:-.venv}/bin/python"
bin="${BIN:-target/release}"
data="$(mktemp -d)"
"$python" "$dir/golden.py" --compiler "$bin/kfp-compile"

"$bin/kfp-local" up --data-dir "$data" --rest-port 0 --grpc-port 0 --metadata-port 0 --kubernetes-port 0 \
    --ready-file "$data/ready" >"$data/log" 2>&1 &
server=$!
finish() {
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    rm -rf "$data"
}
trap finish EXIT
for _ in $(seq 300); do
    [ -s "$data/ready" ] && break
    kill -0 "$server" 2>/dev/null || { cat "$data/log"; exit 1; }
    sleep 0.1
done
status=0
"$python" "$dir/run_pipelines.py" --host "$(cat "$data/ready")" ${CASES:+--cases "$CASES"} --jobs 3 --timeout 300 ${WITH:+--with $WITH} || status=$?
[ "$status" = 0 ] || tail -n 40 "$data/log"
exit "$status"
