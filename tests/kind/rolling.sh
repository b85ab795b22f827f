#!/usr/bin/env bash
# Rolling updates on a kind cluster, under load that counts every request:  tests/kind/rolling.sh [ROUNDS]
#
# It wants docker, kind, kubectl and the image that `make image` makes.  The cluster is called pkg-rolling; it is made
# first and deleted at the end (KEEP=1 keeps it).  DRAIN: seconds that a pod's drain may take, 30.  Exit code 0: no request was lost.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-10}
cluster=pkg-rolling
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
k() { kubectl --context "kind-$cluster" -n pkg "$@"; }

finish() {
    code=$?
    if [ "$code" != 0 ]; then
        k get pods -o wide || true
        k get events --sort-by=.lastTimestamp | tail -n 40 || true
        k logs -l app.kubernetes.io/name=pkg --tail=40 --prefix || true
    fi
    [ "${KEEP:-}" = 1 ] || kind delete cluster --name "$cluster"
    exit "$code"
}
trap finish EXIT

kind create cluster --name "$cluster" --config tests/kind/cluster.yaml --wait 3m
kind load docker-image "pkg:$version" --name "$cluster"

kubectl --context "kind-$cluster" apply -f deploy/base/namespace.yaml
k create secret generic pkg-database --from-literal=url=postgresql://postgres:of-a-test@postgres/postgres
k create configmap rolling --from-file=application=tests/support/rolling_application.py --from-file=client=tests/support/client.py \
    --from-file=load=tests/support/load.py --from-file=counted=tests/kind/counted.py
k apply -k tests/kind
k wait --for=condition=Ready pod/postgres --timeout=3m
k rollout status deployment/pkg --timeout=3m
k wait --for=condition=Ready pod/load --timeout=1m

for round in $(seq "$rounds"); do
    k rollout restart deployment/pkg
    k rollout status deployment/pkg --timeout=5m
    echo "round $round of $rounds"
done
sleep "${DRAIN:-30}" # of the last old pods

# Without a shell in it: Python itself tells process 1 to end and to print what it has counted.
k exec load -- /usr/bin/python3 -c 'import os, signal; os.kill(1, signal.SIGTERM)'
timeout 60 kubectl --context "kind-$cluster" -n pkg logs -f load
code=
for _ in $(seq 30); do
    code=$(k get pod load -o jsonpath='{.status.containerStatuses[0].state.terminated.exitCode}')
    [ -z "$code" ] || break
    sleep 1
done
echo "exit code of the load: $code"
[ "$code" = 0 ]
