#!/usr/bin/env bash
# Lints the chart, compares what it renders with the committed text, and holds the rights to their limits.
# `check.sh --update` writes the texts instead: read the diff before committing it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
update=${1:-}
out=$(mktemp -d); trap 'rm -rf "$out"' EXIT
fail=0
complain() { printf '%s\n' "$*" >&2; fail=1; }

# The link to crds/ is meant. Its note is taken out only when helm has ended: what follows reads the rest.
helm() {
  local code=0
  command helm "$@" 2>"$out/stderr" || code=$?
  grep -v 'found symbolic link' "$out/stderr" >&2 || true
  return "$code"
}

# Passwords are random unless an upgrade finds the old one: they are masked, and that they differ is checked below.
render() { helm template umbel umbel --namespace umbel-system --values "$1" | sed -E 's/^(  (password|url): ).+$/\1MASKED/'; }

compare() { # fresh committed
  if [ "$update" = --update ]; then mkdir -p "$(dirname "$2")"; cp "$1" "$2"
  elif ! diff -u "$2" "$1" >&2; then complain "charts/check.sh: $2 is not what the chart renders: run make chart-update"; fi
}

for values in umbel/ci/*-values.yaml; do
  set=$(basename "$values" -values.yaml)
  helm lint --strict --quiet umbel --values "$values" || complain "charts/check.sh: lint fails with $set"
  # Without the CRDs, which would only repeat crds/.
  render "$values" >"$out/$set.yaml"
  awk 'BEGIN{RS="---\n"; ORS=""} !/kind: CustomResourceDefinition/ && NF {print "---\n" $0}' "$out/$set.yaml" >"$out/$set.golden"
  compare "$out/$set.golden" "golden/$set.yaml"

  grep -qE "^ +(apiGroups|resources|verbs): .*['\"]?\*" "$out/$set.golden" && complain "charts/check.sh: a wildcard right in $set"
  pods=$(grep -cE '^kind: (Deployment|StatefulSet)$' "$out/$set.golden")
  for line in 'runAsNonRoot: true' 'readOnlyRootFilesystem: true' 'allowPrivilegeEscalation: false' 'drop: \[ALL\]' 'type: RuntimeDefault'; do
    [ "$(grep -cE "$line" "$out/$set.golden")" = "$pods" ] || complain "charts/check.sh: $set has a pod without $line"
  done
done
grep -q 'kind: ClusterRole' "$out/namespaced.golden" && complain 'charts/check.sh: a namespaced install needs a ClusterRole'
[ "$(helm template a umbel | grep '^  password:')" != "$(helm template a umbel | grep '^  password:')" ] ||
  complain 'charts/check.sh: the password is the same in two installs'

# Mistakes in values are refused, with the name of the value.
for bad in nosuch=1 podTemplates.level=any operator.replicas=0 image.tag=latest redis.maxMemory=lots 'watchNamespaces={Not_A_Name}' \
  'clusterDiscovery.namespaces={Not_A_Name}' 'watchNamespaces={a},clusterDiscovery.namespaces={b}'; do
  helm template umbel umbel --set "$bad" >"$out/bad" 2>&1 && complain "charts/check.sh: --set $bad is accepted"
  grep -q "${bad%%[.=]*}" "$out/bad" || complain "charts/check.sh: --set $bad is refused without its name"
done

# The README's table is made from the comments in values.yaml: each value has one, each comment its value.
{
  cat umbel/README.md.head
  awk '/^ *## @section/ {sub(/^ *## @section /, ""); printf "\n## %s\n\n| Value | Default | Meaning |\n|---|---|---|\n", $0}
       /^ *## @param/ {name = $3; text = $0; sub(/^ *## @param [^ ]+ /, "", text); getline; value = $0; sub(/^ *[^:]+: ?/, "", value)
         printf "| `%s` | %s | %s |\n", name, (value == "" ? "see values.yaml" : "`" value "`"), text}' umbel/values.yaml
} >"$out/README.md"
compare "$out/README.md" umbel/README.md

# The chart carries the generated CRDs, by a link that packaging follows.
[ "$(helm template umbel umbel | grep -c '^kind: CustomResourceDefinition')" = "$(ls ../crds/*s.yaml | wc -l)" ] ||
  complain 'charts/check.sh: the chart does not carry each CRD of crds/'

# manifests/ is the default install, for those without Helm; its broker password is the installer's to choose.
helm template umbel umbel --namespace umbel-system --set redis.auth.existingSecret=umbel-redis --set crds.install=false |
  sed -E '/helm\.sh\/|managed-by: Helm|^# Source: /d' >"$out/install.yaml"
compare "$out/install.yaml" ../manifests/base/install.yaml
kubectl kustomize ../manifests/base >"$out/built" || complain 'charts/check.sh: manifests/base does not build'
kubectl kustomize ../manifests/samples >"$out/samples" || complain 'charts/check.sh: manifests/samples do not build'

[ "$fail" = 0 ] || exit 1
echo "chart: lint, $(ls golden | wc -l) rendered value sets, rights, refusals, CRDs and manifests are as committed"
