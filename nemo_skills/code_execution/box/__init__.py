"""The processes around a program: they start it, watch it and see that nothing of it is left.

    server ── zygote ─┬─ watchdog ── keeper ── program       one such chain for each session or run
                      └─ …

The zygote forks boxes, so that none of them waits for an interpreter to start. The watchdog stays outside of
the box and kills the keeper when the server lets go of the box. The keeper is process 1 of the box's
namespaces: all processes of the box end with it. Standard library only.
"""
