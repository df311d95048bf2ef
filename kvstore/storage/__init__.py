"""Storage: engines, the layout of keys, one fsync for many, and the data directory.

Import from the files: `engine` says what an engine is, `rocksdb` and `memory` are the two there
are, `keyspace` lays keys out, `group_commit` makes writes durable, `datadir` owns the directory.
"""
