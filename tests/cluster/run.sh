#!/usr/bin/env bash
# Runs a command with a real Kubernetes API: `run.sh COMMAND...`
#
# The API is the one of KUBECONFIG if that is set; else a private one, made of etcd (Debian: etcd-server) and the
# kube-apiserver that go.mod names, which is built once and kept in the user's cache, as is the workflow-controller of
# argo/go.mod. The command finds the kubeconfig in KFP_TEST_KUBECONFIG and Argo's program in the folder KFP_TEST_ARGO. When
# there is no API the command does not run; KFP_CLUSTER_REQUIRED=1 makes that a failure. KFP_CLUSTER_BUILD_SECONDS bounds
# the build of each program.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${KFP_CLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kfp-cluster}

skip() {
  echo "################################################################" >&2
  echo "## SKIPPED: no test ran against a real Kubernetes API: $*" >&2
  echo "################################################################" >&2
  [ "${KFP_CLUSTER_REQUIRED:-0}" = 0 ] || exit 1
  exit 0
}

if [ -n "${KUBECONFIG:-}" ]; then
  echo "using the cluster of KUBECONFIG" >&2
  KFP_TEST_KUBECONFIG=$KUBECONFIG exec "$@"
fi

# A Go program, built once: `built NAME MODULE_FOLDER MODULE PACKAGE LINKER_FLAGS`; its path is put into `$program`.
built() {
  local version
  version=$(sed -nE "s|^(require)?[[:space:]]*$3 (v[^ ]*).*|\2|p" "$2/go.mod" | head -n 1)
  program=$cache/$1-$version
  [ ! -x "$program" ] || return 0
  command -v go >/dev/null || { missing="Go is missing, which builds $1 $version"; return 1; }
  echo "building $1 $version; this takes some minutes and happens once" >&2
  mkdir -p "$cache"
  # What a build that ran out of time has compiled is kept for the next.
  (cd "$2" && timeout "${KFP_CLUSTER_BUILD_SECONDS:-0}" nice -n 15 go build -p "${KFP_CLUSTER_JOBS:-1}" -trimpath -buildvcs=false \
    -ldflags "-s -w ${5//VERSION/$version}" -o "$program.new" "$4") || { missing="$1 $version could not be built"; return 1; }
  mv "$program.new" "$program"
}

command -v etcd >/dev/null || skip "etcd is missing (Debian and Ubuntu: apt-get install etcd-server)"
built kube-apiserver "$here" k8s.io/kubernetes k8s.io/kubernetes/cmd/kube-apiserver \
  "-X k8s.io/component-base/version.gitVersion=VERSION" || skip "$missing"
server=$program

# Argo's controller with its definitions. The other tests do without.
argo_module=github.com/argoproj/argo-workflows/v3
if built workflow-controller "$here/argo" "$argo_module" "$argo_module/cmd/workflow-controller" ""; then
  argo=$program.d
  if [ ! -d "$argo/crds" ] && source=$(cd "$here/argo" && go mod download "$argo_module" && go list -m -f '{{.Dir}}' "$argo_module"); then
    mkdir -p "$argo"
    cp -r "$source/manifests/base/crds/minimal" "$argo/crds.new"
    chmod -R u+w "$argo/crds.new"
    mv "$argo/crds.new" "$argo/crds"
  fi
  if [ -d "$argo/crds" ]; then
    ln -sfn "$program" "$argo/workflow-controller"
    export KFP_TEST_ARGO=$argo
  fi
fi
[ -n "${KFP_TEST_ARGO:-}" ] || {
  echo "## SKIPPED: the test with Argo's workflow-controller: ${missing:-its definitions are missing}" >&2
  [ "${KFP_CLUSTER_REQUIRED:-0}" = 0 ] || exit 1
}

dir=$(mktemp -d)
pids=()
finish() {
  # At once: nothing of it is kept, and a kube-apiserver without etcd takes its time.
  [ ${#pids[@]} -eq 0 ] || kill -KILL "${pids[@]}" 2>/dev/null || true
  [ ${#pids[@]} -eq 0 ] || wait "${pids[@]}" 2>/dev/null || true
  rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT TERM

# Ports that nobody listens on now; between here and the start somebody else could take one, which shows at once.
read -r client peer api < <(python3 - <<'PY'
import socket
sockets = [socket.socket() for _ in range(3)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PY
)
token=$(head -c 24 /dev/urandom | base64 | tr -d '/+=')
umask 077
echo "$token,tests,tests,\"system:masters\"" >"$dir/tokens.csv"
openssl genrsa -out "$dir/accounts.key" 2048 2>/dev/null

etcd --data-dir "$dir/etcd" --unsafe-no-fsync --listen-client-urls "http://127.0.0.1:$client" \
  --advertise-client-urls "http://127.0.0.1:$client" --listen-peer-urls "http://127.0.0.1:$peer" \
  --initial-advertise-peer-urls "http://127.0.0.1:$peer" --initial-cluster "default=http://127.0.0.1:$peer" \
  >"$dir/etcd.log" 2>&1 &
pids+=($!)
"$server" --etcd-servers "http://127.0.0.1:$client" --secure-port "$api" --bind-address 127.0.0.1 \
  --cert-dir "$dir/certs" --token-auth-file "$dir/tokens.csv" --authorization-mode RBAC \
  --service-account-issuer https://cluster.test --service-account-key-file "$dir/accounts.key" \
  --service-account-signing-key-file "$dir/accounts.key" --service-cluster-ip-range 10.0.0.0/24 \
  --disable-admission-plugins ServiceAccount --watch-cache=true >"$dir/api.log" 2>&1 &
pids+=($!)
for _ in $(seq 240); do
  if [ "$(curl -ksS -H "Authorization: Bearer $token" "https://127.0.0.1:$api/readyz" 2>/dev/null)" = ok ]; then
    ready=1
    break
  fi
  kill -0 "${pids[@]}" 2>/dev/null || break
  sleep 0.5
done
if [ -z "${ready:-}" ]; then
  tail -n 20 "$dir/etcd.log" "$dir/api.log" >&2
  echo "the private Kubernetes API did not become ready" >&2
  exit 1
fi
cat >"$dir/kubeconfig" <<EOF
apiVersion: v1
kind: Config
current-context: tests
clusters: [{name: tests, cluster: {server: "https://127.0.0.1:$api", certificate-authority: "$dir/certs/apiserver.crt"}}]
users: [{name: tests, user: {token: "$token"}}]
contexts: [{name: tests, context: {cluster: tests, user: tests, namespace: default}}]
EOF
echo "using a private Kubernetes API, ${server##*/}" >&2
status=0
KFP_TEST_KUBECONFIG=$dir/kubeconfig KFP_TEST_CLUSTER_IS_PRIVATE=1 "$@" || status=$?
exit "$status"
