"""A node process: the pure core of `cluster/` on real sockets, a real disk and a real clock."""
