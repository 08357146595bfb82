#!/usr/bin/env bash
# Installs the chart on a real control plane of its own: what the API server accepts, warns about and grants.
# Pods stay pending there; the demo runs them.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd); root=$(dirname "$here")
dir=$(mktemp -d)
trap '"$root/e2e/cluster/cluster" down --dir "$dir/c"; rm -rf "$dir"' EXIT
KUBECONFIG=$("$root/e2e/cluster/cluster" up --dir "$dir/c" --disposable-parent $$); export KUBECONFIG
fail=0
complain() { printf 'charts/install-check.sh: %s\n' "$*" >&2; fail=1; }
expect() { local want=$1 got; shift; got=$("$@" 2>/dev/null || true); [ "$got" = "$want" ] || complain "'$*' answers '$got', not '$want'"; }

kubectl create namespace umbel-system >/dev/null
kubectl label namespace umbel-system pod-security.kubernetes.io/{enforce,warn}=restricted >/dev/null

# An older release, as far as the CRDs go: one column has another name.
cp -rL "$here/umbel" "$dir/old"
sed -i 's/name: Age$/name: Aged/' "$dir"/old/files/crds/*.yaml
helm install umbel "$dir/old" -n umbel-system >"$dir/out" 2>&1 || { cat "$dir/out" >&2; exit 1; }
grep -i warning "$dir/out" >&2 && complain 'the API server warns about the install'
password() { kubectl -n umbel-system get secret umbel-redis -o jsonpath='{.data.password}{.data.url}'; }
columns() { kubectl get crd -o jsonpath='{range .items[*]}{.spec.versions[0].additionalPrinterColumns[-1:].name} {end}'; }
expect 'Aged Aged Aged Aged Aged ' columns
first=$(password)
helm upgrade umbel "$here/umbel" -n umbel-system --set operator.replicas=1 >"$dir/out" 2>&1 || { cat "$dir/out" >&2; exit 1; }
[ "$(password)" = "$first" ] || complain 'the password changes with an upgrade'
expect 'Age Age Age Age Age ' columns

me=system:serviceaccount:umbel-system:umbel
for right in 'list secrets' 'create secrets' 'delete secrets' 'create pods' 'create pods/exec' 'list nodes' 'escalate roles' 'bind roles' 'impersonate users' \
  'create clusterroles' 'delete taskqueues.umbel.dev' 'update deployments'; do
  # shellcheck disable=SC2086
  expect no kubectl auth can-i $right --as "$me" -n elsewhere
done
for right in 'get secrets' 'watch secrets' 'delete pods' 'list workerpools.umbel.dev' 'patch deployments'; do
  # shellcheck disable=SC2086
  expect yes kubectl auth can-i $right --as "$me" -n elsewhere
done
expect no kubectl auth can-i get secrets --as system:serviceaccount:umbel-system:umbel-redis -n umbel-system
# Tokens of joined clusters are renewed in the release's namespace, and elsewhere where that is said.
expect yes kubectl auth can-i update secrets --as "$me" -n umbel-system
expect no kubectl auth can-i update secrets --as "$me" -n elsewhere
expect no kubectl auth can-i list secrets --as "$me" -n umbel-system

# A person with the built-in role edit may use the kinds.
kubectl create rolebinding someone --clusterrole edit --user someone -n umbel-system >/dev/null
may_create() { kubectl auth can-i create workerpools.umbel.dev --as someone -n umbel-system; }
for _ in $(seq 50); do [ "$(may_create 2>/dev/null)" = yes ] && break; sleep 0.1; done
expect yes may_create

kubectl apply --dry-run=server -k "$root/manifests/samples" >"$dir/out" 2>&1 || { cat "$dir/out" >&2; complain 'the samples are refused'; }
helm uninstall umbel -n umbel-system >/dev/null
kubectl get crd taskqueues.umbel.dev >/dev/null || complain 'the CRDs went with the release'
kubectl apply --server-side --force-conflicts -k "$root/manifests/base" >"$dir/out" 2>&1 || { cat "$dir/out" >&2; complain 'manifests/base is refused'; }

[ "$fail" = 0 ] || exit 1
echo 'chart: installed, upgraded and uninstalled on a real API server; rights and samples are as promised'
