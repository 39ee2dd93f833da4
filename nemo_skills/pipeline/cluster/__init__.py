"""Cluster configs: where jobs run, and with which mounts, containers and secrets."""
