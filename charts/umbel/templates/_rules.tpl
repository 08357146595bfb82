{{/* What the operator may do in each namespace it works in: the whole list, and nothing by wildcard. */}}
{{- define "umbel.rules" -}}
- apiGroups: [umbel.dev]
  resources: [taskqueues, workerpools, periodictasks, tasks, targetclusters]
  verbs: [get, list, watch]
# Only the finalizer of a queue whose messages go with it (deletionPolicy: Purge).
- apiGroups: [umbel.dev]
  resources: [taskqueues]
  verbs: [patch]
- apiGroups: [umbel.dev]
  resources: [taskqueues/status, workerpools/status, periodictasks/status, tasks/status, targetclusters/status]
  verbs: [patch]
# Those that ended long enough ago (ttlSecondsAfterFinished).
- apiGroups: [umbel.dev]
  resources: [tasks]
  verbs: [delete]
# The fleet: the template is applied as one writer, the size goes through the scale subresource as another.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments/scale]
  verbs: [get, update]
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get, list, watch]
# Pools that ask for it shield their busy pods by a disruption budget.
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch, delete]
# Pods are annotated (admission, deletion cost, shields) and, once drained, deleted by name.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch, delete]
# Broker URLs and kubeconfigs, each by its name: never a list. A pool's own Role can only pass on what is held here.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, watch]
# Arguments of schedules that stand in ConfigMaps, each by its name.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, create, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
