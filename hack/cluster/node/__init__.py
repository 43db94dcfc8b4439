"""The process node: a Kubernetes node whose containers are plain processes on this machine. Never in the product.

`python -m hack.cluster.node` is started by `Cluster`. It registers a Node, runs the Pods that the scheduler binds to it,
keeps their status, and answers DNS for Services. There is no image, no namespace, no network of their own: an image
stands for a command (`hack.cluster.images`), a pod's address is a loopback address, a mounted path is rewritten in
arguments and environment to a folder of the pod.
"""
