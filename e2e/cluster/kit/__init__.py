"""The local cluster: real Kubernetes processes on this machine, without Docker.

`process` starts and stops programs, `pki` makes certificates and kubeconfigs,
`state` remembers what was made, `network` makes the namespace, `controlplane`
and `node` start the components, `teardown` leaves nothing behind.
"""
