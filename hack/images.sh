#!/bin/sh
# Builds the container images and prints the paths of their archives or what was pushed, one a line.
#
#   hack/images.sh build [umbel|redis|pause ...]     default: all three
#   hack/images.sh load DIR [umbel|redis|pause ...]  builds, then loads them into the cluster in DIR
#   hack/images.sh push PREFIX [umbel|redis ...]     builds, then pushes them to a registry: registry.example.com/me/umbel:dev
#
# umbel:dev        umbel-operator, umbel-worker and umbel in /usr/local/bin, from BIN_DIR (default: target/debug)
# umbel-redis:dev  redis-server and redis-cli of Debian's package
# pause:dev        what holds a pod's namespaces
#
# An archive is made again only when something that goes into it has changed.
set -eu

hack=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(dirname "$hack")
eval "$("$hack/env.sh")"
bin=${BIN_DIR:-$root/target/debug}

build() {
    case $1 in
        umbel) set -- umbel:dev "$bin/umbel-operator" "$bin/umbel-worker" "$bin/umbel" ;;
        redis) set -- umbel-redis:dev /usr/bin/redis-server /usr/bin/redis-cli ;;
        pause) set -- pause:dev "$(pause)" ;;
        *) echo "images: no such image: $1" >&2; exit 2 ;;
    esac
    python3 "$hack/image.py" "$UMBEL_CACHE/images" "$@"
}

pause() {
    program=$UMBEL_CACHE/images/pause
    if [ ! -x "$program" ]; then
        mkdir -p "$UMBEL_CACHE/images"
        scratch=$(mktemp -d "$UMBEL_CACHE/images/.making.XXXXXX")
        gcc -static -Os -s -o "$scratch/pause" "$hack/pause.c"
        mv "$scratch/pause" "$program"
        rmdir "$scratch"
    fi
    echo "$program"
}

[ $# -gt 0 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
command=$1
shift
case $command in
    build)
        for image in ${*:-pause redis umbel}; do build "$image"; done
        ;;
    load)
        directory=$1
        shift
        archives=$(for image in ${*:-redis umbel}; do build "$image" || exit; done)
        # shellcheck disable=SC2086
        "$root/e2e/cluster/cluster" load --dir "$directory" $archives
        ;;
    push)
        prefix=$1
        shift
        for image in ${*:-umbel redis}; do
            archive=$(build "$image")
            case $image in redis) name=umbel-redis ;; *) name=$image ;; esac
            python3 "$hack/push.py" "$archive" "$prefix/$name:dev"
        done
        ;;
    *)
        echo "images: no such command: $command" >&2
        exit 2
        ;;
esac
