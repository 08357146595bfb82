#!/bin/bash
# Checks the local cluster itself: selftest.sh [control-plane|node ...], default both.
#
# Needs what hack/setup.sh installs. Prints one line for each thing that holds and
# stops at the first that does not.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cluster=$here/cluster
hack=$here/../../hack
eval "$("$hack/env.sh")"
# Not under TMPDIR: the kubelet's sockets need a short path.
work=$(mktemp -d /tmp/umbel-selftest.XXXXXX)
trap 'for dir in "$work"/*/; do "$cluster" down --dir "$dir"; done; rm -rf "$work"' EXIT

holds() { echo "ok: $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }

# until_true SECONDS WHAT COMMAND...
until_true() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || fail "$what"
        sleep 0.1
    done
    holds "$what"
}

answer_is() {
    local expected=$1
    shift
    [ "$("$@" 2>/dev/null)" = "$expected" ]
}

# What a cluster in the folder may leave behind, as lines; nothing is what we want.
traces() {
    local dir=$1 id=$2
    grep -lzxsF "UMBEL_CLUSTER_DIR=$dir" /proc/[0-9]*/environ || true
    grep -sF " $dir/" /proc/self/mountinfo || true
    ip netns list | grep -F "umbel-$id" || true
    ip -br link | grep -F "umbel$id" || true
    find /sys/fs/cgroup -maxdepth 2 -name "umbel-$id"
    find /var/lib/cni/results -name "umbel-$id*" 2>/dev/null || true
    find /var/log/containers -lname "$dir/*" 2>/dev/null || true
    [ ! -e "$dir" ] || echo "$dir"
}

gone() { [ -z "$(traces "$1" "$2")" ]; }

fact() { python3 -c 'import json, sys; print(eval("state" + sys.argv[2], {"state": json.load(open(sys.argv[1] + "/state.json"))}))' "$1" "$2"; }

identity() { printf %s "$1" | sha256sum | cut -c1-8; }

web=$(cat <<'END'
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "pause:dev"}]}
END
)

control_plane() {
    local a=$work/a b=$work/b parent
    sleep 600 &
    parent=$!
    "$cluster" up --dir "$a" >/dev/null &
    local first=$!
    "$cluster" up --dir "$b" --disposable-parent $parent --cm-arg=--concurrent-deployment-syncs=1 >/dev/null
    wait $first
    holds "two control planes come up at the same time"
    if gone "$a" "$(identity "$a")"; then fail "a cluster that runs leaves traces"; fi

    for dir in "$a" "$b"; do
        "$KUBECTL" --kubeconfig "$dir/kubeconfig" create namespace shop >/dev/null
        "$KUBECTL" --kubeconfig "$dir/kubeconfig" apply -n shop -f - <<<"$web" >/dev/null
        until_true 20 "a Deployment becomes two Pods in $(basename "$dir")" \
            answer_is 2 sh -c "'$KUBECTL' --kubeconfig '$dir/kubeconfig' get pods -n shop --no-headers | wc -l"
    done

    "$cluster" target --dir "$a" --name far >/dev/null
    local far=$a/targets/far/kubeconfig
    answer_is "" "$KUBECTL" --kubeconfig "$far" get namespace shop --ignore-not-found -o name || fail "a target has objects of its own"
    holds "a target has objects of its own"
    "$KUBECTL" --kubeconfig "$far" create serviceaccount robot >/dev/null
    "$KUBECTL" --kubeconfig "$far" create clusterrolebinding robot --clusterrole=cluster-admin --serviceaccount=default:robot >/dev/null
    local token server
    token=$("$KUBECTL" --kubeconfig "$far" create token robot)
    server=$(fact "$a" '["targets"]["far"]["server"]')
    until_true 10 "a token of a target is accepted by the target" \
        "$KUBECTL" --kubeconfig /dev/null --server "$server" --certificate-authority "$a/targets/far/ca.crt" --token "$token" get services
    if "$KUBECTL" --kubeconfig /dev/null --server "$(fact "$a" '["server"]')" --certificate-authority "$a/pki/ca.crt" --token "$token" get services >/dev/null 2>&1; then
        fail "and by nobody else"
    fi
    holds "and by nobody else"

    kill -9 $parent
    until_true 15 "a disposable control plane goes when its parent is killed" gone "$b" "$(identity "$b")"
    "$KUBECTL" --kubeconfig "$a/kubeconfig" get --raw /readyz >/dev/null || fail "the other one stays"
    holds "the other one stays"
    "$cluster" down --dir "$a"
    gone "$a" "$(identity "$a")" || fail "down leaves nothing: $(traces "$a" "$(identity "$a")")"
    holds "down leaves nothing"
    "$cluster" down --dir "$a" || fail "down of nothing is harmless"
    holds "down of nothing is harmless"
    if "$cluster" up --dir "$a" --apiserver-arg=--no-such-flag >/dev/null 2>"$work/said"; then fail "a broken start is said"; fi
    grep -q 'unknown flag: --no-such-flag' "$work/said" || fail "a broken start is said: $(cat "$work/said")"
    holds "a broken start is said, with the component's own words"
    rm -rf "$a"
}

node() {
    local dir=$work/n id k
    id=$(identity "$dir")

    # Killed at several moments of being made, it can still be taken down.
    for pause in 0.5 1.5 3; do
        "$cluster" up --level node --dir "$dir" >/dev/null 2>&1 &
        local making=$!
        sleep $pause
        kill -9 $making 2>/dev/null || true
        wait $making 2>/dev/null || true
        "$cluster" down --dir "$dir"
        gone "$dir" "$id" || fail "a node whose making was killed after $pause s is taken down whole: $(traces "$dir" "$id")"
    done
    holds "a node whose making was killed is taken down whole"

    "$cluster" up --level node --dir "$dir" >/dev/null
    [ "$(traces "$dir" "$id" | wc -l)" -gt 20 ] || fail "a node that runs leaves traces"
    "$hack/images.sh" load "$dir" redis
    k="$KUBECTL --kubeconfig $dir/kubeconfig"
    $k apply -f - >/dev/null <<'END'
apiVersion: v1
kind: Pod
metadata: {name: store, labels: {app: store}}
spec:
  terminationGracePeriodSeconds: 20
  securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: redis
    image: umbel-redis:dev
    imagePullPolicy: Never
    command: [redis-server, --protected-mode, "no", --save, ""]
    readinessProbe: {exec: {command: [redis-cli, ping]}, periodSeconds: 1}
    resources: {limits: {memory: 64Mi}}
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: Service
metadata: {name: store}
spec: {type: NodePort, selector: {app: store}, ports: [{port: 6379, nodePort: 30379}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  restartPolicy: OnFailure
  containers:
  - {name: reader, image: "umbel-redis:dev", imagePullPolicy: Never, command: [redis-cli, -e, -h, store.default.svc, lpush, seen, reader]}
---
apiVersion: v1
kind: Pod
metadata: {name: glutton}
spec:
  restartPolicy: Never
  containers:
  - name: glutton
    image: umbel-redis:dev
    imagePullPolicy: Never
    command: [redis-server, --save, "", --maxmemory, "0"]
    resources: {limits: {memory: 32Mi}}
END
    $k wait --for=condition=Ready pod/store pod/glutton --timeout=30s >/dev/null || fail "pods of our image run: $($k describe pods | tail -20)"
    holds "pods of our image run, restricted ones too"
    local address
    address=$(fact "$dir" '["address"]')
    until_true 20 "a pod finds a service by its name" answer_is reader redis-cli -h "$address" -p 30379 lrange seen 0 -1
    until_true 5 "logs are readable" answer_is 1 $k logs reader
    answer_is PONG $k exec store -- redis-cli ping || fail "exec works"
    holds "exec works"

    # Lua fails when the server dies under it.
    $k exec glutton -- redis-cli eval "redis.call('set', 'x', string.rep('x', 100000000))" 0 >/dev/null 2>&1 || true
    until_true 20 "a container above its memory limit is killed for it" \
        answer_is OOMKilled $k get pod glutton -o 'jsonpath={.status.containerStatuses[0].state.terminated.reason}'

    $k logs -f store >"$work/last-words" &
    local reading=$!
    $k delete pod store >/dev/null
    wait $reading || true
    grep -q 'Received SIGTERM' "$work/last-words" || fail "a deleted pod is asked first"
    grep -q 'bye bye' "$work/last-words" || fail "a deleted pod is given time"
    holds "a deleted pod is asked first and given time"

    "$cluster" target --dir "$dir" --name far >/dev/null
    "$KUBECTL" --kubeconfig "$dir/targets/far/kubeconfig" get --raw /readyz >/dev/null || fail "a target answers the host"
    holds "a target answers the host"

    "$cluster" down --dir "$dir"
    gone "$dir" "$id" || fail "down leaves nothing of a node: $(traces "$dir" "$id")"
    holds "down leaves nothing of a node"
}

[ $# -gt 0 ] || set -- control-plane node
for level; do
    case $level in
        control-plane) control_plane ;;
        node) node ;;
        *) fail "no such level: $level" ;;
    esac
done
